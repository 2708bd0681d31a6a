"""Batches of chunks: the right samples, the same with any number of workers and processes, clear errors."""

import os
import resource
import shutil
import signal
import subprocess
import sys

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import toy
from places import REPOSITORY

from i2srf_kd.data.chunk_dataset import NUM_SAMPLES, ParallelFiles, SeededChunk, read_lengths
from i2srf_kd.data.chunks import Chunk
from i2srf_kd.system.errors import UserError


def test_batches_hold_the_samples_of_the_files(data):
    factory = toy.loaders(data)
    batches = list(factory.build_iter(1))
    chunks = factory.make_batches(1)
    assert len(batches) == len(chunks) == len(factory.build_iter(1)) == 9
    for (ids, batch), expected in zip(batches, chunks, strict=True):
        assert batch["speech_mix"].shape == (4, toy.CHUNK)
        assert batch["speech_mix"].dtype == torch.float32
        assert ids == [chunk.utt_id for chunk in expected]
        for i, (utt_id, start, length) in enumerate(expected):
            for name, suffix in (("speech_mix", "wav"), ("speech_ref1", "spk1")):
                whole, _ = soundfile.read(data / "train" / f"{utt_id}.{suffix}.flac", dtype="float32")
                np.testing.assert_array_equal(batch[name][i, :length], whole[start : start + length])
                assert not batch[name][i, length:].any()
                assert batch[f"{name}_lengths"][i] == toy.CHUNK  # a loss is not to depend on the companions
            assert batch[NUM_SAMPLES][i] == length


def test_short_utterances_are_padded_and_not_discarded(data):
    lengths = [n for _, batch in toy.loaders(data, "valid").build_iter(1) for n in batch[NUM_SAMPLES].tolist()]
    assert lengths.count(1000) == 1
    assert len(lengths) == sum(-(-n // toy.CHUNK) for n in toy.LENGTHS["valid"])


def noise_augmentation(utt_id, signals):
    mix = signals["speech_mix"]
    return {**signals, "speech_mix": mix + np.float32(0.01) * np.random.randn(len(mix)) * float(torch.rand(()))}


def test_workers_change_nothing(data):
    toy.assert_same_batches(
        list(toy.loaders(data, preprocess=noise_augmentation).build_iter(2)),
        list(toy.loaders(data, preprocess=noise_augmentation, num_workers=2).build_iter(2)),
    )


def test_augmentation_is_seeded_per_chunk_and_leaves_the_global_state_alone(data):
    factory = toy.loaders(data, preprocess=noise_augmentation)
    np.random.seed(5)
    torch.manual_seed(5)
    first = list(factory.build_iter(1))
    after = np.random.rand(), float(torch.rand(()))
    np.random.seed(6)
    torch.manual_seed(6)
    toy.assert_same_batches(first, list(factory.build_iter(1)))
    np.random.seed(5)
    torch.manual_seed(5)
    assert after == (np.random.rand(), float(torch.rand(())))
    assert not torch.equal(first[0][1]["speech_mix"], next(iter(toy.loaders(data).build_iter(1)))[1]["speech_mix"])


def test_ranks_share_a_global_batch_and_its_augmentation(data):
    whole = list(toy.loaders(data, preprocess=noise_augmentation).build_iter(3))
    parts = []
    for rank in range(2):
        factory = toy.loaders(data, preprocess=noise_augmentation)
        single = factory.make_batches
        factory.rank, factory.world_size = rank, 2
        factory.make_batches = lambda epoch, r=rank, f=single: [batch[2 * r : 2 * r + 2] for batch in f(epoch)]
        parts.append(list(factory.build_iter(3)))
    for step, (_, batch) in enumerate(whole):
        together = torch.cat([part[step][1]["speech_mix"] for part in parts])
        assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, batch["speech_mix"].tolist()))


def test_done_batches_are_left_out_and_not_read(data, monkeypatch):
    factory = toy.loaders(data, preprocess=noise_augmentation)
    rest = list(factory.build_iter(1))[7:]
    reads = []
    original = ParallelFiles.read
    monkeypatch.setattr(ParallelFiles, "read", lambda self, item: reads.append(item) or original(self, item))
    loader = factory.build_iter(1, start_batch=7)
    assert len(loader) == 2
    toy.assert_same_batches(list(loader), rest)
    assert len(reads) == 8


def test_only_the_segment_is_read(data, monkeypatch):
    frames = []
    original = soundfile.read
    monkeypatch.setattr(soundfile, "read", lambda *a, **k: frames.append(k["frames"]) or original(*a, **k))
    list(toy.loaders(data).build_iter(1))
    assert max(frames) == toy.CHUNK < max(toy.LENGTHS["train"])


def test_iterations_per_epoch_and_accumulation(data):
    assert len(toy.loaders(data, num_iters_per_epoch=4).build_iter(1)) == 4
    assert len(toy.loaders(data, accum_grad=2).build_iter(1)) == 8
    with pytest.raises(UserError, match="--accum_grad 20"):
        toy.loaders(data, accum_grad=20)


def test_archives_give_the_same_batches(data, tmp_path):
    """Also to workers, which share the descriptors of the process that they come from."""
    folder = tmp_path / "train"
    shutil.copytree(data / "train", folder)
    for scp in ("wav.scp", "spk1.scp"):
        lines = (line.split(maxsplit=1) for line in (folder / scp).read_text().splitlines())
        content = {utt_id: soundfile.read(path, dtype="int16") for utt_id, path in lines}
        ark = str(folder / f"{scp}.ark")
        kaldiio.save_ark(ark, content, scp=str(folder / scp), write_function="soundfile")
    files = list(toy.loaders(data).build_iter(1))
    for workers in (0, 2):
        toy.assert_same_batches(list(toy.loaders(tmp_path, num_workers=workers).build_iter(1)), files)
    os.truncate(folder / "wav.scp.ark", 1000)
    with pytest.raises(UserError, match=r"utterance train\d+: .*wav.scp.ark:\d+: "):
        list(toy.loaders(tmp_path).build_iter(1))


def test_channels_are_kept(tmp_path):
    data = toy.write_data(tmp_path / "data", channels=3)
    _, batch = next(iter(toy.loaders(data).build_iter(1)))
    assert batch["speech_mix"].shape == (4, toy.CHUNK, 3)
    assert batch["speech_ref1"].shape == (4, toy.CHUNK)


def broken(tmp_path, file, edit):
    data = toy.write_data(tmp_path / "data")
    path = data / "train" / file
    path.write_text(edit(path.read_text()))
    return data


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("wav.scp", "train03 ", "other03 ", "wav.scp lacks utterance train03"),
        ("wav.scp", "train03.wav.flac", "gone.flac", "train03: cannot read .*gone.flac"),
        ("wav.scp", "train03.wav.flac", "x.flac |", r"wav.scp: .*\(pipes\) .* utterance train03"),
        ("wav.scp", "train03 ", "train02 ", "train02 is listed twice"),
        ("speech_shape", "train03 3200", "train03 9000", "train03: .*train03.wav.flac"),
        ("speech_shape", "train03 3200", "train03 long", "speech_shape: 'long' is no length of train03"),
        ("speech_shape", "train03 3200", "train03", "speech_shape:4: expected"),
    ],
)
def test_errors_name_utterance_and_file(tmp_path, file, old, new, words):
    data = broken(tmp_path, file, lambda text: text.replace(old, new))
    with pytest.raises(UserError, match=words):
        list(toy.loaders(data).build_iter(1))


def test_another_rate_is_an_error(tmp_path):
    data = toy.write_data(tmp_path / "data")
    soundfile.write(data / "train" / "train04.wav.flac", np.zeros(4000), 8000)
    with pytest.raises(UserError, match="train04: .* has 8000 Hz, the other files 16000 Hz"):
        list(toy.loaders(data).build_iter(1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk_length": "300-500"}, "--chunk_length 300-500"),
        ({"chunk_shift_ratio": 1.5}, "--chunk_shift_ratio"),
        ({"batch_size": 400}, "--batch_size 400 is more than the 3. chunk"),
        ({"chunks_per_utterance": -1}, "--chunks_per_utterance"),
        ({"shape_files": []}, "--train_shape_file"),
        ({"shape_files": ["absent"]}, "cannot read absent"),
    ],
)
def test_bad_options_are_named(data, changes, words):
    with pytest.raises(UserError, match=words):
        toy.loaders(data, **changes)


@pytest.mark.parametrize("checked", [True, False])
def test_declared_rate_is_compared_if_the_task_says_so(data, monkeypatch, checked):
    monkeypatch.setattr(toy.ToyTask, "check_sample_rate", checked, raising=False)
    toy.loaders(data, sample_rate=16000)
    if not checked:
        toy.loaders(data, sample_rate=48000)
        return
    with pytest.raises(UserError, match="train data have 16000 Hz and --sample_rate is 48000: set --sample_rate 16000"):
        toy.loaders(data, sample_rate=48000)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_keep_their_message(data, workers):
    def fail(utt_id, signals):
        raise UserError("one line")

    with pytest.raises(UserError) as error:
        list(toy.loaders(data, preprocess=fail, num_workers=workers).build_iter(1))
    assert str(error.value) == "one line"


def test_used_up_shared_memory_is_told(data):
    """No file of a reader, and so no shared memory, may grow beyond a limit."""

    def allow_little(utt_id, signals):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        return signals

    with pytest.raises(UserError, match="cannot hand over its batch.*--num_workers 0.*--shm-size"):
        list(toy.loaders(data, preprocess=allow_little, num_workers=1).build_iter(1))


def test_shape_files_must_agree(data, tmp_path):
    first = data / "valid" / "speech_shape"
    second = tmp_path / "ref_shape"
    second.write_text(first.read_text().replace("valid01 3000", "valid01 2999"))
    with pytest.raises(UserError, match="disagree about utterance valid01"):
        read_lengths([str(first), str(second)])


def test_preprocessing_must_keep_the_length(data):
    with pytest.raises(UserError, match="changed the length of speech_mix"):
        list(toy.loaders(data, preprocess=lambda u, s: {**s, "speech_mix": s["speech_mix"][:-1]}).build_iter(1))


def test_an_unreadable_type_is_refused(data):
    with pytest.raises(UserError, match="kaldi_ark"):
        toy.loaders(data, data_path_and_name_and_type=[(str(data / "train" / "wav.scp"), "speech_mix", "kaldi_ark")])


def test_real_speech_segments(audio_dir, tmp_path):
    """A piece of a real FLAC or WAV file equals the same stretch of the whole."""
    path = sorted(p for p in audio_dir.rglob("*") if p.suffix in (".flac", ".wav"))[0]
    whole, _ = soundfile.read(path, dtype="float32")
    (tmp_path / "wav.scp").write_text(f"utt {path}\n")
    files = ParallelFiles({"speech_mix": str(tmp_path / "wav.scp")}, {"utt": len(whole)})
    start, length = len(whole) // 3, len(whole) // 2
    piece = files.read(SeededChunk(Chunk("utt", start, length), ()))["speech_mix"]
    np.testing.assert_array_equal(piece, whole[start : start + length])


WITH_WORKERS = """
import os, signal, torch
from torch.utils.data import DataLoader
from i2srf_kd.data.chunk_loader import start_worker
batches = iter(DataLoader(range(10 ** 9), num_workers=2, worker_init_fn=start_worker))
next(batches)
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        # Workers live through one SIGTERM, and Python's exit sends them no more than one.
        ("raise RuntimeError('the trainer failed')", 1, b"the trainer failed"),
        # They hold standard error as well, so it ends when the last of them has.
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, b""),
    ],
)
def test_workers_end_with_their_trainer(tmp_path, end, code, said):
    script = tmp_path / "trainer.py"
    script.write_text(WITH_WORKERS + end + "\n")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, timeout=200)
    assert done.returncode == code and said in done.stderr
    assert code == 1 or done.stderr == b""

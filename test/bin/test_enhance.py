"""The command that enhances files."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from export.trained import SMALL, make_experiment, make_network
from places import REPOSITORY
from plain_user import plain_user

from i2srf_kd.bin.enhance import main
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.inference.files import plan
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("models") / "exp", make_network())


@pytest.fixture(scope="module")
def model_for_two(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("models") / "exp2", make_network(num_mics=2))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def write(path, samples=4000, channels=1, fs=16000, subtype=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = noise(samples, channels, seed=seed)
    soundfile.write(path, wave[:, 0] if channels == 1 else wave, fs, subtype=subtype)
    return path


def run(model, *inputs, out, **options):
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return main([str(model), *map(str, inputs), "-o", str(out), *words])


@pytest.mark.parametrize(
    "name, fs, channels, subtype",
    [
        ("a.wav", 16000, 1, "PCM_16"),
        ("a.wav", 48000, 2, "PCM_24"),
        ("a.flac", 44100, 1, "PCM_16"),
        ("a.wav", 8000, 6, "FLOAT"),
        ("a.aiff", 22050, 1, "PCM_16"),
        ("a.ogg", 16000, 1, "VORBIS"),
    ],
)
def test_rate_container_and_sample_format_are_kept(model, tmp_path, name, fs, channels, subtype):
    source = write(tmp_path / name, fs // 2, channels, fs, subtype)
    assert run(model, source, out=tmp_path / "out") == 0
    before, after = soundfile.info(source), soundfile.info(tmp_path / "out" / name)
    for field in ("samplerate", "channels", "format", "subtype", "frames"):
        assert getattr(before, field) == getattr(after, field), field


def test_each_channel_on_its_own(model, tmp_path):
    source = write(tmp_path / "a.wav", 4000, 2, subtype="FLOAT")
    assert run(model, source, out=tmp_path / "out") == 0
    wave, _ = soundfile.read(source, dtype="float32")
    enhancer = load_enhancer(model)
    expected = np.stack([enhancer(wave[:, i], 16000) for i in range(2)], axis=1)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out" / "a.wav")[0], expected, atol=1e-6)
    assert run(model, source, out=tmp_path / "mono", keep_channels="false") == 0
    expected = enhancer(wave.mean(axis=1), 16000)
    np.testing.assert_allclose(soundfile.read(tmp_path / "mono" / "a.wav")[0], expected, atol=1e-6)


def test_several_microphones_give_one_channel(model_for_two, tmp_path, capsys):
    stereo = write(tmp_path / "a.wav", 4000, 2, subtype="FLOAT")
    mono = write(tmp_path / "b.wav")
    assert run(model_for_two, mono, stereo, out=tmp_path / "out") == 1
    assert "b.wav has 1 channels, the model needs 2 microphones" in capsys.readouterr().err
    wave, _ = soundfile.read(stereo, dtype="float32")
    found, _ = soundfile.read(tmp_path / "out" / "a.wav")
    np.testing.assert_allclose(found, load_enhancer(model_for_two)(wave, 16000), atol=1e-6)


def test_windows_are_the_networks_output_away_from_the_fades(model, tmp_path):
    source = write(tmp_path / "a.wav", 16000 * 3, subtype="FLOAT")
    assert run(model, source, out=tmp_path / "out", window_seconds=1.28, overlap_seconds=0.16) == 0
    wave, _ = soundfile.read(source, dtype="float32")
    found, _ = soundfile.read(tmp_path / "out" / "a.wav", dtype="float32")
    window, hop, overlap = 20480, 17920, 2560
    enhancer = load_enhancer(model)
    second = enhancer(wave[hop : hop + window], 16000)
    np.testing.assert_allclose(found[hop + overlap : 2 * hop - overlap], second[overlap : hop - overlap], atol=1e-6)
    last = enhancer(wave[-window:], 16000)
    np.testing.assert_allclose(found[hop + window :], last[-(len(wave) - hop - window) :], atol=1e-6)


def test_folders_keep_their_structure_and_outputs_are_not_inputs(model, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("a.wav", "x/a.wav", "x/y/b.FLAC"):
        write(folder / name)
    (folder / "notes.txt").write_text("no audio")
    (folder / ".hidden.wav").write_bytes(b"")
    out = folder / "enhanced"
    for _ in range(2):
        assert run(model, folder, out=out, overwrite="true") == 0
        assert "3 of 3 files" in capsys.readouterr().out
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert found == ["a.wav", "x/a.wav", "x/y/b.FLAC"]


def test_what_is_passed_over_in_a_folder_is_named(model, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("in/a.wav", "real/sub/deep.wav", "in/closed/c.wav"):
        write(tmp_path / name)
    (folder / "linked").symlink_to("../real")
    (folder / "x.m4a").write_bytes(b"")
    (folder / "closed").chmod(0)
    try:
        with plain_user():
            assert run(model, folder, out=tmp_path / "out") == 1
    finally:
        (folder / "closed").chmod(0o755)
    said = capsys.readouterr()
    assert "2 of 2 files" in said.out and (tmp_path / "out" / "linked" / "sub" / "deep.wav").is_file()
    assert f"{folder}/closed: cannot be read (Permission denied)" in said.err
    assert f"{folder}: 1 .m4a file(s), which cannot be read" in said.err


def test_a_link_into_a_closed_folder_and_a_dead_link_leave_the_others_alone(model, tmp_path, capsys):
    for name in ("in/a.wav", "closed/b.wav"):
        write(tmp_path / name)
    (tmp_path / "in" / "b.wav").symlink_to(tmp_path / "closed" / "b.wav")
    (tmp_path / "dead.wav").symlink_to("nowhere.wav")
    (tmp_path / "closed").chmod(0)
    try:
        with plain_user():
            inputs = [tmp_path / name for name in ("in", "dead.wav", "closed/b.wav")]
            assert run(model, *inputs, out=tmp_path / "out") == 1
    finally:
        (tmp_path / "closed").chmod(0o755)
    said = capsys.readouterr().err
    assert "in/b.wav: cannot be read (Permission denied)" in said and "dead.wav: a link to nothing" in said
    assert "closed/b.wav: cannot be read" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav"]


def test_equal_names_get_their_folders(tmp_path):
    first, second, third = (write(tmp_path / d / "a.wav") for d in ("one", "two/deep", "three"))
    out = tmp_path / "out"
    assert [job.target for job in plan([str(first)], out)] == [out / "a.wav"]
    jobs = plan([str(first), str(second.parent.parent), str(third), str(first)], out)
    assert [job.target for job in jobs] == [out / "one/a.wav", out / "two/deep/a.wav", out / "three/a.wav"]


def test_an_input_is_never_overwritten(model, tmp_path):
    source = write(tmp_path / "in" / "a.wav")
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "hard").mkdir()
    os.link(source, tmp_path / "hard" / "a.wav")
    for out in ("in", "link", "hard"):
        with pytest.raises(UserError, match=r"a\.wav is itself an input"):
            run(model, source, out=tmp_path / out, overwrite="true")
    assert source.read_bytes() == before


def test_existing_outputs_are_replaced_on_demand_only(model, tmp_path, capsys):
    source = write(tmp_path / "a.wav")
    out = tmp_path / "out"
    write(out / "a.wav", 10)
    before = (out / "a.wav").read_bytes()
    assert run(model, source, out=out) == 1
    assert "a.wav exists; give --overwrite true" in capsys.readouterr().err
    assert (out / "a.wav").read_bytes() == before
    assert run(model, source, out=out, overwrite="true") == 0
    assert soundfile.info(out / "a.wav").frames == 4000


def test_bad_files_are_reported_once_each_and_the_others_done(model, tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "good1.wav")
    write(folder / "good2.wav", 1)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "page.wav").write_text("<html>not found</html>")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    write(folder / "cut.wav")
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:2000])
    wave = noise(3000)
    wave[2000] = np.inf
    soundfile.write(folder / "inf.wav", wave, 16000, subtype="FLOAT")
    assert run(model, folder, out=tmp_path / "out") == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    for name, reason in (
        ("empty.wav", "empty file"),
        ("page.wav", "HTML"),
        ("none.wav", "no samples"),
        ("cut.wav", "truncated"),
        ("inf.wav", "sample 2000"),
    ):
        assert len([line for line in errors if name in line and reason in line]) == 1, name
    assert len(errors) == 5 and "2 of 7 files enhanced" in captured.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good1.wav", "good2.wav"]


def test_an_error_in_the_model_is_one_files_error(model, tmp_path, capsys, monkeypatch):
    from i2srf_kd.inference.enhancer import Enhancer

    def fail(self, wave, fs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Enhancer, "enhance_array", fail)
    assert run(model, write(tmp_path / "a.wav"), out=tmp_path / "out") == 1
    assert "a.wav: RuntimeError: out of memory" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_clipping_is_told(model, tmp_path, capsys, monkeypatch):
    from i2srf_kd.inference.enhancer import Enhancer

    monkeypatch.setattr(Enhancer, "enhance_array", lambda self, wave, fs: 100 * wave)
    assert run(model, write(tmp_path / "a.wav"), out=tmp_path / "out") == 0
    assert "samples beyond full scale were clipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        ({"window_seconds": 0}, "window_seconds 0"),
        ({"overlap_seconds": 9}, "overlap_seconds 9"),
        ({"num_threads": 0}, "--num_threads 0"),
        ({"model_file": "9epoch"}, "no 9epoch"),
    ],
)
def test_wrong_options(model, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        run(model, write(tmp_path / "a.wav"), out=tmp_path / "out", **options)


def test_wrong_paths(model, tmp_path):
    source = write(tmp_path / "a.wav")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="absent.wav: no such file"):
        run(model, tmp_path / "absent.wav", out=tmp_path / "out")
    with pytest.raises(UserError, match="no audio files"):
        run(model, tmp_path / "none", out=tmp_path / "out")
    with pytest.raises(UserError, match="is a file"):
        run(model, source, out=source)
    with pytest.raises(UserError, match="no such model"):
        run("--model", tmp_path / "nowhere", source, out=tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such file"):
        run(tmp_path / "nowhere", source, out=tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(model, tmp_path):
    with pytest.raises(UserError, match="torch sees 0 GPUs"):
        run(model, write(tmp_path / "a.wav"), out=tmp_path / "out", device="cuda")


def test_real_recording_in_another_format(model, audio_dir, tmp_path):
    noisy = sorted((audio_dir / "test" / "noisy").glob("*.wav"))[0]
    shutil.copy(noisy, tmp_path / "a b.wav")
    assert run(model, tmp_path / "a b.wav", out=tmp_path / "out") == 0
    expected = load_enhancer(model)(soundfile.read(noisy, dtype="float32")[0], soundfile.info(noisy).samplerate)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out" / "a b.wav")[0], expected, atol=2**-15)


@pytest.mark.slow
def test_half_an_hour_in_constant_memory(tmp_path, repository):
    """30 min of 16 kHz audio stay below 1.5 GB; enhanced in one piece they would take many times that."""
    from i2srf_kd.nets.presets import build_dpdcrn

    model = make_experiment(tmp_path / "exp", build_dpdcrn("dpdcrn_tiny"), separator_conf={"preset": "dpdcrn_tiny"})
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1, "PCM_16") as file:
        for seed in range(30):
            file.write(noise(16000 * 60, seed=seed))
    code = (
        "import sys; from i2srf_kd.bin.enhance import main; from i2srf_kd.system.memory import peak_resident_bytes; "
        "code = main(sys.argv[1:]); print(peak_resident_bytes() / 1e6); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "long.wav"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1500
    assert soundfile.info(tmp_path / "out" / "long.wav").frames == 16000 * 60 * 30


CAUSAL = {"causal": True, "attention_window": 12}


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return make_experiment(
        tmp_path_factory.mktemp("models") / "causal", make_network(**CAUSAL), separator_conf={**SMALL, **CAUSAL}
    )


@pytest.fixture(scope="module")
def causal_export(causal):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return export_bundle(causal, causal.parent / "export").path


def pipe_through(model, data, *options):
    """The command with ``data`` on standard input; returns what :func:`subprocess.run` does."""
    command = [sys.executable, "-m", "i2srf_kd.bin.enhance", str(model), "--stream", *options]
    return subprocess.run(command, input=data, capture_output=True, cwd=REPOSITORY)


def as_int16(wave):
    return np.clip(np.rint(wave.astype(np.float64) * 32768), -32768, 32767).astype("<i2")


def test_streamed_files_equal_those_in_one_piece(causal, tmp_path):
    stereo, mono = write(tmp_path / "a.wav", 30000, 2, subtype="FLOAT"), write(tmp_path / "b.wav", 700, subtype="FLOAT")
    # options may stand before the files
    assert main([str(causal), "--stream", str(stereo), str(mono), "-o", str(tmp_path / "stream")]) == 0
    assert run(causal, stereo, mono, out=tmp_path / "whole") == 0
    for name in ("a.wav", "b.wav"):
        found, expected = (soundfile.read(tmp_path / out / name)[0] for out in ("stream", "whole"))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_streamed_file_of_another_rate_is_named(causal, tmp_path, capsys):
    source = write(tmp_path / "a.wav", fs=44100)
    assert main([str(causal), "--stream", str(source), "-o", str(tmp_path / "out")]) == 1
    assert "model's 16000 Hz, not at 44100 Hz" in capsys.readouterr().err


def test_pipe(causal, causal_export):
    """Both runtimes, both formats; an end within a sample is told after what came before has been written."""
    wave = noise(5000)
    expected = as_int16(load_enhancer(causal)(as_int16(wave).astype(np.float32) / 32768, 16000)).astype(int)
    done = pipe_through(causal_export, as_int16(wave).tobytes())
    assert done.returncode == 0 and done.stderr == b""
    assert np.abs(np.frombuffer(done.stdout, "<i2") - expected).max() <= 1
    done = pipe_through(causal, wave.astype("<f4").tobytes() + b"ab", "--pcm_format", "f32le", "--runtime", "torch")
    assert done.returncode == 2 and b"error: the input ends within a sample (2 bytes" in done.stderr
    found = np.frombuffer(done.stdout, "<f4")
    np.testing.assert_allclose(found, load_enhancer(causal)(wave, 16000), rtol=0, atol=1e-5)


def test_pipe_gives_samples_before_the_input_ends_and_ends_with_its_reader(causal_export):
    command = [sys.executable, "-m", "i2srf_kd.bin.enhance", str(causal_export), "--stream"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, bufsize=0
    ) as process:
        process.stdin.write(bytes(2 * 512))
        assert len(process.stdout.read(2 * 256)) == 2 * 256  # while the input stays open
        process.stdout.close()
        with pytest.raises(BrokenPipeError):
            for _ in range(10_000):
                process.stdin.write(bytes(2 * 512))
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_what_cannot_stream_is_named(model, model_for_two, causal, tmp_path):
    with pytest.raises(UserError, match=r"not causal.*separator_conf \{causal: true\}"):
        main([str(model), "--stream", str(write(tmp_path / "a.wav")), "-o", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"has no model_stream\.onnx"):
        main([str(causal), "--stream", "--runtime", "onnx", str(tmp_path / "a.wav"), "-o", str(tmp_path / "out")])
    for arguments, words in (
        (["--stream", "-o", str(tmp_path)], "is for files"),
        ([], "give IN"),
        ([str(tmp_path / "a.wav")], "give -o OUT_DIR"),
        (["--stream", "--block_samples", "0"], "--block_samples 0"),
    ):
        with pytest.raises(UserError, match=words):
            main([str(causal), *arguments])

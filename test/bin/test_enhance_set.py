"""The command that enhances a data set."""

import json

import numpy as np
import pytest
import soundfile
from export.trained import make_experiment, make_network, save_weights
from waves import noise, write_table

from i2srf_kd.bin.enhance_set import main
from i2srf_kd.data.kaldi_dir import read_table
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.inference import data_set
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

LENGTHS = {"p1_001": 4000, "p1_002": 900, "p2_001": 6000, "p2_002": 2500, "p2_003": 3000}


@pytest.fixture
def model(tmp_path):
    return make_experiment(tmp_path / "exp", make_network())


@pytest.fixture
def data(tmp_path):
    waves = {utt: noise(length, seed=i, level=0.05) for i, (utt, length) in enumerate(LENGTHS.items())}
    return write_table(tmp_path / "data", "wav", waves, kind="flac").parent


@pytest.fixture
def enhanced_now(monkeypatch):
    """Utterances that are really enhanced, in order."""
    names = []
    original = data_set._enhance
    monkeypatch.setattr(data_set, "_enhance", lambda task: names.append(task[0]) or original(task))
    return names


def run(*words):
    return main([str(word) for word in words])


def test_one_call_enhances_whole_utterances(model, data, tmp_path, capsys):
    out = model / "enhanced_test"
    assert run(model, data, out) == 0
    table = read_table(out / "spk1.scp")
    assert table == read_table(out / "wav.scp") and list(table) == sorted(LENGTHS)
    enhancer = load_enhancer(model)
    for utt, path in table.items():
        wave, fs = soundfile.read(data / f"{utt}.wav.flac", dtype="float32")
        info = soundfile.info(path)
        assert (info.samplerate, info.subtype, info.format, info.channels) == (fs, "PCM_16", "WAV", 1)
        np.testing.assert_allclose(soundfile.read(path)[0], enhancer(wave, fs), atol=2**-15)
    summary = json.loads((out / "enhance.json").read_text())
    assert summary["utterances"] == 5 and summary["clipped_samples"] == 0
    assert summary["seconds"] == pytest.approx(sum(LENGTHS.values()) / 16000)
    assert summary["real_time_factor"] == pytest.approx(summary["compute_seconds"] / summary["seconds"])
    assert json.loads((model / "complexity.json").read_text())["parameters"] > 0
    assert "real-time factor" in capsys.readouterr().out


def test_shards_then_collect(model, data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"2 of 2 shards are not there: .*1-of-2\.json"):
        run(model, data, out, "--collect", 2)
    run(model, data, out, "--shard", "2/2")
    assert not (out / "spk1.scp").exists()
    with pytest.raises(UserError, match=r"1 of 2 shards are not there: .*1-of-2\.json"):
        run(model, data, out, "--collect", 2)
    run(model, data, out, "--shard", "1/2")
    run(model, data, out, "--collect", 2)
    parts = [json.loads((out / "shards" / f"{i}-of-2.json").read_text()) for i in (1, 2)]
    total = json.loads((out / "enhance.json").read_text())
    for name in ("utterances", "seconds", "compute_seconds"):
        assert total[name] == pytest.approx(parts[0][name] + parts[1][name])
    run(model, data, tmp_path / "whole")
    for utt in LENGTHS:
        assert (out / "wav" / f"{utt}.wav").read_bytes() == (tmp_path / "whole" / "wav" / f"{utt}.wav").read_bytes()


def test_more_shards_than_utterances(model, data, tmp_path):
    for i in range(1, 8):
        run(model, data, tmp_path / "out", "--shard", f"{i}/7")
    run(model, data, tmp_path / "out", "--collect", 7)
    assert len(read_table(tmp_path / "out" / "spk1.scp")) == 5


def test_goes_on_where_it_was(model, data, tmp_path, enhanced_now):
    out = tmp_path / "out"
    run(model, data, out, "--shard", "1/2")
    assert enhanced_now == ["p1_001", "p2_001", "p2_003"]
    (out / "wav" / "p2_001.wav").unlink()
    run(model, data, out)
    assert enhanced_now[3:] == ["p1_002", "p2_001", "p2_002"]
    run(model, data, out)
    assert len(enhanced_now) == 6
    run(model, data, out, "--overwrite")
    assert len(enhanced_now) == 11


def test_a_killed_run_loses_nothing_that_was_done(model, data, tmp_path, monkeypatch, enhanced_now):
    original = data_set.write_audio

    def dies_at_third(path, *rest):
        if len(enhanced_now) == 3:
            raise KeyboardInterrupt
        return original(path, *rest)

    monkeypatch.setattr(data_set, "write_audio", dies_at_third)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(model, data, out)
    journal = next((out / "shards").glob("journal.*"))
    journal.write_text(journal.read_text() + '\n{"utt": "p2_0')  # cut while writing
    monkeypatch.setattr(data_set, "write_audio", original)
    run(model, data, out)
    assert enhanced_now[3:] == ["p2_001", "p2_002", "p2_003"]
    assert json.loads((out / "enhance.json").read_text())["utterances"] == 5


def test_other_weights_windows_or_files_are_not_taken_for_done(model, data, tmp_path, enhanced_now):
    out = tmp_path / "out"
    run(model, data, out)
    first = (out / "wav" / "p1_001.wav").read_bytes()
    save_weights(make_network(seed=1), model / "latest.pth")
    with pytest.raises(UserError, match="another model or with other options"):
        run(model, data, out, "--collect", 1)
    run(model, data, out)
    assert len(enhanced_now) == 10 and (out / "wav" / "p1_001.wav").read_bytes() != first
    save_weights(make_network(), model / "latest.pth")  # back again: the audio is that of the other weights
    run(model, data, out)
    assert len(enhanced_now) == 15 and (out / "wav" / "p1_001.wav").read_bytes() == first
    soundfile.write(data / "p2_002.wav.flac", np.zeros(777), 16000)
    run(model, data, out)
    assert enhanced_now[15:] == ["p2_002"]
    run(model, data, out, "--max_window_seconds", "0.2")
    assert len(enhanced_now) == 21


def test_long_utterances_are_cut_into_windows(model, data, tmp_path):
    run(model, data, tmp_path / "whole")
    run(model, data, tmp_path / "cut", "--max_window_seconds", "0.2")
    same = {
        utt: (tmp_path / "whole/wav" / f"{utt}.wav").read_bytes() == (tmp_path / "cut/wav" / f"{utt}.wav").read_bytes()
        for utt in LENGTHS
    }
    assert same == {utt: length <= 3200 for utt, length in LENGTHS.items()}


def test_nothing_is_scaled_and_clipping_is_counted(model, data, tmp_path, monkeypatch, capsys):
    class Louder:
        num_mics = 1

        def __call__(self, wave, fs, *_):
            return 10 * wave

    monkeypatch.setattr("i2srf_kd.inference.loading.load_enhancer", lambda *_: Louder())
    monkeypatch.setattr("i2srf_kd.inference.loading.write_complexity", lambda *_: None)
    run(model, data, tmp_path / "out")
    wave, _ = soundfile.read(data / "p1_002.wav.flac")
    expected = np.clip(10 * wave, -1, 1 - 2**-15)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out/wav/p1_002.wav")[0], expected, atol=1e-9)
    summary = json.loads((tmp_path / "out" / "enhance.json").read_text())
    assert summary["clipped_utterances"] == 5 and summary["clipped_samples"] > 100
    assert "were clipped" in capsys.readouterr().out


def test_weights_by_name_and_exported_folder(model, data, tmp_path):
    save_weights(make_network(seed=3), model / "2epoch.pth")
    run(model / "2epoch.pth", data, tmp_path / "a")
    run(model, data, tmp_path / "b", "--model_file", model / "2epoch.pth")
    export_bundle(model / "2epoch.pth", tmp_path / "bundle", onnx=False)
    run(tmp_path / "bundle", data, tmp_path / "c")
    contents = [(tmp_path / name / "wav" / "p1_001.wav").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


def test_bad_utterance_is_named_and_the_shard_stays_open(model, data, tmp_path):
    run(model, data, tmp_path / "out")
    (data / "p2_001.wav.flac").write_text("<html>")
    with pytest.raises(UserError, match=r"utterance p2_001: .*p2_001\.wav\.flac: an HTML"):
        run(model, data, tmp_path / "out", "--shard", "1/1")
    assert not (tmp_path / "out" / "shards" / "1-of-1.json").exists()
    assert not (tmp_path / "out" / "spk1.scp").exists()
    (data / "p2_001.wav.flac").unlink()
    with pytest.raises(UserError, match=r"p2_001: .*cannot be read"):
        run(model, data, tmp_path / "out")


def test_damaged_records_are_made_again(model, data, tmp_path, enhanced_now):
    run(model, data, tmp_path / "out")
    (journal,) = (tmp_path / "out" / "shards").glob("journal.*")
    journal.write_bytes(b"\xff{" + journal.read_bytes()[1:] + b'\n[1]\n{"utt": "p1_001"}\n')
    enhanced_now.clear()
    assert run(model, data, tmp_path / "out") == 0
    assert enhanced_now == ["p1_001"]
    for content in (b"{", b"[]", b"\xff", b'{"records": [{}]}'):
        (tmp_path / "out" / "shards" / "1-of-1.json").write_bytes(content)
        with pytest.raises(UserError, match="1-of-1.json is damaged: run that shard again"):
            run(model, data, tmp_path / "out", "--collect", "1")


def test_bad_utterances_are_named_together_after_the_others_are_done(model, data, tmp_path, enhanced_now, caplog):
    for utt in ("p1_001", "p2_001"):
        (data / f"{utt}.wav.flac").write_bytes(b"")
    soundfile.write(data / "p2_003.wav.flac", np.stack([noise(3000), noise(3000)], 1), 16000)
    with pytest.raises(UserError, match="2 of 5 utterances cannot be enhanced:\n.*p1_001: .*\n.*p2_001: .*empty"):
        run(model, data, tmp_path / "out")
    assert len(list((tmp_path / "out" / "wav").iterdir())) == 3 and not (tmp_path / "out" / "wav.scp").exists()
    assert "more channels than the model has microphones the first are enhanced: utterance p2_003" in caplog.text
    for utt in ("p1_001", "p2_001"):
        soundfile.write(data / f"{utt}.wav.flac", noise(3000), 16000)
    enhanced_now.clear()
    assert run(model, data, tmp_path / "out") == 0
    assert enhanced_now == ["p1_001", "p2_001"]


@pytest.mark.parametrize(
    "line, words",
    [("a cat x.wav |\n", "commands"), ("a/b x.wav\n", "names of files"), ("", "no utterances")],
)
def test_bad_tables(model, tmp_path, line, words):
    (tmp_path / "wav.scp").write_text(line)
    with pytest.raises(UserError, match=words):
        run(model, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--nj", "0"], "--nj 0"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--shard", "1/2", "--collect", "2"], "two separate calls"),
        (["--max_window_seconds", "0"], "must be positive"),
        (["--device", "nonsense"], "no such device"),
    ],
)
def test_wrong_options(model, data, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        run(model, data, tmp_path / "out", *words)


@pytest.mark.slow
def test_several_processes_give_the_same(model, data, tmp_path):
    run(model, data, tmp_path / "one")
    run(model, data, tmp_path / "two", "--nj", "2")
    for utt in LENGTHS:
        assert (tmp_path / "one/wav" / f"{utt}.wav").read_bytes() == (tmp_path / "two/wav" / f"{utt}.wav").read_bytes()

"""The scoring command: shards, processes, summaries and its messages."""

import csv
import json

import numpy as np
import pytest
import soundfile
from waves import noise, write_table

from i2srf_kd.audio.resample import resample
from i2srf_kd.bin import results
from i2srf_kd.bin.score import main
from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.metrics.utterance import DEFAULT, score_utterance
from i2srf_kd.system.errors import UserError

FAST = ["--metrics", "ssnr", "si_sdr"]


@pytest.fixture
def data(tmp_path):
    """Five pairs of noise in a Kaldi folder; the folder's name holds a space."""
    clean = {f"utt{i}": noise(8000 + 100 * i, seed=i) for i in range(5)}
    noisy = {utt: wave + noise(len(wave), seed=len(wave), level=0.05) for utt, wave in clean.items()}
    for table, waves in (("spk1", clean), ("wav", noisy)):
        write_table(tmp_path / "some data", table, waves)
    return tmp_path / "some data"


def _score(data, out, *options, scp="wav.scp"):
    return main([str(data), str(data / scp), str(out), *options])


def _edit(data, scp, change):
    path = data / scp
    path.write_text(change(path.read_text()))


def test_scores_and_summary(data, tmp_path, capsys):
    assert _score(data, tmp_path / "out", *FAST) == 0
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["utt"] for row in rows] == [f"utt{i}" for i in range(5)]
    for index, row in enumerate(rows):
        clean, noisy = (soundfile.read(data / f"utt{index}.{kind}.wav")[0] for kind in ("spk1", "wav"))
        expected = score_utterance(clean, noisy, 16000, ("ssnr", "si_sdr"))
        assert {name: float(row[name]) for name in expected} == expected
        assert float(row["seconds"]) == len(clean) / 16000
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    interval = CrossedBootstrap(1, 5).mean([[float(row["ssnr"]) for row in rows]])
    assert summary["metrics"]["ssnr"] == {**interval._asdict(), "seed_std": None}
    assert summary["utterances"] == 5 and summary["seconds"] == pytest.approx(41000 / 16000)
    assert "5 utterances" in capsys.readouterr().out


def test_metrics_may_come_before_the_folders(data, tmp_path):
    words = [str(data), str(data / "wav.scp"), str(tmp_path / "out")]
    assert main([*FAST, *words]) == main([words[0], *FAST, *words[1:]]) == 0
    assert set(json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]) == {"ssnr", "si_sdr"}
    with pytest.raises(UserError, match="--metrics sisdr: choose among .*si_sdr"):
        main([*words, "--metrics", "sisdr"])


def test_shards_equal_the_whole(data, tmp_path):
    _score(data, tmp_path / "whole", *FAST)
    for index in (3, 1, 2):
        _score(data, tmp_path / "parts", *FAST, "--shard", f"{index}/3")
    assert not (tmp_path / "parts" / "scores.csv").exists()
    _score(data, tmp_path / "parts", *FAST, "--collect", "3")
    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_processes_equal_one(data, tmp_path):
    _score(data, tmp_path / "one", *FAST)
    _score(data, tmp_path / "two", *FAST, "--nj", "2")
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (tmp_path / "two" / "scores.csv").read_bytes()


def test_undefined_scores_are_counted(data, tmp_path):
    soundfile.write(data / "utt2.wav.wav", np.zeros(8200), 16000)
    _score(data, tmp_path / "out", "--metrics", "si_sdr")
    metric = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]["si_sdr"]
    assert (metric["n"], metric["n_nan"]) == (4, 1) and metric["mean"] is not None


def test_summary_is_strict_json_without_any_defined_score(data, tmp_path):
    for index in range(5):
        soundfile.write(data / f"utt{index}.wav.wav", np.zeros(8000 + 100 * index), 16000)
    _score(data, tmp_path / "out", "--metrics", "si_sdr")
    text = (tmp_path / "out" / "summary.json").read_text()
    assert "NaN" not in text and json.loads(text)["metrics"]["si_sdr"]["mean"] is None


def test_reference_channel_of_a_microphone_array(data, tmp_path):
    _score(data, tmp_path / "mono", *FAST)
    for index in range(5):
        wave, _ = soundfile.read(data / f"utt{index}.wav.wav")
        soundfile.write(data / f"utt{index}.wav.wav", np.stack([0 * wave, 0 * wave, wave, 0 * wave], 1), 16000)
    _score(data, tmp_path / "array", *FAST, "--ref_channel", "2")
    assert (tmp_path / "mono" / "scores.csv").read_bytes() == (tmp_path / "array" / "scores.csv").read_bytes()
    with pytest.raises(UserError, match="utterance utt0: .*utt0.wav.wav has 4 channels, so --ref_channel 4"):
        _score(data, tmp_path / "array", *FAST, "--ref_channel", "4")


def _last_lost(text):
    return "".join(text.splitlines(True)[:-1])


@pytest.mark.parametrize(
    "scp, change, message",
    [
        ("wav.scp", _last_lost, "lacks 1 of .*spk1.scp: utterance utt4"),
        ("spk1.scp", _last_lost, "has 1 that are not in .*: utterance utt4"),
        ("wav.scp", lambda text: "utt0 cat x.wav |\n", "commands .*utterance utt0"),
        ("wav.scp", lambda text: text + "utt5\n", "wav.scp:6"),
        ("wav.scp", lambda text: "", "no utterances"),
        ("wav.scp", lambda text: text.replace("utt3.wav", "gone3.wav"), "utterance utt3: .*gone3.wav"),
    ],
)
def test_wrong_lists_are_named(data, tmp_path, scp, change, message):
    _edit(data, scp, change)
    with pytest.raises(UserError, match=message):
        _score(data, tmp_path / "out", *FAST)


def test_wrong_audio_is_named(data, tmp_path):
    soundfile.write(data / "utt1.wav.wav", np.ones(5000), 16000)
    with pytest.raises(UserError, match="utterance utt1: reference has 8100 samples but estimate has 5000"):
        _score(data, tmp_path / "out", *FAST)
    soundfile.write(data / "utt1.wav.wav", np.ones(8100), 8000)
    with pytest.raises(UserError, match="utterance utt1: .* has 16000 Hz but .*utt1.wav.wav has 8000 Hz"):
        _score(data, tmp_path / "out", *FAST)
    soundfile.write(data / "utt1.wav.wav", np.full(8100, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="utterance utt1: .*utt1.wav.wav"):
        _score(data, tmp_path / "out", *FAST, "--nj", "2")


def test_what_cannot_be_scored_is_named_after_the_others_are_scored(data, tmp_path, caplog):
    (data / "utt0.spk1.wav").write_bytes(b"")
    soundfile.write(data / "utt3.wav.wav", np.ones(5000), 16000)
    with pytest.raises(UserError, match="2 of 5 utterances cannot be scored:\n.*utt0.*empty.*\n.*utt3.*has 5000"):
        _score(data, tmp_path / "out", *FAST)
    assert [line.split(",")[0] for line in (tmp_path / "out" / "scores.csv").read_text().splitlines()] == [
        *("utt", "utt1", "utt2", "utt4")
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["utterances"] == 3
    for index in range(5):
        (data / f"utt{index}.spk1.wav").write_bytes(b"")
    with pytest.raises(UserError, match="no reference can be read"):
        _score(data, tmp_path / "out")


def test_collect_refuses_incomplete_and_foreign_shards(data, tmp_path):
    out = tmp_path / "out"
    _score(data, out, *FAST, "--shard", "1/2")
    with pytest.raises(UserError, match=r"1 of 2 shards are not there, such as .*2-of-2.csv"):
        _score(data, out, *FAST, "--collect", "2")
    _score(data, out, "--metrics", "si_sdr", "--shard", "2/2")
    with pytest.raises(UserError, match="utterance utt1 was scored with other metrics"):
        _score(data, out, *FAST, "--collect", "2")
    shards = out / "shards"
    (shards / "2-of-2.csv").write_bytes((shards / "1-of-2.csv").read_bytes())
    with pytest.raises(UserError, match="do not hold each utterance once"):
        _score(data, out, *FAST, "--collect", "2")


def test_options_can_be_checked_for_a_rate_before_there_is_audio(capsys):
    words = ["-", "-", "-", "--metrics", "pesq_wb", "stoi", "--check_only"]
    assert main([*words, "16000"]) == 0
    with pytest.raises(UserError, match="--metrics pesq_wb: not defined for audio at 8000 Hz, which has pesq_nb, ssnr"):
        main([*words, "8000"])
    with pytest.raises(SystemExit):
        main(["-", "-", "-", "--check_only", "16000", "--nope"])


def test_failed_shard_leaves_no_old_one(data, tmp_path):
    _score(data, tmp_path / "out", *FAST, "--shard", "1/1")
    soundfile.write(data / "utt1.wav.wav", np.ones(5000), 16000)
    with pytest.raises(UserError):
        _score(data, tmp_path / "out", *FAST, "--shard", "1/1")
    assert not (tmp_path / "out" / "shards" / "1-of-1.csv").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--shard", "3/2"], "--shard 3/2"),
        (["--shard", "1/2", "--collect", "2"], "two separate calls"),
        (["--nj", "0"], "--nj 0"),
        (["--ref_channel", "-1"], "counted from 0"),
        (["--dnsmos_model", "absent.onnx"], "absent.onnx: no such file"),
    ],
)
def test_wrong_options_are_named(data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _score(data, tmp_path / "out", *options)


@pytest.mark.parametrize(
    "fs, column, note",
    [
        (8000, "NB-PESQ", "NB-PESQ: audio at 8000 Hz has no WB-PESQ"),
        (48000, "WB-PESQ", "copies of the audio (48000 Hz) at a lower rate are scored by WB-PESQ (16000 Hz), CSIG"),
    ],
)
def test_other_rates_are_scored_by_default(audio_dir, tmp_path, fs, column, note):
    """Every score that exists at the rate is in the table, which says what was resampled."""
    for scp, kind in (("spk1", "clean"), ("wav", "noisy")):
        wave, rate = soundfile.read(audio_dir / "test" / kind / "p232_170.wav")
        soundfile.write(tmp_path / f"{kind}.wav", resample(wave, rate, fs), fs)
        (tmp_path / f"{scp}.scp").write_text(f"p232_170 {tmp_path / kind}.wav\n")
    assert _score(tmp_path, tmp_path / "scored") == 0
    results.main(["--out", str(tmp_path / "RESULTS.md"), "--system", f"noisy={tmp_path / 'scored'}"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert note in text and f"| system | {column} ↑ |" in text and "undefined" not in text


def test_an_undefined_score_is_named_and_counted(data, tmp_path, caplog):
    soundfile.write(data / "utt1.wav.wav", np.zeros(8100), 16000)
    _score(data, tmp_path / "out", *FAST)
    assert "utterance utt1: si_sdr undefined" in caplog.text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["si_sdr"]["n_nan"] == 1


def test_real_pairs_with_all_metrics(audio_dir, tmp_path):
    names = [path.stem for path in sorted((audio_dir / "test" / "clean").glob("*.wav"))][11:17]
    for scp, kind in (("spk1.scp", "clean"), ("wav.scp", "noisy")):
        lines = [f"{name} {audio_dir / 'test' / kind / name}.wav\n" for name in names]
        (tmp_path / scp).write_text("".join(lines))
    main([str(tmp_path), str(tmp_path / "wav.scp"), str(tmp_path / "noisy")])
    main([str(tmp_path), str(tmp_path / "spk1.scp"), str(tmp_path / "clean")])
    noisy, clean = (
        json.loads((tmp_path / kind / "summary.json").read_text())["metrics"] for kind in ("noisy", "clean")
    )
    assert tuple(noisy) == DEFAULT
    for name in DEFAULT:
        assert noisy[name]["n"] == len(names) == 6 and noisy[name]["mean"] < clean[name]["mean"]

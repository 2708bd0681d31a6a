"""The scoring command with a recogniser, without its packages, and what the result table says of either."""

import json
import math

import numpy as np
import pytest
import soundfile
from metrics.recogniser import FRAME, save_model, speak

from i2srf_kd.bin import results, score
from i2srf_kd.metrics import asr
from i2srf_kd.results.scores import read_csv
from i2srf_kd.system.errors import UserError

FRAMES = 100  # of each letter: 0.05 s
# Clean speech, estimate, WER by hand. As many letters on both sides: the files are equally long.
UTTERANCES = {
    "all_right": ("AB CA BC AB C", "AB CA BC AB C", 0.0),
    "all_wrong": ("ABC_ABC_ABC_A", "B C A B C A B", 1.0),  # seven words for one
    "nothing_said": ("", "AB CA BC AB C", math.nan),
    "one_more": ("AB CABC AB CA", "AB CA C AB CA", 2 / 4),  # one replaced, one inserted
    "one_wrong": ("AB CA BC AB C", "AB CC BC AB C", 1 / 5),
}


@pytest.fixture
def data(tmp_path):
    """A data folder of clean speech, and estimates in wav.scp."""
    random = np.random.default_rng(0)
    lines = {"spk1.scp": [], "wav.scp": []}
    for utt, texts in UTTERANCES.items():
        for scp, text in zip(lines, texts, strict=False):
            wave = speak(text, FRAMES) if text else np.zeros(13 * FRAMES * FRAME)
            wave = wave * np.repeat(random.uniform(0.5, 1, 13), len(wave) // 13)  # STOI needs an envelope
            path = tmp_path / f"{utt}.{scp[:3]}.wav"
            soundfile.write(path, wave, 16000)
            lines[scp].append(f"{utt} {path}\n")
    for scp, content in lines.items():
        (tmp_path / scp).write_text("".join(content))
    return tmp_path


def run(data, name, *options):
    arguments = [str(data), str(data / "wav.scp"), str(data / name), "--metrics", "stoi", "si_sdr", *options]
    assert score.main(arguments) == 0


def table(data, name):
    run_results = ["--out", str(data / "RESULTS.md"), "--system", f"noisy={data / name}"]
    assert results.main(run_results) == 0
    return (data / "RESULTS.md").read_text()


def test_without_the_packages_the_rest_is_scored_and_the_table_says_so(data, monkeypatch, caplog):
    monkeypatch.setattr(asr, "missing_packages", lambda: ["transformers"])
    run(data, "scored", "--asr_model", "some/model")
    run(data, "plain")
    assert (data / "scored" / "scores.csv").read_bytes() == (data / "plain" / "scores.csv").read_bytes()
    assert "some/model is not used: transformers not installed" in caplog.text
    assert "WER and the challenge score are not in the table: transformers not installed" in table(data, "scored")
    assert "WER" not in table(data, "plain")


@pytest.mark.parametrize(
    "options, word",
    [
        (["--asr_model", "x", "--metrics", "si_sdr"], "add stoi to --metrics"),
        (["--asr_model", "x", "--asr_batch_size", "0"], "--asr_batch_size 0"),
    ],
)
def test_wrong_options_are_named(data, options, word):
    with pytest.raises(UserError, match=word):
        run(data, "scored", *options)


@pytest.mark.slow
def test_scores_equal_values_by_hand_in_one_run_and_in_shards(data):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install i2srf_kd[asr]")
    model = str(save_model(data / "model"))
    run(data, "scored", "--asr_model", model)
    rows = {row["utt"]: row for row in read_csv(data / "scored" / "scores.csv")}
    for utt, (_, _, wer) in UTTERANCES.items():
        expected = (min(max(rows[utt]["stoi"], 0), 1) + 1 - wer) / 2
        assert rows[utt]["wer"] == pytest.approx(wer, nan_ok=True), utt
        assert rows[utt]["challenge"] == pytest.approx(expected, nan_ok=True), utt
    assert rows["all_right"]["stoi"] > rows["all_wrong"]["stoi"]
    for shard in ("1/2", "2/2"):
        run(data, "sharded", "--asr_model", model, "--shard", shard, "--asr_batch_size", "1")
    run(data, "sharded", "--asr_model", model, "--collect", "2")
    assert (data / "sharded" / "scores.csv").read_bytes() == (data / "scored" / "scores.csv").read_bytes()
    summary = json.loads((data / "scored" / "summary.json").read_text())
    assert summary["asr_model"] == model
    assert summary["metrics"]["wer"]["mean"] == pytest.approx((0 + 0.2 + 0.5 + 1) / 4)
    assert summary["metrics"]["wer"]["n"] == 4 and summary["metrics"]["wer"]["n_nan"] == 1
    text = table(data, "scored")
    assert f"WER: `{model}`, greedy" in text and "hears nothing are skipped (1)" in text
    assert "| WER [%] ↓ | challenge score ↑ |" in text and "42.50 [" in text
    run(data, "plain")
    with pytest.raises(UserError, match="scored with another asr_model than noisy"):
        results.main(["--out", str(data / "R.md"), "--system", f"noisy={data}/scored", "--system", f"x={data}/plain"])

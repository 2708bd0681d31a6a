"""The report of a corpus, against figures that are known beforehand."""

import json

import numpy as np
import pytest
import soundfile

from i2srf_kd.data.corpus_report import measure_pair, write_statistics
from i2srf_kd.data.kaldi_dir import DataDir, read_table
from i2srf_kd.system.errors import UserError

FS = 16000


def write_set(dump, name, pairs, fs=FS, speaker="s"):
    data = DataDir({}, {}, {})
    for utt_id, (noisy, clean) in pairs.items():
        for kind, table, wave in (("noisy", data.wav, noisy), ("clean", data.spk1, clean)):
            path = dump / name / "audio" / kind / f"{utt_id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, fs, subtype="FLOAT")
            table[utt_id] = str(path)
        data.utt2spk[utt_id] = f"{speaker}{utt_id[-1]}"
    data.write(dump / name)


def speech(seed, seconds=1.0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * FS)).astype(np.float32)


@pytest.fixture
def dump(tmp_path):
    dump = tmp_path / "dump ü"
    for number, name in enumerate(("train", "test")):
        clean = {f"u{i}": speech(10 * number + i, 1.0 + i) for i in range(3)}
        pairs = {u: (c + 0.1 * np.sqrt(np.mean(c**2)) * np.sign(speech(99, len(c) / FS)), c) for u, c in clean.items()}
        write_set(dump, name, pairs, speaker=name)
    return dump


def test_figures_are_right(dump, tmp_path):
    report = write_statistics(dump, ["train", "test"], tmp_path / "stats")
    train = report["sets"]["train"]
    assert (train["utterances"], train["speakers"], train["sampling_rates"], train["channels"]) == (3, 3, [FS], [1])
    assert train["hours"] == pytest.approx(6 / 3600, abs=1e-4)
    assert (train["seconds"]["min"], train["seconds"]["mean"], train["seconds"]["max"]) == (1.0, 2.0, 3.0)
    assert train["snr_db"]["min"] == train["snr_db"]["max"] == pytest.approx(20.0, abs=0.01)
    assert train["clipped_utterances"] == 0 and train["silence_share"] == 0 and report["remarks"] == []
    assert report == json.loads((tmp_path / "stats" / "corpus_report.json").read_text())
    markdown = (tmp_path / "stats" / "corpus_report.md").read_text()
    assert "| utterances | 3 | 3 |" in markdown and "20.0 (20.0 to 20.0)" in markdown
    assert (tmp_path / "stats" / "corpus_report.png").read_bytes().startswith(b"\x89PNG")
    shapes = read_table(tmp_path / "stats" / "train" / "speech_shape")
    assert shapes == {"u0": "16000", "u1": "32000", "u2": "48000"}
    rows = (tmp_path / "stats" / "train" / "utterances.tsv").read_text().splitlines()
    assert rows[0].split("\t")[:3] == ["utt_id", "fs", "samples"] and len(rows) == 4


def test_processes_do_not_change_the_report(dump, tmp_path):
    one = write_statistics(dump, ["train", "test"], tmp_path / "one")
    assert write_statistics(dump, ["train", "test"], tmp_path / "two", nj=2) == one


def test_levels_clipping_and_silence(tmp_path):
    clean = np.zeros(FS)
    clean[: FS // 4] = 0.5
    noisy = clean.copy()
    noisy[-1600:] = -1.0
    soundfile.write(tmp_path / "n.wav", noisy, FS, subtype="PCM_16")
    soundfile.write(tmp_path / "c.wav", clean, FS, subtype="PCM_16")
    measured = measure_pair(("u", str(tmp_path / "n.wav"), str(tmp_path / "c.wav")))
    assert measured.clipped == pytest.approx(0.1) and measured.silence == pytest.approx(0.75, abs=0.02)
    assert measured.peak == 0.0
    assert measured.rms == pytest.approx(10 * np.log10(0.25 * 0.25 + 0.1), abs=1e-3)
    assert measured.snr == pytest.approx(10 * np.log10(0.0625 / 0.1), abs=1e-3)


def test_several_channels(tmp_path):
    write_set(tmp_path, "train", {"u0": (np.stack([speech(0)] * 4, axis=1), speech(0))})
    report = write_statistics(tmp_path, ["train"], tmp_path / "stats")
    assert (tmp_path / "stats" / "train" / "speech_shape").read_text() == "u0 16000,4\n"
    assert report["sets"]["train"]["snr_db"] is None and "| - |" in (tmp_path / "stats/corpus_report.md").read_text()


def test_remarks_tell_of_leaks(tmp_path):
    write_set(tmp_path, "train", {"u0": (speech(0) + 0.1, speech(0)), "u1": (speech(1), speech(1))})
    write_set(tmp_path, "test", {"v0": (speech(0) + 0.2, speech(0))}, fs=8000)
    (tmp_path / "test" / "dropped.tsv").write_text("v7\tsilent mixture\n")
    report = write_statistics(tmp_path, ["train", "test"], tmp_path / "stats")
    remarks = "\n".join(report["remarks"])
    assert "v0 of test is u0 of train" in remarks
    assert "train and test share 1 speakers, such as s0" in remarks
    assert "sampling rates differ: 8000, 16000" in remarks
    assert "train: mixture and reference are the same in utterance u1" in remarks
    assert report["sets"]["test"]["dropped_in_formatting"] == 1


def test_bad_files_are_named_together(dump, tmp_path):
    data = DataDir.read(dump / "train")
    with open(data.wav["u0"], "r+b") as file:
        file.truncate(1000)
    soundfile.write(data.spk1["u1"], speech(1)[:-5], FS)
    with pytest.raises(UserError) as error:
        write_statistics(dump, ["train"], tmp_path / "stats")
    assert "2 of 3 utterances are bad" in str(error.value)
    assert "u0.wav: truncated" in str(error.value) and "15995" in str(error.value)
    with pytest.raises(UserError, match="none: no such data folder"):
        write_statistics(dump, ["none"], tmp_path / "stats")
    with pytest.raises(UserError, match="named twice"):
        write_statistics(dump, ["train", "train"], tmp_path / "stats")


@pytest.mark.parametrize("stereo_reference", [False, True])
def test_utterances_with_another_number_of_channels_are_named(tmp_path, stereo_reference):
    stereo = np.stack([speech(0)] * 2, axis=1)
    pairs = {f"u{i}": (speech(i), speech(10 + i)) for i in range(3)}
    pairs["u1"] = (stereo, stereo if stereo_reference else speech(0))
    write_set(tmp_path, "train", pairs)
    with pytest.raises(UserError, match=r"1 of 3 .*mixture 1, reference 1(.|\n)*u1: mixture 2, reference"):
        write_statistics(tmp_path, ["train"], tmp_path / "stats")
    assert not (tmp_path / "stats").exists()

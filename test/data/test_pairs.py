"""Matching mixtures and references by name."""

import os
import unicodedata

import numpy as np
import pytest
import soundfile

from i2srf_kd.data.pairs import check_pairs, find_pairs
from i2srf_kd.system.errors import UserError


def write(path, n_samples=100, fs=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), np.zeros(n_samples), fs, format="WAV")


def test_pairs_and_lonely_files(tmp_path):
    for name in ("a", "b_ü"):
        write(tmp_path / "noisy" / f"{name}.wav")
        write(tmp_path / "clean" / f"{name}.wav")
    (tmp_path / "noisy" / "c.WAV").write_bytes((tmp_path / "noisy" / "a.wav").read_bytes())
    write(tmp_path / "clean" / "d.wav")
    (tmp_path / "noisy" / "._a.wav").write_bytes(b"hidden")
    (tmp_path / "noisy" / "readme.txt").write_text("text")
    pairs, problems = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert list(pairs) == ["a", "b_ü"] and pairs["a"].clean == tmp_path / "clean" / "a.wav"
    assert len(problems) == 2
    assert "c.WAV: no clean counterpart" in problems[0] and "d.wav: no noisy counterpart" in problems[1]
    assert check_pairs(pairs) == []


def test_files_in_subfolders_are_found_and_what_is_passed_over_is_described(tmp_path):
    for folder in ("noisy", "clean"):
        write(tmp_path / folder / "p1" / "a.wav")
        write(tmp_path / folder / "b c.wav")
        write(tmp_path / folder / os.fsdecode(b"caf\xe9.wav"))
        write(tmp_path / folder / "e.wav")
    (tmp_path / "noisy" / "f.flac").write_bytes(b"")
    (tmp_path / "clean" / "e.wav").unlink()
    (tmp_path / "clean" / "e.wav").symlink_to("nowhere.wav")
    pairs, problems = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert pairs["a"].noisy == tmp_path / "noisy" / "p1" / "a.wav" and "e" not in pairs
    assert [problem[len(str(tmp_path)) + 1 :] for problem in problems] == [
        "noisy: 1 .flac file(s), which are passed over: convert them",
        "clean/e.wav: a link to nothing",
        "noisy/b c.wav: cannot be an id: it is empty or holds white space",
        "noisy/caf\udce9.wav: cannot be an id: not UTF-8; rename the file",
        f"noisy/e.wav: no clean counterpart in {tmp_path / 'clean'}",
    ]


def test_every_bad_pair_is_described(tmp_path):
    for name, n_samples, fs in (("length", 99, 16000), ("rate", 100, 48000), ("both", 99, 48000), ("good", 100, 16000)):
        write(tmp_path / "noisy" / f"{name}.wav", n_samples, fs)
        write(tmp_path / "clean" / f"{name}.wav")
    write(tmp_path / "noisy" / "page.wav")
    (tmp_path / "clean" / "page.wav").write_text("<html>")
    problems = check_pairs(find_pairs(tmp_path / "noisy", tmp_path / "clean")[0], threads=2)
    assert [problem.partition(":")[0] for problem in problems] == ["both", "length", "page", "rate"]
    assert "sampling rate (48000 and 16000 Hz) and length (99 and 100 samples)" in problems[0]
    assert "HTML" in problems[2]


def test_missing_folder_and_duplicates(tmp_path):
    write(tmp_path / "noisy" / "a.wav")
    with pytest.raises(UserError, match="clean: no such folder"):
        find_pairs(tmp_path / "noisy", tmp_path / "clean")
    (tmp_path / "noisy" / "a.Wav").write_bytes(b"x")
    if len(list((tmp_path / "noisy").iterdir())) == 1:
        pytest.skip("the file system takes both names for the same")
    with pytest.raises(UserError, match="a.Wav and .*a.wav are the same utterance"):
        find_pairs(tmp_path / "noisy", tmp_path / "noisy")


def test_names_that_unicode_spells_in_two_ways_are_one(tmp_path):
    for folder, form in (("noisy", "NFC"), ("clean", "NFD")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / unicodedata.normalize(form, "café.wav")).write_bytes(b"")
    pairs, problems = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert list(pairs) == [unicodedata.normalize("NFC", "café")] and not problems

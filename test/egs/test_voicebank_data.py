"""Preparation of VoiceBank-DEMAND from folders, archives and downloads."""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from plain_user import plain_user

from i2srf_kd.corpora.archive import DownloadError
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.errors import UserError

FOLDERS = ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav", "clean_testset_wav", "noisy_testset_wav")
TRAIN = ["p226_001", "p227_001", "p227_002", "p287_005"]
TEST = ["p232_001", "p257_002"]


@pytest.fixture(scope="module")
def recipe(data_script):
    return data_script("voicebank")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus ü"
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        for number, utt_id in enumerate(TRAIN if "train" in name else TEST):
            soundfile.write(folder / name / f"{utt_id}.wav", np.full(100 + number, 0.1), 16000)
    (folder / "log_trainset_28spk.txt").write_text("".join(f"{u} cafe 5\n" for u in TRAIN) + "p999_001 cafe 0\n")
    (folder / "log_testset.txt").write_text("".join(f"{u} bus 2.5\n" for u in TEST))
    return folder


def prepare(recipe, tmp_path, *options, counts=False, md5=False):
    args = ["--data_dir", str(tmp_path / "data"), "--check_counts", str(counts).lower()]
    return recipe.main([*args, "--check_md5", str(md5).lower(), *map(str, options)])


def pack(corpus, target, remove=True):
    target.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        with zipfile.ZipFile(target / f"{name}.zip", "w") as file:
            for path in sorted((corpus / name).iterdir()):
                file.write(path, f"{name}/{path.name}")
        if remove:
            shutil.rmtree(corpus / name)


@pytest.mark.parametrize("depth", [0, 1])
def test_unpacked_folders(recipe, corpus, tmp_path, caplog, depth):
    with caplog.at_level(logging.WARNING):
        prepare(recipe, tmp_path, "--corpus_dir", corpus if depth == 0 else tmp_path)
    train, valid, test = (DataDir.read(tmp_path / "data" / name) for name in ("train", "valid", "test"))
    assert train.utterances == ["p227_001", "p227_002"] and valid.utterances == ["p226_001", "p287_005"]
    assert test.utterances == TEST and set(test.utt2spk.values()) == {"p232", "p257"}
    assert Path(train.wav["p227_001"]) == corpus / "noisy_trainset_28spk_wav" / "p227_001.wav"
    assert Path(train.spk1["p227_001"]) == corpus / "clean_trainset_28spk_wav" / "p227_001.wav"
    assert test.extra == {"utt2noise": dict.fromkeys(TEST, "bus"), "utt2snr": dict.fromkeys(TEST, "2.5")}
    assert "trainset_28spk: 4 pairs, published 11572" in caplog.text
    assert not (tmp_path / "downloads").exists()


def test_other_names_and_speakers_without_logs(recipe, corpus, tmp_path):
    (corpus / "log_testset.txt").unlink()
    names = ("--train_set", "tr", "--valid_set", "cv", "--test_set", "tt", "--valid_speakers", "p227")
    prepare(recipe, tmp_path, "--corpus_dir", corpus, *names)
    assert DataDir.read(tmp_path / "data" / "cv").utterances == ["p227_001", "p227_002"]
    assert DataDir.read(tmp_path / "data" / "tt").extra == {}
    assert not (tmp_path / "data" / "train").exists()


def test_archives_are_unpacked_once(recipe, corpus, tmp_path):
    pack(corpus, corpus / "zips")
    prepare(recipe, tmp_path, "--corpus_dir", corpus)
    data = DataDir.read(tmp_path / "data" / "train")
    unpacked = Path(data.wav["p227_001"])
    assert unpacked == tmp_path / "downloads" / "noisy_trainset_28spk_wav" / "p227_001.wav"
    before = unpacked.stat().st_mtime_ns
    prepare(recipe, tmp_path, "--corpus_dir", corpus)
    assert unpacked.stat().st_mtime_ns == before
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--unpack_dir", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "clean_testset_wav").is_dir()


def test_archives_are_verified(recipe, corpus, tmp_path):
    pack(corpus, corpus)
    with pytest.raises(UserError, match="clean_trainset_28spk_wav.zip: MD5 is .*--check_md5 false"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, md5=True)
    whole = (corpus / "noisy_testset_wav.zip").read_bytes()
    (corpus / "noisy_testset_wav.zip").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="noisy_testset_wav.zip: truncated"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_download(recipe, corpus, tmp_path, monkeypatch, caplog):
    pack(corpus, tmp_path / "server", remove=False)
    asked = []

    def download(urls, path, md5):
        asked.append((path.name, md5, list(urls)))
        if path.stem == "logfiles":
            raise DownloadError("logfiles.zip could not be downloaded")
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tmp_path / "server" / path.name, path))

    monkeypatch.setattr(recipe, "download", download)
    prepare(recipe, tmp_path, md5=True)
    assert [name for name, _, _ in asked] == [f"{name}.zip" for name in (*FOLDERS, "logfiles")]
    for name, md5, urls in asked:
        assert len(md5) == 32 and all(url.startswith("https://") for url in urls)
        assert urls[-1].endswith(f"10283/2791/{name}")
    assert "logfiles.zip could not be downloaded" in caplog.text
    assert DataDir.read(tmp_path / "data" / "train").extra == {}
    shutil.rmtree(tmp_path / "downloads" / "clean_testset_wav")
    asked.clear()
    prepare(recipe, tmp_path)
    assert [name for name, _, _ in asked] == ["clean_testset_wav.zip", "logfiles.zip"]


def test_what_other_systems_put_beside_a_corpus_is_ignored(recipe, corpus, tmp_path):
    for name in FOLDERS:
        twin = tmp_path / "__MACOSX" / name
        twin.mkdir(parents=True)
        for path in (corpus / name).iterdir():
            for junk in (twin, corpus / name):
                (junk / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(100))
    prepare(recipe, tmp_path, "--corpus_dir", tmp_path)
    assert len(DataDir.read(tmp_path / "data" / "train")) == 2


def test_a_corpus_some_folders_down_is_found(recipe, corpus, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    corpus.rename(tmp_path / "a" / "b" / "c")
    prepare(recipe, tmp_path, "--corpus_dir", tmp_path)
    assert len(DataDir.read(tmp_path / "data" / "train")) == 2


def test_names_in_other_letters_and_a_folder_for_each_speaker_are_found(recipe, corpus, tmp_path):
    for folder in [path for path in corpus.iterdir() if path.is_dir()]:
        for file in list(folder.glob("*.wav")):
            speaker = folder / file.name.partition("_")[0]
            speaker.mkdir(exist_ok=True)
            file.rename(speaker / file.name)
        folder.rename(folder.with_name(folder.name.upper()))
    prepare(recipe, tmp_path, "--corpus_dir", corpus)
    assert len(DataDir.read(tmp_path / "data" / "train")) == 2


def test_archives_with_another_folder_inside_are_read(recipe, corpus, tmp_path):
    for name in FOLDERS:
        (tmp_path / "zips").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "zips" / f"{name}.zip", "w") as file:
            for path in (corpus / name).iterdir():
                file.write(path, f"VoiceBank/other/{path.name}")
    prepare(recipe, tmp_path, "--corpus_dir", tmp_path / "zips")
    assert len(DataDir.read(tmp_path / "data" / "train")) == 2
    with zipfile.ZipFile(tmp_path / "zips" / f"{FOLDERS[0]}.zip", "w") as file:
        file.writestr("readme.txt", "moved")
    with pytest.raises(UserError, match="expected .wav files, there are none, but readme.txt"):
        prepare(recipe, tmp_path, "--corpus_dir", tmp_path / "zips", "--unpack_dir", tmp_path / "again")


def test_files_that_may_not_be_read_are_named(recipe, corpus, tmp_path):
    (corpus / "noisy_testset_wav" / "p232_001.wav").chmod(0)
    with plain_user(), pytest.raises(UserError, match="1 bad file.*\n.*p232_001.wav: cannot be read"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_names_that_are_not_utf8_are_named(recipe, corpus, tmp_path):
    for folder in ("noisy_testset_wav", "clean_testset_wav"):
        path = corpus / folder / "p232_001.wav"
        path.rename(path.with_name(os.fsdecode(b"p232_\xe9.wav")))
    with pytest.raises(UserError, match="not UTF-8; rename the file"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_log_files_that_are_not_utf8_are_named(recipe, corpus, tmp_path):
    (corpus / "log_testset.txt").write_bytes(b"p232_001 caf\xe9 5\n")
    with pytest.raises(UserError, match="log_testset.txt: not UTF-8 text"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_missing_parts_are_named(recipe, corpus, tmp_path):
    shutil.rmtree(corpus / "clean_testset_wav")
    with pytest.raises(UserError, match="nor a zip archive of clean_testset_wav there"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare(recipe, tmp_path, "--corpus_dir", tmp_path / "nowhere")


def test_all_bad_pairs_are_reported_together(recipe, corpus, tmp_path):
    soundfile.write(corpus / "noisy_trainset_28spk_wav" / "p227_001.wav", np.zeros(7), 16000)
    soundfile.write(corpus / "noisy_trainset_28spk_wav" / "p227_002.wav", np.zeros(102), 48000)
    (corpus / "clean_testset_wav" / "p232_001.wav").write_text("<html>")
    (corpus / "noisy_testset_wav" / "p257_002.wav").unlink()
    with pytest.raises(UserError) as error:
        prepare(recipe, tmp_path, "--corpus_dir", corpus)
    message = str(error.value)
    assert "the corpus has 4 bad file(s)" in message
    for expected in ("length (7 and 101 samples)", "(48000 and 16000 Hz)", "HTML", "p257_002.wav: no noisy"):
        assert expected in message
    assert not (tmp_path / "data").exists()


def test_long_lists_of_problems_are_cut(recipe, corpus, tmp_path):
    for number in range(30):
        shutil.copy(corpus / "clean_testset_wav/p232_001.wav", corpus / f"clean_testset_wav/p232_{number + 100}.wav")
    with pytest.raises(UserError, match=r"30 bad file(.|\n)*and 10 more"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_published_counts_are_demanded(recipe, corpus, tmp_path):
    with pytest.raises(UserError, match="not complete .*4 pairs, published 11572.*--check_counts false"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, counts=True)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--valid_speakers", "p226 p000"), "no speakers p000; there are p226 p227 p287"),
        (("--valid_speakers", ""), "--valid_speakers '': empty"),
        (("--valid_speakers", "p226 p227 p287"), "nothing is left for training"),
        (("--train_set", "test"), "names of the sets must differ"),
        (("--nj", "0"), "--nj 0"),
    ],
)
def test_bad_options(recipe, corpus, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, *options)


def test_bad_log_line(recipe, corpus, tmp_path):
    (corpus / "log_testset.txt").write_text("p232_001 bus loud\n")
    with pytest.raises(UserError, match="log_testset.txt:1: expected"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_real_recordings_in_archives(recipe, audio_dir, tmp_path):
    script = audio_dir / "make_voicebank_layout.py"
    corpus = tmp_path / "corpus"
    subprocess.run([sys.executable, script, corpus, "--max-per-speaker", "1", "--zip"], check=True)
    for name in FOLDERS:
        shutil.rmtree(corpus / name)
    prepare(recipe, tmp_path, "--corpus_dir", corpus)
    counts = {name: len(DataDir.read(tmp_path / "data" / name)) for name in ("train", "valid", "test")}
    assert counts == {"train": 26, "valid": 2, "test": 25}
    assert len(DataDir.read(tmp_path / "data" / "train").extra["utt2snr"]) == 26

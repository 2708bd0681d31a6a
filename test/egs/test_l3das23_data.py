"""Preparation of L3DAS23 Task 1 from folders and archives with the published names."""

import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from i2srf_kd.corpora import l3das23
from i2srf_kd.data.formatting import FormatOptions, format_data
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.errors import UserError

TRAIN100 = ["103-1240-0000", "103-1240-0001", "26-495-0003"]
TRAIN360 = {"1": ["14-208-0000"], "2": ["16-122827-0001", "17-363-0002"]}
DEV = ["84-121123-0000", "1272-128104-0001"]


@pytest.fixture(scope="module")
def recipe(data_script):
    return data_script("l3das23")


def write_part(folder, utterances):
    for number, utt_id in enumerate(utterances):
        frames = 100 + number
        for mic, first in (("A", 0.1), ("B", 0.5)):
            (folder / "data").mkdir(parents=True, exist_ok=True)
            channels = np.tile(first + 0.1 * np.arange(4), (frames, 1)) * np.hanning(frames)[:, None]
            soundfile.write(folder / "data" / f"{utt_id}_{mic}.wav", channels, 16000)
        (folder / "labels").mkdir(exist_ok=True)
        soundfile.write(folder / "labels" / f"{utt_id}.wav", 0.05 * np.hanning(frames), 16000)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus ü"
    write_part(folder / "L3DAS23_Task1_train100", TRAIN100)
    for part, utterances in TRAIN360.items():
        write_part(folder / f"L3DAS23_Task1_train360_{part}", utterances)
    write_part(folder / "L3DAS23_Task1_dev", DEV)
    return folder


def prepare(recipe, tmp_path, *options):
    return recipe.main(["--data_dir", str(tmp_path / "data"), *map(str, options)])


def pack(corpus, archive, folders, top=True):
    """Zip folders of the corpus, with their own name at the top or with its contents alone, and remove them."""
    with zipfile.ZipFile(archive, "w") as file:
        for name in folders:
            for path in sorted((corpus / name).rglob("*.*")):
                file.write(path, path.relative_to(corpus if top else corpus / name))
            shutil.rmtree(corpus / name)


def read(tmp_path, *names):
    return [DataDir.read(tmp_path / "data" / name) for name in names]


def test_published_folders(recipe, corpus, tmp_path):
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--valid_speakers", "26")
    train, valid, test = read(tmp_path, "train", "valid", "test")
    assert train.utterances == TRAIN100[:2] and valid.utterances == TRAIN100[2:] and test.utterances == sorted(DEV)
    data = corpus / "L3DAS23_Task1_dev" / "data"
    assert [Path(p) for p in test.mixture_files(DEV[0])] == [data / f"{DEV[0]}_A.wav", data / f"{DEV[0]}_B.wav"]
    assert Path(test.spk1[DEV[0]]) == corpus / "L3DAS23_Task1_dev" / "labels" / f"{DEV[0]}.wav"
    assert test.utt2spk[DEV[1]] == "1272" and test.extra == {}


def test_a_and_b_become_one_signal_in_the_published_order(recipe, corpus, tmp_path):
    for num_mics in (2, 1):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, "--num_mics", num_mics)
        format_data(tmp_path / "data" / "test", tmp_path / "dump", FormatOptions())
        for utt_id, path in DataDir.read(tmp_path / "dump").wav.items():
            wave, _ = soundfile.read(path)
            files = [soundfile.read(corpus / f"L3DAS23_Task1_dev/data/{utt_id}_{mic}.wav")[0] for mic in "AB"]
            np.testing.assert_array_equal(wave, np.concatenate(files[:num_mics], axis=1))
            assert wave.shape[1] == 4 * num_mics and Path(path).suffix == ".flac"


@pytest.mark.parametrize("naming", ["{}", "{}.zip", "{}.zip without top", "l3das23-task1.zip"])
@pytest.mark.parametrize("train_part, expected", [("train360", [3]), ("both", [3, 3])])
def test_train360_in_two_parts_is_merged(recipe, corpus, tmp_path, naming, train_part, expected):
    folders = sorted(path.name for path in corpus.iterdir())
    if naming == "l3das23-task1.zip":
        pack(corpus, corpus / naming, folders)
    elif naming != "{}":
        for name in folders:
            pack(corpus, corpus / f"{name}.zip", [name], top=not naming.endswith("top"))
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", train_part)
    train, valid = read(tmp_path, "train", "valid")
    assert len(train) + len(valid) == sum(expected)
    assert {u for utts in TRAIN360.values() for u in utts} <= {*train.utterances, *valid.utterances}
    assert not set(train.utt2spk.values()) & set(valid.utt2spk.values())
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "downloads").rglob("*.wav"))
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", train_part)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "downloads").rglob("*.wav"))


@pytest.mark.parametrize("first, second", [("l3das23_task1_train360-part1", "train360_part_2"), ("1/train360", "2/x")])
def test_other_spellings_of_the_parts(recipe, corpus, tmp_path, first, second):
    if second == "2/x":  # data in one part, labels in the other, as folders of the same merged name
        for part in ("1", "2"):
            shutil.copytree(corpus / f"L3DAS23_Task1_train360_{part}", corpus / "train360", dirs_exist_ok=True)
            shutil.rmtree(corpus / f"L3DAS23_Task1_train360_{part}")
        (corpus / "b" / "train360").mkdir(parents=True)
        (corpus / "train360" / "labels").rename(corpus / "b" / "train360" / "labels")
    else:
        for part, name in (("1", first), ("2", second)):
            (corpus / f"L3DAS23_Task1_train360_{part}").rename(corpus / name)
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", "train360")
    train, valid = read(tmp_path, "train", "valid")
    assert len(train) + len(valid) == 3


def test_what_a_killed_run_unpacked_is_not_the_corpus(recipe, corpus, tmp_path):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    pack(corpus, downloads / "l3das23-task1.zip", sorted(path.name for path in corpus.iterdir()))
    write_part(downloads / ".l3das23-task1.unpacking" / "L3DAS23_Task1_train100", TRAIN100[1:])
    write_part(downloads / ".l3das23-task1.unpacking" / "L3DAS23_Task1_dev", DEV[:1])
    prepare(recipe, tmp_path, "--corpus_dir", downloads, "--valid_speakers", "26")
    train, valid, test = read(tmp_path, "train", "valid", "test")
    assert [*train.utterances, *valid.utterances] == TRAIN100 and test.utterances == sorted(DEV)


def test_one_and_two_microphones_are_prepared_at_the_same_time(recipe, corpus, tmp_path, monkeypatch):
    busy, unpacked = threading.Lock(), []

    def unzip(archive, folder):
        assert busy.acquire(blocking=False), "another one is unpacking"
        time.sleep(0.2)
        unpacked.append(archive)
        busy.release()
        return original(archive, folder)

    original = l3das23.unzip
    monkeypatch.setattr(l3das23, "unzip", unzip)
    pack(corpus, corpus / "l3das23-task1.zip", sorted(path.name for path in corpus.iterdir()))
    with ThreadPoolExecutor(2) as pool:
        options = ["--corpus_dir", corpus, "--download_dir", tmp_path / "downloads", "--num_mics"]
        list(pool.map(lambda mics: prepare(recipe, tmp_path / f"mics{mics}", *options, mics), (1, 2)))
    assert len(unpacked) == 2  # the second finds what the first has unpacked
    for mics in (1, 2):
        (test,) = read(tmp_path / f"mics{mics}", "test")
        assert test.utterances == sorted(DEV) and len(test.more_wav) == mics - 1


def test_task_2_beside_task_1_is_left_alone(recipe, corpus, tmp_path):
    write_part(corpus / "L3DAS23_Task2_dev", ["split1_ov1_1"])
    write_part(corpus / "L3DAS23_Task2" / "train100", ["split1_ov1_2"])
    write_part(corpus / "L3DAS23_Task2_train360", ["split1_ov1_3"])
    pack(corpus, corpus / "l3das23-task2.zip", ["L3DAS23_Task2_train360"])
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", "both")
    train, valid, test = read(tmp_path, "train", "valid", "test")
    assert len(train) + len(valid) == 6 and test.utterances == sorted(DEV)
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize("unpacked", [("1", "2"), ("1",)])
def test_archives_beside_parts_that_were_merged_by_hand(recipe, corpus, tmp_path, unpacked):
    for part in TRAIN360:
        (corpus / f"L3DAS23_Task1_train360_{part}").rename(corpus / "L3DAS23_Task1_train360")
        pack(corpus, corpus / f"L3DAS23_Task1_train360_{part}.zip", ["L3DAS23_Task1_train360"])
    for part in unpacked:
        write_part(corpus / "L3DAS23_Task1_train360", TRAIN360[part])
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", "train360")
    train, valid = read(tmp_path, "train", "valid")
    assert sorted([*train.utterances, *valid.utterances]) == sorted(TRAIN360["1"] + TRAIN360["2"])
    assert (tmp_path / "downloads").exists() == (len(unpacked) == 1)  # what is there is not unpacked again


def test_missing_parts_are_all_named(recipe, corpus, tmp_path):
    shutil.rmtree(corpus / "L3DAS23_Task1_train360_2")
    shutil.rmtree(corpus / "L3DAS23_Task1_dev")
    with pytest.raises(UserError) as error:
        prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", "both")
    assert "part 2 of L3DAS23_Task1_train360" in str(error.value) and "no folder L3DAS23_Task1_dev" in str(error.value)
    assert "train100" not in str(error.value)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare(recipe, tmp_path, "--corpus_dir", tmp_path / "nowhere")


def test_a_set_without_audio_is_said_to_have_none(recipe, corpus, tmp_path):
    for path in (corpus / "L3DAS23_Task1_dev").rglob("*.wav"):
        path.rename(path.with_suffix(".flac"))
    with pytest.raises(UserError, match=r"L3DAS23_Task1_dev: no .wav files in data/ and labels/"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_damaged_archive_is_named(recipe, corpus, tmp_path):
    pack(corpus, corpus / "L3DAS23_Task1_dev.zip", ["L3DAS23_Task1_dev"])
    whole = (corpus / "L3DAS23_Task1_dev.zip").read_bytes()
    (corpus / "L3DAS23_Task1_dev.zip").write_bytes(whole[:-50])
    with pytest.raises(UserError, match="L3DAS23_Task1_dev.zip: truncated"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus)


def test_all_problems_are_reported_together(recipe, corpus, tmp_path):
    dev, train = corpus / "L3DAS23_Task1_dev", corpus / "L3DAS23_Task1_train100"
    (dev / "data" / f"{DEV[0]}_B.wav").unlink()
    soundfile.write(dev / "data" / f"{DEV[1]}_A.wav", np.zeros((101, 3)), 16000)
    soundfile.write(train / "labels" / f"{TRAIN100[0]}.wav", np.zeros(90), 16000)
    (train / "labels" / f"{TRAIN100[1]}.wav").unlink()
    soundfile.write(train / "data" / f"{TRAIN100[2]}_B.wav", np.zeros((102, 4)), 44100)
    soundfile.write(train / "data" / "103-1240-0009_C.wav", np.zeros((5, 4)), 16000)
    with pytest.raises(UserError) as error:
        prepare(recipe, tmp_path, "--corpus_dir", corpus)
    message = str(error.value)
    for expected in (
        f"{DEV[0]}.wav: no mixture {DEV[0]}_B.wav; --num_mics 1 needs A alone",
        f"{DEV[1]}_A.wav: 3 channel(s) instead of 4",
        f"{TRAIN100[0]}_A.wav: 100 samples, its label",
        "has 90",
        f"{TRAIN100[1]}_A.wav: no label {TRAIN100[1]}.wav",
        f"{TRAIN100[2]}_B.wav: 44100 Hz instead of 16000 Hz",
        "103-1240-0009_C.wav: not called <utterance>_A.wav or <utterance>_B.wav",
    ):
        assert expected in message, message
    assert not (tmp_path / "data").exists()


def test_b_is_not_needed_with_one_microphone(recipe, corpus, tmp_path):
    for path in corpus.rglob("*_B.wav"):
        path.unlink()
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--num_mics", "1")
    assert read(tmp_path, "test")[0].more_wav == []


def test_an_utterance_in_both_parts_is_reported(recipe, corpus, tmp_path):
    write_part(corpus / "L3DAS23_Task1_train360_2", TRAIN360["1"])
    with pytest.raises(UserError, match=f"{TRAIN360['1'][0]}_A.wav: also in another part"):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, "--train_part", "train360")


def test_transcripts_are_used_where_present(recipe, corpus, tmp_path):
    (corpus / "L3DAS23_Task1_dev" / "labels" / f"{DEV[0]}.txt").write_text("GO  DO YOU\nHEAR\n")
    prepare(recipe, tmp_path, "--corpus_dir", corpus)
    (test,) = read(tmp_path, "test")
    assert test.extra == {"text": {DEV[0]: "GO DO YOU HEAR"}}
    assert format_data(tmp_path / "data/test", tmp_path / "dump", FormatOptions()).extra["text"] == test.extra["text"]


def test_validation_split_follows_its_seed(recipe, tmp_path):
    corpus = tmp_path / "corpus"
    write_part(corpus / "L3DAS23_Task1_train100", [f"{speaker}-1-0001" for speaker in range(20)])
    write_part(corpus / "L3DAS23_Task1_dev", DEV)
    splits = []
    for seed in (0, 0, 1):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, "--split_seed", seed, "--valid_share", "0.2")
        splits.append(read(tmp_path, "valid")[0].utterances)
    assert splits[0] == splits[1] != splits[2] and len(splits[0]) == 4


def test_names_that_tell_no_speakers_are_split_by_utterance(recipe, tmp_path):
    corpus = tmp_path / "corpus"
    write_part(corpus / "L3DAS23_Task1_train100", [f"house-{number}" for number in range(6)])
    write_part(corpus / "L3DAS23_Task1_dev", DEV)
    prepare(recipe, tmp_path, "--corpus_dir", corpus, "--valid_share", "0.3")
    assert [len(data) for data in read(tmp_path, "train", "valid")] == [4, 2]


def test_download(recipe, corpus, tmp_path, monkeypatch):
    def download(name, folder):
        assert name == "l3dasteam/l3das23-task1"
        archive = Path(folder, "l3das23-task1.zip")
        if not archive.is_file():
            Path(folder).mkdir(parents=True, exist_ok=True)
            pack(corpus, archive, sorted(path.name for path in corpus.iterdir()))
        return archive

    monkeypatch.setattr(recipe, "download_dataset", download)
    for _ in range(2):
        prepare(recipe, tmp_path)
        assert read(tmp_path, "test")[0].utterances == sorted(DEV)
    assert Path(read(tmp_path, "test")[0].wav[DEV[0]]).is_relative_to(tmp_path / "downloads" / "l3das23-task1")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--valid_share", "0"), "--valid_share 0.0: must lie between 0 and 1"),
        (("--valid_speakers", "26 0"), "no speakers 0; there are 103 26"),
        (("--test_set", "train"), "names of the sets must differ"),
    ],
)
def test_bad_options(recipe, corpus, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare(recipe, tmp_path, "--corpus_dir", corpus, *options)

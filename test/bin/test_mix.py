"""The command that writes mixtures of a training."""

import numpy as np
import pytest
import soundfile
import toy
import yaml

from i2srf_kd.bin import mix
from i2srf_kd.system.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = toy.write_data(tmp_path_factory.mktemp("data"))
    (folder / "train" / "speech_shape").rename(folder / "train" / "utt2num_samples")
    return folder


def write_config(folder, **changes):
    config = {"mixing": {"snr_db": [0, 10]}, "chunk_length": toy.CHUNK, "batch_size": 4, **changes}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "train.yaml")


def run(data, tmp_path, name, *more, **changes):
    options = ["--config", write_config(tmp_path, **changes), "--data_dir", str(data / "train")]
    return mix.main([*options, "-o", str(tmp_path / name), *more])


def test_files_and_table_are_those_of_the_training(data, tmp_path, capsys):
    assert run(data, tmp_path, "out", "--count", "6", "--seed", "1", "--epoch", "2") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "utterance", "speech", "noise", "room", "snr_db", "effects"] and len(rows) == 7
    (tmp_path / "data").mkdir()
    shapes = tmp_path / "data" / "speech_shape"
    shapes.write_text((data / "train" / "utt2num_samples").read_text())
    loaders = toy.loaders(data, mixing={"snr_db": [0, 10]}, shape_files=[str(shapes)])
    batches = list(loaders.build_iter(2))[:2]
    mixtures = np.concatenate([batch["speech_mix"].numpy() for _, batch in batches])
    utterances = [utt_id for ids, _ in batches for utt_id in ids]
    for number, row in enumerate(rows[1:]):
        wave, rate = soundfile.read(tmp_path / "out" / f"{row[0]}_mixture.flac")
        np.testing.assert_allclose(wave, mixtures[number], atol=1e-4)
        assert rate == toy.RATE and row[1] == utterances[number] and row[3].startswith("residual: ")
    assert (tmp_path / "out" / "0006_reference.flac").is_file()


def test_what_is_there_is_not_overwritten(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="out is not empty"):
        run(data, tmp_path, "out")


def test_a_configuration_without_mixing_says_so(data, tmp_path):
    with pytest.raises(UserError, match="no section mixing"):
        run(data, tmp_path, "out", mixing={})


def test_parts_of_the_section_as_a_training_takes_them(data, tmp_path, capsys):
    noise = tmp_path / "noise.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).standard_normal(8000), toy.RATE)
    assert run(data, tmp_path, "out", "--count", "2", "--mixing", f"noise=[{noise}]", "--mixing", "snr_db=[3, 3]") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[3], row[5]) for row in rows] == [("noise", "3.0")] * 2
    with pytest.raises(UserError, match="must be NAME=VALUE"):
        run(data, tmp_path, "other", "--mixing", "noise")


def test_lengths_that_are_no_numbers_are_named(data, tmp_path):
    (tmp_path / "train").mkdir()
    for path in (data / "train").glob("*.scp"):
        (tmp_path / "train" / path.name).write_text(path.read_text())
    (tmp_path / "train" / "utt2num_samples").write_text("a eleven\n")
    with pytest.raises(UserError, match="utt2num_samples: 'eleven' is no length of a"):
        run(tmp_path, tmp_path, "out")

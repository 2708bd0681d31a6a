"""The command that formats a data folder, as the pipeline calls it."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from i2srf_kd.bin.format_data import main
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.errors import UserError


@pytest.fixture
def data(tmp_path):
    table = {}
    for i in range(4):
        table[f"u{i}"] = str(tmp_path / f"u{i} ü.wav")
        soundfile.write(table[f"u{i}"], np.random.default_rng(i).uniform(-0.5, 0.5, 4410), 44100)
    DataDir(table, dict(table), {utt_id: "speaker" for utt_id in table}).write(tmp_path / "data")
    return tmp_path / "data"


def test_shards_in_processes_of_their_own(data, tmp_path, repository):
    command = [sys.executable, "-m", "i2srf_kd.bin.format_data", str(data), str(tmp_path / "out")]
    command += ["--fs", "16000", "--audio_format", "flac"]
    shards = [subprocess.Popen([*command, "--shard", f"{i}/2"], cwd=repository) for i in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    done = subprocess.run([*command, "--collect", "2"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "4 utterances, 16000 Hz, flac" in done.stdout
    assert set(DataDir.read(tmp_path / "out").extra["utt2num_samples"].values()) == {"1600"}


def test_all_at_once(data, tmp_path):
    assert main([str(data), str(tmp_path / "out"), "--audio_format", "wav", "--fs", "8000"]) == 0
    assert soundfile.info(DataDir.read(tmp_path / "out").wav["u0"]).samplerate == 8000


def test_bad_calls(data, tmp_path, repository):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="--shard 3/2"):
        main([str(data), out, "--shard", "3/2"])
    with pytest.raises(UserError, match="--collect 0"):
        main([str(data), out, "--collect", "0"])
    with pytest.raises(SystemExit):
        main([str(data), out, "--collect", "1", "--shard", "1/1"])
    command = [sys.executable, "-m", "i2srf_kd.bin.format_data", str(tmp_path / "nowhere"), out]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere" in done.stderr

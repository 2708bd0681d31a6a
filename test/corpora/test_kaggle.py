"""Downloads through Kaggle's client, with a stand-in for it."""

import os
import stat
import sys
from pathlib import Path

import pytest

from i2srf_kd.corpora import kaggle
from i2srf_kd.corpora.archive import DownloadError
from i2srf_kd.system.errors import UserError

# Writes the archive in two runs: the first is cut off, the second goes on.
CLIENT = r"""#!{python} -S
import sys
from pathlib import Path

assert sys.argv[1:4] == ["datasets", "download", "someone/things"] and sys.argv[4] == "-p", sys.argv
archive = Path(sys.argv[5], "things.zip")
if archive.is_file():
    archive.write_bytes(archive.read_bytes() + b"second half")
else:
    archive.write_bytes(b"first half, ")
    sys.exit(1)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without token and client."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "kaggle", None)
    monkeypatch.setattr(kaggle.importlib.util, "find_spec", lambda name: None)
    return tmp_path


@pytest.fixture
def client(home) -> Path:
    path = home / "bin" / "kaggle"
    path.parent.mkdir()
    path.write_text(CLIENT.replace("{python}", os.path.realpath(sys.executable)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_interrupted_download_goes_on_and_is_kept(home, client, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    with pytest.raises(DownloadError, match=r"could not download someone/things \(exit code 1.*--corpus_dir"):
        kaggle.download_dataset("someone/things", home / "downloads")
    assert not (home / "downloads" / "things.zip").exists()
    archive = kaggle.download_dataset("someone/things", home / "downloads")
    assert archive.read_bytes() == b"first half, second half"
    assert [path.name for path in archive.parent.iterdir()] == ["things.zip"]
    client.unlink()
    assert kaggle.download_dataset("someone/things", home / "downloads") == archive


def test_missing_client_and_missing_token_are_named(home, client):
    with pytest.raises(UserError, match=r"\.kaggle/kaggle\.json.*KAGGLE_USERNAME and KAGGLE_KEY.*--corpus_dir"):
        kaggle.download_dataset("someone/things", home / "downloads")
    client.unlink()
    with pytest.raises(UserError, match="pip install kaggle.*--corpus_dir"):
        kaggle.download_dataset("someone/things", home / "downloads")
    assert not (home / "downloads").exists()


@pytest.mark.parametrize("place", [".kaggle/kaggle.json", ".config/kaggle/kaggle.json", ".kaggle/access_token", "own"])
def test_places_of_the_token(home, client, monkeypatch, place):
    if place == "own":
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "elsewhere"))
        place = "elsewhere/kaggle.json"
    (home / place).parent.mkdir(parents=True)
    (home / place).write_text("{}")
    with pytest.raises(DownloadError):  # the stand-in was reached
        kaggle.download_dataset("someone/things", home / "downloads")


def test_client_as_a_module(home, monkeypatch):
    monkeypatch.setattr(kaggle.importlib.util, "find_spec", lambda name: object())
    assert kaggle._find_client("someone/things") == [sys.executable, "-m", "kaggle.cli"]

"""Data sets from Kaggle, fetched by its official client with the user's own token.

archive = download_dataset("l3dasteam/l3das23-task1", "downloads")
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

from i2srf_kd.corpora.archive import DownloadError
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

_TOKEN_FILES = ("kaggle.json", "access_token")


def download_dataset(name: str, folder: PathLike) -> Path:
    """Download a data set as one zip archive; one that is there is kept, an interrupted download continues.

    Args:
        name: ``<owner>/<data set>``.
        folder: where the archive goes.

    Returns:
        ``<folder>/<data set>.zip``, which is absent or complete.

    Raises:
        UserError: client or token are absent.
        DownloadError: the client failed; its own messages are on the terminal.
    """
    folder, archive = Path(folder), name.rpartition("/")[2] + ".zip"
    if (folder / archive).is_file():
        return folder / archive
    client = _find_client(name)
    _check_token(name)
    # The client writes under the final name from the start, and goes on with what it finds there.
    partial = folder / f".{archive}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*client, "datasets", "download", name, "-p", str(partial)], check=False)
    if done.returncode or not (partial / archive).is_file():
        raise DownloadError(
            f"kaggle could not download {name} (exit code {done.returncode}, see above); run again to go on where it "
            "stopped, or get the archive in a browser and give its folder with --corpus_dir"
        )
    os.replace(partial / archive, folder / archive)
    shutil.rmtree(partial, ignore_errors=True)
    return folder / archive


def _find_client(name: str) -> List[str]:
    command = shutil.which("kaggle")
    if command:
        return [command]
    if importlib.util.find_spec("kaggle") is not None:
        return [sys.executable, "-m", "kaggle.cli"]
    raise UserError(
        f"{name} is downloaded by Kaggle's client, which is not installed: run pip install kaggle, or get the archive "
        "in a browser and give its folder with --corpus_dir"
    )


def _check_token(name: str) -> None:
    """Kaggle's client asks for a password on the terminal when it has no token; a batch job would wait for ever."""
    if os.environ.get("KAGGLE_API_TOKEN") or all(os.environ.get(f"KAGGLE_{what}") for what in ("USERNAME", "KEY")):
        return
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    folders = [Path.home() / ".kaggle", Path(config, "kaggle")]
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        folders.insert(0, Path(os.environ["KAGGLE_CONFIG_DIR"]))
    if not any((folder / file).is_file() for folder in folders for file in _TOKEN_FILES):
        raise UserError(
            f"{name} needs your Kaggle token: save it as {folders[0] / 'kaggle.json'} (Kaggle, Settings, API) or set "
            "KAGGLE_USERNAME and KAGGLE_KEY; or get the archive in a browser and give its folder with --corpus_dir"
        )

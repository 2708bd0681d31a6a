"""Reading what trainings and scoring have left behind."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from i2srf_kd.audio.ark import file_of
from i2srf_kd.data.kaldi_dir import Table, read_table
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike


def read_json(path: PathLike, hint: str = "give another file") -> Dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        hint: what to do where there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {hint}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_log(path: PathLike) -> List[Dict[str, Any]]:
    """Read a training log of one JSON object per line.

    A last line without its line break belongs to a run that is being written or was killed: it is left out.

    Raises:
        UserError: no such file, or a line that is no record with ``epoch`` and ``phase``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such training log")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record["epoch"], record["phase"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: expected a record with epoch and phase, got {line[:80]!r}") from error
        records.append(record)
    return records


def read_audio_paths(scp: Optional[Path]) -> Table:
    """A table of audio files, which are looked for where it says and around it, because folders are moved and copied.

    Relative ones are relative to this process's folder or one that the table lies in. A file that is not there may lie
    below the table, under the last folders of its path.
    """
    if scp is None or not scp.is_file():
        return {}
    return {utt: str(_existing(Path(path), scp)) for utt, path in read_table(scp).items()}


def _existing(path: Path, scp: Path) -> Path:
    def is_there(place: Path) -> bool:
        return Path(file_of(place)).exists()

    below = (scp.parent.joinpath(*path.parts[start:]) for start in range(1, len(path.parts)))
    around = (folder / path for folder in scp.absolute().parents)
    return next((place for place in (path, *around, *below) if is_there(place)), path)

"""What a fault cost: how much was done a second time, and whether that is within what is promised."""

import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

PARTS = 2  # that work at a time
MODELS = {4: "teacher", 5: "student_kd"}

_STEP = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch")
_RESUMED = re.compile(r"resuming (?:in epoch (\d+) after (\d+) batches|after epoch (\d+))")


Times = Dict[str, Tuple[int, int]]


class Loss(NamedTuple):
    """``text`` for the table; whether it keeps what is promised."""

    text: str
    within: bool


def steps_done(log: str, per_epoch: int) -> int:
    """The last training step that a log tells of."""
    return max(((int(epoch) - 1) * per_epoch + int(batch) for epoch, batch in _STEP.findall(log)), default=0)


def resumed_at(log: str, per_epoch: int) -> int:
    """The step after which the run of a log began."""
    match = _RESUMED.search(log)
    if not match:
        return 0
    epoch, batches, finished = match.groups()
    return int(finished) * per_epoch if finished else (int(epoch) - 1) * per_epoch + int(batches)


def training_loss(before: str, after: str, per_epoch: int, allowed: int) -> Loss:
    """Steps that were done twice.

    Args:
        before: log of the run that was disturbed.
        after: log of the one that went on.
        per_epoch: steps of an epoch.
        allowed: steps that may be lost.
    """
    lost = max(0, steps_done(before, per_epoch) - resumed_at(after, per_epoch))
    return Loss(f"{lost} of {steps_done(before, per_epoch)} steps", lost <= allowed)


def times(folder: Path, patterns: List[str]) -> Times:
    """When each file was written."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def work_loss(stage: int, before: Times, after: Times) -> Loss:
    """What was written a second time by a stage other than a training.

    Stages 1 and 3 are done again as a whole, stage 2 the set that it was at. In stage 6 the system that it was at is
    scored again, and one enhanced utterance of each part may have been written and not yet noted.
    """
    again = {name for name, when in before.items() if after.get(name) != when}
    if stage in (1, 3):
        return Loss(f"{len(again)} of {len(before)} files (the stage)", True)
    if stage == 2:
        return Loss(f"{len(again)} of {len(before)} files", len({name.split("/")[2] for name in again}) <= 1)
    enhanced = {name for name in again if "/enhanced_" in name}
    earlier = {name for name in again if "/scored_" in name and "student_kd" not in name}
    return Loss(f"{len(enhanced)} enhanced utterances", len(enhanced) <= PARTS and not earlier)

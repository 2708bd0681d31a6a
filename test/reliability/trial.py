"""One fault from beginning to end: disturb, start the same command again, compare, look for what is left."""

import random
import re
import subprocess
import time
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from reliability import compare, faults, losses, processes
from reliability.faults import KINDS, Kind, Scene, TooLate
from reliability.losses import MODELS, Loss
from reliability.workspace import STEPS, Workspace

from i2srf_kd.training.checkpoint import DAMAGED

NOT_HIT = "not hit"

_ATTEMPTS = 4  # to hit a stage while it runs
_SETTLE_SECONDS = 30.0  # what a killed run may take to save and to end
_CRASH = re.compile(r"Traceback \(most recent call last\)|Segmentation fault|unbound variable")


class Outcome(NamedTuple):
    """What came of one fault; ``problems`` is empty when everything is as it should be."""

    kind: str
    stage: int
    remark: str
    lost: str
    same: bool
    problems: List[str]
    seconds: float

    @property
    def good(self) -> bool:
        return self.same and not self.problems


def plan(count: int, seed: int, only: Sequence[str] = (), stages: Sequence[int] = ()) -> List[Dict[str, Any]]:
    """Kinds and stages in turn, each with a seed of its own, until there are ``count``; those of Slurm come last.

    Args:
        count: number of faults; below that of all pairs of a kind and a stage, some are drawn.
        seed: of the choice and of all moments.
        only: kinds to choose from; by default all.
        stages: stages to choose from; by default all.
    """
    pairs = [
        (name, stage)
        for name, kind in KINDS.items()
        for stage in kind.stages
        if (not only or name in only) and (not stages or stage in stages)
    ]
    draw = random.Random(seed)
    chosen: List[Tuple[str, int]] = []
    while pairs and len(chosen) < count:
        chosen += draw.sample(pairs, min(count - len(chosen), len(pairs)))
    chosen.sort(key=lambda pair: KINDS[pair[0]].on_cluster)
    return [{"kind": name, "stage": stage, "seed": draw.randrange(10**6)} for name, stage in chosen]


def attempt(workspace: Workspace, name: str, stage: int, seed: int) -> Outcome:
    """Try one fault, again with another moment when the stage was faster."""
    moment = random.Random(seed)
    for _ in range(_ATTEMPTS):
        try:
            return _attempt(workspace, name, stage, moment)
        except TooLate:
            _end(workspace)
        finally:
            faults.unmount(workspace)
    return Outcome(name, stage, "the stage was faster each time", "", False, [NOT_HIT], 0.0)


def _end(workspace: Workspace) -> None:
    """Nothing of a trial that is given up may disturb the next one."""
    processes.outlived(workspace.mark, _SETTLE_SECONDS)
    processes.kill(processes.marked(workspace.mark))


def _attempt(workspace: Workspace, name: str, stage: int, moment: random.Random) -> Outcome:
    kind, start = KINDS[name], time.monotonic()
    if kind.variant:
        workspace.prepare_variant(stage, kind.variant, kind.options)
    workspace.reset(stage)
    remarks = [faults.mount_small(workspace, stage, moment)] if name == "full_disk" else []
    command = workspace.command(stage, stage, *kind.options)
    scene = Scene(workspace, stage, workspace.start(command), moment, kind.variant)
    remarks.append(kind.inject(scene))
    code = scene.run.wait()
    problems = _problems_of_end(workspace, kind, code, scene.run.text(), remarks)
    if kind.damage is not None:
        remarks.append(kind.damage(scene))
    before = losses.times(workspace.run_dir, compare.RESULTS[stage])
    disturbed = workspace.log(stage) if stage in MODELS else ""
    again = workspace.start(command)
    if again.wait() != 0:
        problems.append(f"the second run ended with {again.process.returncode}: {again.text()[-600:]}")
    problems += _problems_of_words(again.text(), "second run")
    if name in ("truncated", "empty") and "going on from the one before" not in again.text():
        problems.append("the damaged checkpoint was not reported")
    lost = _loss(workspace, kind, stage, disturbed, before)
    if not lost.within:
        problems.append(f"lost {lost.text}")
    expected = workspace.before(stage + 1, kind.variant)
    different = compare.differences(compare.digests(expected, stage), compare.digests(workspace.run_dir, stage))
    problems += [f"different: {', '.join(different[:5])}"] if different else []
    problems += _problems_of_leftovers(workspace, kind, expected)
    remark = "; ".join(text for text in remarks if text)
    return Outcome(name, stage, remark, lost.text, not different, problems, time.monotonic() - start)


def _problems_of_end(workspace: Workspace, kind: Kind, code: int, said: str, remarks: List[str]) -> List[str]:
    problems = _problems_of_words(said, "disturbed run")
    if kind.moves_on and code != 0 or kind.expected and code not in kind.expected:
        problems.append(f"the disturbed run ended with {code}: {said[-600:]}")
    elif not kind.moves_on and code == 0:
        raise TooLate
    if kind.inject is faults.full_disk and not re.search(r"cannot write .* MB left", said):
        problems.append(f"the full disk was not named: {said[-600:]}")
    remarks += [f"exit code {code}"] if not kind.moves_on else []
    left = processes.outlived(workspace.mark, _SETTLE_SECONDS)
    if left:
        problems.append(f"left running: {'; '.join(p.command[:120] for p in left)}")
        processes.kill(left)
    return problems + _problems_of_queue(workspace)


def _problems_of_words(said: str, what: str) -> List[str]:
    match = _CRASH.search(said)
    return [f"{what}: {said[match.start() :][-600:]}"] if match else []


def _problems_of_queue(workspace: Workspace) -> List[str]:
    if workspace.cluster is None:
        return []
    cluster = workspace.cluster
    processes.wait_for(lambda: not cluster.queue(), _SETTLE_SECONDS, 0.2)
    left = cluster.queue()
    if left:
        subprocess.run(["scancel", *(line.split()[0] for line in left)], env=workspace.environment(), check=False)
    return [f"left in the queue: {'; '.join(left)}"] if left else []


def _problems_of_leftovers(workspace: Workspace, kind: Kind, expected: Any) -> List[str]:
    left = processes.outlived(workspace.mark, 10.0)
    problems = [f"running after the end: {'; '.join(p.command[:120] for p in left)}"] if left else []
    processes.kill(left)
    files = compare.left_behind(expected, workspace.run_dir)
    if kind.title.endswith(("truncated", "0 bytes")):
        files = [name for name in files if not name.endswith(f"/{DAMAGED}")]
    problems += [f"files left: {', '.join(files[:5])}"] if files else []
    return problems + _problems_of_queue(workspace)


def _loss(workspace: Workspace, kind: Kind, stage: int, disturbed: str, before: Dict[str, Any]) -> Loss:
    if kind.inject is faults.second_run:
        return Loss("nothing", True)
    if stage in MODELS:
        if kind.moves_on:  # the job itself began again
            disturbed, continued = workspace.log(stage, earlier=True), workspace.log(stage)
            # The command that was given again found everything finished, and wrote no log.
            return losses.training_loss(disturbed, continued, STEPS, kind.steps)
        if workspace.log(stage) == disturbed:  # it was recorded as finished: nothing was started again
            return Loss("nothing", True)
        return losses.training_loss(disturbed, workspace.log(stage), STEPS, kind.steps)
    return losses.work_loss(stage, before, losses.times(workspace.run_dir, compare.RESULTS[stage]))

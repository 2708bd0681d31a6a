"""A grid in a recipe: its shared stages, its runs as one job array, its table."""

import os
import shlex
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from i2srf_kd.ablation import collect
from i2srf_kd.ablation.check import check_distill
from i2srf_kd.ablation.grid import Grid, check_options, read_grid
from i2srf_kd.ablation.runs import (
    EXIT_REFUSED,
    Run,
    check_cells,
    inputs_of,
    runs_of,
    stopped_by_signal,
    write_cells,
    write_plan,
)
from i2srf_kd.jobs.local import visible_gpus
from i2srf_kd.pipeline.recipe import Pipeline, parse_option_words
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.locks import held
from i2srf_kd.system.processes import call
from i2srf_kd.system.signals import EXIT_INTERRUPTED

_LOCK_SECONDS = 60.0


class Ablation:
    """A grid in a recipe.

    Args:
        grid: the grid file.
        words: options for ``run.sh``.
        cells, seeds: these alone, separated by blanks; all where empty.
        max_jobs: runs at a time; by default one per GPU, 2 without a GPU, all on a cluster.
        python: interpreter to use.
        run_script: the recipe's ``run.sh``.

    Raises:
        UserError: an option, the grid file or a cell is wrong.
    """

    def __init__(
        self,
        grid: Path,
        words: Sequence[str] = (),
        cells: str = "",
        seeds: str = "",
        max_jobs: Optional[int] = None,
        python: str = sys.executable,
        run_script: str = "./run.sh",
    ):
        given = parse_option_words(words)
        # Where a grid runs is nothing that its file says.
        check_options({name: value for name, value in given.items() if name != "cmd_backend"}, "ablate.sh")
        if max_jobs is not None and max_jobs < 1:
            raise UserError(f"--max_jobs {max_jobs}: must be at least 1")
        self.max_jobs = max_jobs
        self.python = python
        self.whole: Grid = read_grid(grid, check_distill)
        self.grid = self.whole.select(cells.split(), _whole_numbers(seeds))
        # with_baseline: the mini recipe would train an undistilled student beside every cell.
        options = {**self.whole.options, **given, "with_baseline": "false"}
        self.recipe = Pipeline(run_script, {"python": python, **options})
        self.pipeline, self.options = self.recipe.resolve()
        self.root = Path(self.options["expdir"]) / "ablation" / self.whole.name
        self.test_sets = self.options["test_sets"].split()
        self.runs: List[Run] = runs_of(self.grid, self.root)

    def list(self) -> int:
        """Print every run with its state."""
        for run in self.runs:
            print(f"{run.state(self.test_sets):<12} {run.title:<40} {run.folder}")
        return 0

    def run(self) -> int:
        """Train and score what is not finished, and collect; the exit code."""
        with held(self.root / ".lock", str(self.root), _LOCK_SECONDS) as lock:
            write_cells(self.grid, self.root)
            code = self._prepare() or self._run_cells(lock)
            if code not in (0, 1):
                return code
            return self.collect() or code

    def collect(self) -> int:
        """Write the table of every set from the runs that are finished."""
        check_cells(self.whole, self.root)
        for test_set in self.test_sets:
            places = collect.Places(
                root=self.root,
                rawdir=Path(self.options["rawdir"]),
                noisy=Path(self.options["expdir"]) / "noisy",
                teacher=Path(self.options["expdir"]) / self.options["teacher_tag"],
                teacher_experiment=Path(self.options["teacher_dir"]),
            )
            runs = runs_of(self.whole, self.root)
            command = os.environ.get("RECIPE_COMMAND", "")
            results = collect.build(self.whole, runs, places, test_set, command, self.options)
            table = collect.write(results, self.root)
            print(table.read_text(encoding="utf-8"))
            print(f"table: {table} (also .json, .csv)")
        return int(any(run.state(self.test_sets) == "failed" for run in self.runs))

    def _prepare(self) -> int:
        """Stages 1 to 4, and the rows of the table that are no cells."""
        known = (self.options["train_set"], self.options["valid_set"])
        further = [name for name in self.test_sets if name not in known]
        common = self.recipe.with_options()
        # The recipe's own test sets stay part of the statistics while another set is evaluated.
        common.options.pop("test_sets", None)
        if further:
            common.options["test_sets"] = " ".join(further)
        code = common.run(stage="1", stop_stage="4")
        if code:
            return code
        return self.pipeline.run(
            stage="6", stop_stage="6", score_systems="noisy teacher", logdir=str(self.root / "logs")
        )

    def _run_cells(self, lock: int) -> int:
        pipeline = self.pipeline.with_options(**self._shares())
        missing = self._missing(pipeline)
        if len(missing) < len(self.runs):
            print(f"{len(self.runs) - len(missing)} of {len(self.runs)} runs are finished and are not run again")
        if not missing:
            return self._outcome(0)
        plan = self.root / "logs" / f"plan-{os.getpid()}.json"
        write_plan(missing, pipeline, self.options["expdir"], plan)
        for number, (run, _) in enumerate(missing, 1):
            print(f"JOB={number}: {run.title}")
        command = [self.python, "-m", "i2srf_kd.bin.run_jobs", *shlex.split(self.options["train_cmd"])]
        command += ["--name", f"ablation {self.whole.name}", *self._resources(pipeline.options)]
        command += [f"JOB=1:{len(missing)}", str(self.root / "logs" / "run.JOB.log")]
        command += [self.python, "-m", "i2srf_kd.bin.ablate_run", str(plan), "JOB"]
        sys.stdout.flush()
        code = call(command, pass_fds=[lock])
        plan.unlink(missing_ok=True)
        return self._outcome(code)

    def _missing(self, pipeline: Pipeline) -> List[Tuple[Run, str]]:
        """The runs that something is left to do for, with what they read.

        A finished run whose options or inputs have changed is among them: the pipeline says what it makes of that.
        """
        rawdir, teacher = Path(self.options["rawdir"]), Path(self.options["teacher_dir"])
        sets = dict.fromkeys([self.options["train_set"], self.options["valid_set"], *self.test_sets])
        files = [*(rawdir / f".done_{name}" for name in sets), teacher / ".done_train", teacher / "config.yaml"]
        missing: List[Tuple[Run, str]] = []
        for run in self.runs:
            config = Path(run.cell.student_config or self.options["student_config"])
            inputs = inputs_of(run, pipeline, self.options["expdir"], [config, *files])
            if not run.is_current(self.test_sets, inputs):
                missing.append((run, inputs))
        return missing

    def _outcome(self, code: int) -> int:
        """Exit code after the job array has ended with ``code``; says which runs need attention."""
        states: Dict[str, List[Run]] = {}
        for run in self.runs:
            states.setdefault(run.state(self.test_sets), []).append(run)
        refused = [run for run in states.get("finished", []) if run.exit_code == EXIT_REFUSED]
        for run in refused:
            print(f"error: {run.title} was not run again, its results are kept; log: {run.log}", file=sys.stderr)
        for run in states.get("failed", []):
            print(f"error: {run.title} failed; log: {run.log}", file=sys.stderr)
        unfinished = len(states.get("interrupted", [])) + len(states.get("waiting", []))
        if unfinished:
            print(f"{unfinished} runs are unfinished: run the same command again to continue", file=sys.stderr)
        if stopped_by_signal(code):
            return code
        if refused:
            return EXIT_REFUSED
        if states.get("failed"):
            return 1
        return code or (EXIT_INTERRUPTED if unfinished else 0)

    def _shares(self) -> Dict[str, str]:
        """Threads of each run, where the user left them open and the runs share this machine."""
        shares: Dict[str, str] = {}
        threads = self.options["num_threads"]
        if self._is_local() and "num_threads" not in self.recipe.options:
            threads = str(max(1, int(threads) // (self._default_jobs() or 1)))
        shares["num_threads"] = threads
        shares["ngpu"] = self.options["ngpu"]
        if "inference_nj" not in self.recipe.options:
            shares["inference_nj"] = threads
        return shares

    def _resources(self, options: Dict[str, str]) -> List[str]:
        words = ["--gpu", options["ngpu"], "--num_threads", options["num_threads"]]
        jobs = self._default_jobs()
        return words if jobs is None else [*words, "--max_jobs", str(jobs)]

    def _default_jobs(self) -> Optional[int]:
        """Runs at a time; None lets the cluster choose."""
        if self.max_jobs is not None or not self._is_local():
            return self.max_jobs
        if self.options["ngpu"] != "0":
            return min(max(1, len(visible_gpus()) // int(self.options["ngpu"])), len(self.runs))
        return min(2, len(os.sched_getaffinity(0)), len(self.runs))

    def _is_local(self) -> bool:
        return self.options["cmd_backend"] == "local"


def _whole_numbers(text: str) -> List[int]:
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers separated by blanks") from None

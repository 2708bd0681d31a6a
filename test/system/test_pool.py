"""Pools of processes: order, errors, and what is left when one of them is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pool_work
import pytest
from reliability import processes

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress


def test_results_keep_the_order_and_are_told_as_they_come(capfd) -> None:
    start = {"initializer": pool_work.note_start, "initargs": ("word",)}
    with process_map(pool_work.square, range(8), 2, chunksize=1, **start) as results:
        rows = list(progress(results, total=8, desc="squares"))
    assert [row[0] for row in rows] == [number * number for number in range(8)]
    pids = {row[1] for row in rows}
    assert os.getpid() not in pids and len(pids) <= 2
    # Once in each process, and not in this one.
    assert all(row[2] == ["word"] for row in rows) and not pool_work.started_with
    assert "squares: 8/8" in capfd.readouterr().err


def test_one_process_is_this_one_and_more_than_items_are_not_started(monkeypatch) -> None:
    monkeypatch.setattr("i2srf_kd.system.pool.ProcessPoolExecutor", None)
    for nj, items in ((1, [2, 3]), (4, [2]), (4, [])):
        with process_map(pool_work.square, items, nj) as results:
            assert [row[:2] for row in results] == [(item * item, os.getpid()) for item in items]
    with pytest.raises(UserError, match="--nj 0: must be 1 or more"):
        with process_map(pool_work.square, [1], 0):
            pass


def test_an_error_arrives_with_its_cause() -> None:
    with pytest.raises(UserError, match="^item 3 is bad$") as caught:
        with process_map(pool_work.fail_at_three, range(8), 2, chunksize=1) as results:
            list(results)
    assert "ZeroDivisionError" in str(caught.value.__cause__)  # the worker's traceback, as text


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(UserError, match="--nj 2: a process died, perhaps for lack of memory; use fewer"):
        with process_map(pool_work.die_at_three, range(8), 2, chunksize=1) as results:
            list(results)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    code = "import pool_work as w, i2srf_kd.system.pool as p\n"
    code += "with p.process_map(w.sleep_long, [1, 2], 2) as rows: list(rows)"
    mark = f"pool{os.getpid()}"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, processes.MARK: mark, "PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path)

    def workers() -> List[processes.Process]:
        return [process for process in processes.marked(mark) if "--multiprocessing-fork" in process.command]

    try:
        assert processes.wait_for(lambda: len(workers()) == 2, 60)
        time.sleep(1)  # also when they are at work
        parent.kill()
        parent.wait()
        assert not processes.outlived(mark, 30)
    finally:
        parent.kill()
        processes.kill(processes.marked(mark))

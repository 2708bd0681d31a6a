import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from reliability.processes import wait_for

from i2srf_kd.bin.run_jobs import main
from i2srf_kd.jobs import BACKENDS, JobResult
from i2srf_kd.jobs.array import final_code, parse_range
from i2srf_kd.system.errors import UserError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def start_runner(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "i2srf_kd.bin.run_jobs", *words],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_array_replaces_job_in_log_and_arguments(tmp_path):
    log = tmp_path / "logs" / "x.JOB.log"
    assert main(["JOB=2:4", str(log), "echo", "shard", "JOB/4", "JOBS", "--part=JOB"]) == 0
    for index in (2, 3, 4):
        text = log.with_name(f"x.{index}.log").read_text()
        assert f"\nshard {index}/4 JOBS --part={index}\n" in text
    assert not log.with_name("x.1.log").exists()


def test_folders_that_are_called_job_stay_what_they_are(tmp_path):
    log = tmp_path / "x.JOB.log"
    words = ["/data/JOB/a", "JOB_2024/a", "x/my_JOB/out.JOB.wav", "--dir=JOB/2", "scan JOB/2"]
    assert main(["JOB=3", str(log), "echo", *words]) == 0
    line = "/data/JOB/a JOB_2024/a x/my_JOB/out.3.wav --dir=3/2 scan 3/2"
    assert f"\n{line}\n" in (tmp_path / "x.3.log").read_text()


def test_single_command_keeps_the_word_job(tmp_path):
    assert main([str(tmp_path / "x.log"), "echo", "JOB"]) == 0
    assert "\nJOB\n" in (tmp_path / "x.log").read_text()


def test_log_has_header_both_outputs_and_footer(tmp_path):
    log = tmp_path / "x.log"
    code = "import os, sys; os.write(1, b'to out\\n'); os.write(2, b'to err\\n'); sys.exit(3)"
    assert main([str(log), *python(code)]) == 3
    lines = log.read_text().splitlines()
    assert lines[0].startswith("# Command: ") and "sys.exit(3)" in lines[0]
    assert lines[1] == f"# Host: {os.uname().nodename}"
    assert re.fullmatch(r"# Started: \d{4}-\d\d-\d\dT.*", lines[2])
    assert lines[3:5] == ["to out", "to err"]
    assert re.fullmatch(r"# Ended: \S+, exit code 3, \d+\.\d seconds", lines[5])


def test_earlier_log_is_kept(tmp_path):
    log = tmp_path / "x.log"
    main([str(log), "echo", "first"])
    main([str(log), "echo", "second"])
    assert "first" in (tmp_path / "x.log.1").read_text() and "second" in log.read_text()


def test_failing_element_is_named_with_its_log_and_others_finish(tmp_path, capfd):
    code = "import sys, time; i = int(sys.argv[1]); print('line of', i); time.sleep(i / 10); sys.exit(7 * (i == 2))"
    assert main(["--name", "stage4", "JOB=1:3", str(tmp_path / "x.JOB.log"), *python(code), "JOB"]) == 7
    err = capfd.readouterr().err
    assert f"error: stage4 JOB=2 failed with exit code 7; log: {tmp_path}/x.2.log" in err
    assert "  | line of 2" in err and "line of 1" not in err
    assert "stage4: 3 of 3 done, 1 failed" in err
    assert "exit code 0" in (tmp_path / "x.3.log").read_text()


def test_never_more_than_max_jobs_at_a_time(tmp_path):
    code = f"""
import os, sys, time
mine = os.path.join({str(tmp_path)!r}, "running." + sys.argv[1])
open(mine, "w").close()
print("together", len([n for n in os.listdir({str(tmp_path)!r}) if n.startswith("running.")]))
time.sleep(0.15)
os.remove(mine)
"""
    assert main(["--max_jobs", "2", "JOB=1:5", str(tmp_path / "x.JOB.log"), *python(code), "JOB"]) == 0
    seen = [int(re.search(r"together (\d+)", p.read_text()).group(1)) for p in tmp_path.glob("x.*.log")]
    assert len(seen) == 5 and max(seen) == 2


def test_threads_are_passed_on(tmp_path):
    code = "import os; print('T', os.environ['OMP_NUM_THREADS'])"
    main(["--num_threads", "3", str(tmp_path / "x.log"), *python(code)])
    assert "\nT 3\n" in (tmp_path / "x.log").read_text()


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    code = "import os, time; print('G', os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)"
    assert main(["--gpu", "1", "--max_jobs", "4", "JOB=1:2", str(tmp_path / "x.JOB.log"), *python(code)]) == 0
    seen = {re.search(r"\nG (.*)\n", p.read_text()).group(1) for p in tmp_path.glob("x.*.log")}
    assert seen == {"4", "7"}
    with pytest.raises(UserError, match="--gpu 3: only 2 GPU"):
        main(["--gpu", "3", str(tmp_path / "y.log"), "true"])


def test_exit_code_75_is_passed_through(tmp_path, capfd):
    assert main([str(tmp_path / "x.log"), *python("raise SystemExit(75)")]) == 75
    assert "run again" in capfd.readouterr().err


@pytest.mark.parametrize(
    "codes, expected",
    [([0, 0], 0), ([0, 75], 75), ([75, 3], 3), ([5, 3], 5), ([5, None], 5), ([143, 75], 143)],
)
def test_final_code(codes, expected):
    assert final_code([JobResult(i, code, 0.0, Path("x")) for i, code in enumerate(codes)]) == expected


@pytest.mark.parametrize("program, code", [("no-such-program", 127), ("/dev/null", 126)])
def test_program_that_cannot_start(tmp_path, program, code):
    assert main([str(tmp_path / "x.log"), program]) == code
    assert f"cannot run {program}" in (tmp_path / "x.log").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_is_passed_on_and_the_job_waited_for(tmp_path, name):
    log = tmp_path / "x.log"
    code = f"""
import signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.{name}, save)
print("ready", flush=True)
time.sleep(60)
"""
    runner = start_runner(str(log), *python(code))
    assert wait_for(lambda: log.exists() and "\nready\n" in log.read_text(), 10)
    runner.send_signal(getattr(signal, name))
    _, err = runner.communicate(timeout=10)
    assert runner.returncode == 75
    assert f"received {name}" in err
    assert "\nsaved\n" in log.read_text()


def test_signal_stops_what_waits_and_leaves_no_orphan(tmp_path):
    pids = tmp_path / "pids"
    command = f"sleep 60 & echo $! >> '{pids}'; echo $$ >> '{pids}'; wait"
    runner = start_runner("--max_jobs", "2", "JOB=1:4", str(tmp_path / "x.JOB.log"), "bash", "-c", command)
    assert wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 4, 10)
    runner.terminate()
    runner.communicate(timeout=15)
    assert runner.returncode == 128 + signal.SIGTERM
    assert not [pid for pid in pids.read_text().split() if alive(int(pid))]
    assert sorted(p.name for p in tmp_path.glob("x.*.log")) == ["x.1.log", "x.2.log"]


def test_second_signal_kills(tmp_path):
    log = tmp_path / "x.log"
    code = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    runner = start_runner(str(log), *python(code))
    assert wait_for(lambda: log.exists() and "\nready\n" in log.read_text(), 10)
    runner.terminate()
    while "passing it on" not in runner.stderr.readline():
        assert runner.poll() is None
    runner.terminate()
    runner.communicate(timeout=10)
    assert runner.returncode == 128 + signal.SIGKILL


def test_processes_left_behind_are_ended(tmp_path):
    pid_file = tmp_path / "pid"
    assert main([str(tmp_path / "x.log"), "bash", "-c", f"sleep 60 & echo $! > '{pid_file}'"]) == 0
    assert wait_for(lambda: not alive(int(pid_file.read_text())), 10)


def test_follow_shows_the_log(tmp_path, capfd):
    assert main(["--follow", str(tmp_path / "x.log"), "echo", "to be seen"]) == 0
    assert "to be seen\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--backend", "lsf", "x.log", "true"], r"--backend lsf.*available: local"),
        ([], "nothing to run"),
        (["x.log"], "no command after the log path x.log"),
        (["JOB=1:2", "x.log", "true"], "needs JOB in it"),
        (["JOB=3:1", "x.JOB.log", "true"], "below the first"),
        (["JOB=a", "x.JOB.log", "true"], "JOB=FIRST:LAST"),
        (["--max_jobs", "0", "x.log", "true"], "--max_jobs 0"),
        (["--num_threads", "0", "x.log", "true"], "--num_threads 0"),
        (["--follow", "JOB=1:2", "x.JOB.log", "true"], "--follow"),
        (["/dev/null/x.log", "true"], "cannot write the log /dev/null/x.log"),
    ],
)
def test_wrong_use_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        main(words)


def test_parse_range():
    assert parse_range("JOB=2:4") == [2, 3, 4] and parse_range("JOB=3") == [3]


def test_new_backend_is_one_file_and_one_registry_entry(tmp_path, monkeypatch):
    (tmp_path / "my_backend.py").write_text(
        "from i2srf_kd.jobs import JobResult\nrun = lambda array: [JobResult(None, 9, 0.0, array.log_of(None))]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BACKENDS, "mine", "my_backend:run")
    assert main(["--backend", "mine", "x.log", "true"]) == 9


def test_starts_at_once_without_torch():
    code = "import sys; import i2srf_kd.bin.run_jobs; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

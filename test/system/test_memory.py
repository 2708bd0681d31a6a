import subprocess
import sys

import pytest

from i2srf_kd.system import memory

_MEASURE = "from i2srf_kd.system.memory import peak_resident_bytes; print(peak_resident_bytes())"


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_peak_is_that_of_this_process_alone(repository):
    """``getrusage`` would give the child of a process that holds 300 MB at least these."""
    held = bytearray(b"1" * 300_000_000)
    done = subprocess.run([sys.executable, "-c", _MEASURE], cwd=repository, capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < len(held) / 2
    assert memory.resident_bytes() >= len(held)
    del held
    assert memory.peak_resident_bytes() >= 300_000_000


def test_without_proc_the_peak_comes_from_the_system_call(monkeypatch, tmp_path):
    with_proc = memory.peak_resident_bytes()
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.peak_resident_bytes() >= 0.9 * with_proc
    with pytest.raises(OSError, match="status"):
        memory.resident_bytes()

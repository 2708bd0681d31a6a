"""Run ``python tools/bench PART`` on the package of this checkout; see :mod:`bench.command`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The plain references that speed is compared with are in test/.
sys.path[0:1] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "test")]

if __name__ == "__main__":
    from bench.command import main
    from bench.measure import restart_with_allocator_settings
    from i2srf_kd.system.errors import run_command

    restart_with_allocator_settings(sys.argv[1:])
    run_command(main)

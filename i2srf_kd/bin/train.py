"""Train a teacher, a student, or a student that learns from a teacher.

    python -m i2srf_kd.bin.train --config conf/train_student.yaml --output_dir exp/student ...

Options are those of ESPnet's enhancement task plus the groups for distillation and training listed by ``--help``.
Exit codes: 0 finished; 2 bad input; 75 saved on a signal, the same command goes on.
"""

import os
import signal
import sys
from types import FrameType
from typing import Optional, Sequence

from i2srf_kd.system.errors import run_command
from i2srf_kd.system.signals import EXIT_INTERRUPTED


def _leave(number: int, frame: Optional[FrameType]) -> None:
    """Until the trainer listens (importing ESPnet takes seconds) there is nothing to save."""
    message = f"{signal.Signals(number).name} before the training began; run the same command again"
    os.write(2, f"{message} (exit code {EXIT_INTERRUPTED})\n".encode())
    os._exit(EXIT_INTERRUPTED)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the training task."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _leave)
    argv = list(sys.argv[1:] if argv is None else argv)
    from i2srf_kd.espnet.task import main as run_task

    run_task(argv)
    return 0


if __name__ == "__main__":
    run_command(main)

"""The commands, one per file: ``i2srf <name>`` or ``python -m i2srf_kd.bin.<name>``."""

import sys
from types import TracebackType
from typing import Optional, Type


def _without_traceback(kind: Type[BaseException], error: BaseException, traceback: Optional[TracebackType]) -> None:
    """Ctrl-C while a command is still importing is no crash; later, ``run_command`` sees to it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _without_traceback

"""Errors that a user can cause and mend."""

import sys
from typing import Callable, Optional, Sequence


class UserError(ValueError):
    """Bad input. The message names the file, utterance or option and says what to do."""


def run_command(main: Callable[[Optional[Sequence[str]]], Optional[int]]) -> None:
    """Run a command's ``main`` and turn a :class:`UserError` into one line and exit code 2."""
    try:
        sys.exit(main(None) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)

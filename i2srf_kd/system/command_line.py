"""What the command lines of all commands have in common."""

import argparse
from typing import Any, Optional


def command_parser(description: Optional[str], **more: Any) -> argparse.ArgumentParser:
    """A parser that shows a docstring as it is written and takes no abbreviations."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter, allow_abbrev=False, **more)

"""Peak memory of candidates, each in a process of its own."""

import argparse
from typing import Dict, Sequence

from bench.measure import usage_of


def memory_columns(args: argparse.Namespace, arguments: Sequence[str], names: Sequence[str]) -> Dict[str, float]:
    """Megabytes by candidate; empty with ``--no_memory``.

    Args:
        args: parsed options.
        arguments: the command line they were parsed from.
    """
    if args.no_memory:
        return {}
    return {name: usage_of(arguments, name).peak_bytes / 1e6 for name in names}

"""Run a program of ESPnet that knows what this project registers.

    python -m i2srf_kd.espnet.run espnet2.bin.enh_inference --train_config exp/enh/config.yaml ...
    ./run.sh --python "python3 -m i2srf_kd.espnet.run" ...    # a recipe of ESPnet: it calls ${python} -m espnet2.bin.*

Training with an option that ESPnet does not have (--distill_config, quality_utts in a --config file) is done by
:class:`i2srf_kd.espnet.task.DistillEnhancementTask`, as by ``i2srf_kd.bin.train``; any other by ESPnet's own task.
"""

import argparse
import sys
from importlib import import_module
from typing import Any, List, Optional, Sequence

from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError, run_command

TRAINING = "espnet2.bin.enh_train"


def _names_own_option(argv: Sequence[str]) -> bool:
    """Whether the command line or its configuration has an option that only this project's task knows."""
    from espnet2.tasks.enh import EnhancementTask

    from i2srf_kd.espnet.task import DistillEnhancementTask

    def options(task: Any) -> set:
        return {action.dest for action in task.get_parser()._actions}

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    config = parser.parse_known_args(argv)[0].config
    given = {word[2:].split("=")[0] for word in argv if word.startswith("--")} | set(
        read_yaml(config) if config else ()
    )
    return bool(given & (options(DistillEnhancementTask) - options(EnhancementTask)))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the program that the first argument names with the others as its command line."""
    words: List[str] = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["-m"]:
        words = words[1:]
    if not words or words[0].startswith("-"):
        raise UserError("name a program of ESPnet, such as espnet2.bin.enh_train, and its options")
    name, *rest = words
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"there is no module {name}: name a program of ESPnet, such as {TRAINING}") from None
    program = getattr(module, "main", None)
    if program is None:
        raise UserError(f"{name} is no program: it has no main()")
    if name == TRAINING and _names_own_option(rest):
        program = import_module("i2srf_kd.espnet.task").main
    sys.argv = [str(module.__file__), *rest]  # as python -m sets it
    program()
    return 0


if __name__ == "__main__":
    run_command(main)

"""Carry out a step of the pipeline, unless it is done with the same settings. Called by egs/TEMPLATE/stage_tools.sh.

    python -m i2srf_kd.bin.step FORCE DONE_FILE redo|keep SETTING ... -- COUNT COMMAND_WORD ... COUNT COMMAND_WORD ...

FORCE is true or false. A SETTING is NAME=VALUE, NAME@FILE (its content, whatever it is called; several files under one
name count together, absent ones do not), or NAME@@FILE (the modules that this distillation file imports). Each command
is preceded by the number of its words. Exit code: 0 done, 2 done with other settings, else that of the command that
failed.
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.pipeline.steps import Step, parse_commands, parse_settings
from i2srf_kd.system.errors import run_command


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Carry out the step of the command line ``argv``."""
    force, done_file, mode, *words = sys.argv[1:] if argv is None else argv
    end = words.index("--")
    step = Step(Path(done_file), parse_settings(words[:end]), keep=mode == "keep")
    return step.run(parse_commands(words[end + 1 :]), force == "true")


if __name__ == "__main__":
    run_command(main)

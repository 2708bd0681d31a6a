"""Run a command of this package by its name: ``i2srf COMMAND ...`` is ``python -m i2srf_kd.bin.COMMAND ...``."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Dict

from i2srf_kd.system.errors import UserError, run_command

COMMANDS: Dict[str, Path] = {
    file.stem: file for file in sorted(Path(__file__).parent.glob("*.py")) if not file.stem.startswith("_")
}


def overview() -> str:
    """How to call it, and every command with the first line of its module; none of them is imported."""
    lines = ["usage: i2srf COMMAND [options]; i2srf COMMAND --help shows the options", ""]
    for name, file in COMMANDS.items():
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:15} {text.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    """Run the command that the command line names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name in COMMANDS:
        sys.argv = [str(COMMANDS[name]), *arguments]  # as python -m sets it
        run_command(import_module(f"i2srf_kd.bin.{name}").main)
    else:
        run_command(lambda _: _refuse(name))


def _refuse(name: str) -> int:
    raise UserError(f"no command is called {name}: i2srf --help lists them")


if __name__ == "__main__":
    main()

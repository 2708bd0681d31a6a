"""Modules outside the package that register distillation methods, named by ``import`` in the configuration.

    import: my_package.my_method            # anything that Python can import
    import: [my_method.py, ../others.py]    # files, relative to the configuration's folder

They are imported in every process that trains; a trained model works without them.
"""

import importlib
import importlib.util
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, List, Sequence, Union

from i2srf_kd.distill.method import method_class, method_names

PathLike = Union[str, Path]


def module_entries(value: Any) -> List[str]:
    """``import`` as a list; ValueError unless it is a name, a path, or a list of them."""
    entries = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(f"import must name modules or .py files, not {value!r}")
    return entries


def is_file_entry(entry: str) -> bool:
    """Whether an entry is a file and no dotted name."""
    return entry.endswith(".py") or "/" in entry


def absolute_entries(value: Any, folders: Sequence[PathLike]) -> List[str]:
    """Entries whose files are absolute, looked for in ``folders`` in turn; dotted names stay as they are.

    Raises:
        ValueError: a file is in none of them.
    """
    found: List[str] = []
    for entry in module_entries(value):
        if not is_file_entry(entry):
            found.append(entry)
            continue
        places = [Path(folder) / entry for folder in folders]
        there = [place for place in places if place.is_file()]
        if not there:
            raise ValueError(f"import: {entry} does not exist (looked for {', '.join(map(str, places))})")
        found.append(str(there[0].resolve()))
    return found


def import_modules(value: Any) -> List[ModuleType]:
    """Import what ``import`` names; each once in a process.

    Raises:
        ValueError: a module is missing or fails; says which line of it.
    """
    return [_import_file(Path(e)) if is_file_entry(e) else _import_name(e) for e in module_entries(value)]


def registered_by(module: ModuleType) -> List[str]:
    """Names of the methods that a module, or one inside it, registers."""
    inside = module.__name__ + "."
    return [name for name in method_names() if (method_class(name).__module__ + ".").startswith(inside)]


def _import_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _failed(name, error) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    # The path is part of the name: two files called method.py are two modules, and the same file is the same module.
    name = f"i2srf_user_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"import: {path} is no Python file that can be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _failed(what: str, error: Exception) -> ValueError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, (ModuleNotFoundError, SyntaxError)) else f" ({frame.filename}:{frame.lineno})"
    return ValueError(f"import: {what} cannot be imported: {type(error).__name__}: {error}{where}")

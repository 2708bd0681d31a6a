"""Modules outside the package that register distillation methods, named by ``import`` in the configuration.

    import: my_package.my_method            # anything that Python can import
    import: [my_method.py, ../others.py]    # files, relative to the configuration's folder

They are imported in every process that trains; a trained model works without them. :func:`module_files` tells which
files they are without importing them, so that an edited method is noticed as another one.
"""

import importlib
import importlib.util
import sys
import traceback
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Iterable, List, Optional, Sequence, Union

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


def module_files(value: Any) -> List[Path]:
    """The source files of what ``import`` names: of a package all of them. Nothing is imported.

    Files that do not exist and modules that cannot be found are left out (:func:`import_modules` names them), and so
    is Python's own library.
    """
    files: List[Path] = []
    for entry in module_entries(value):
        if is_file_entry(entry):
            files.append(Path(entry))
        elif entry.partition(".")[0] not in sys.stdlib_module_names:
            files.extend(_files_of(entry))
    return [path for path in files if path.is_file()]


def imported_files(config: PathLike) -> List[Path]:
    """:func:`module_files` of a distillation file, whose own entries are looked for beside it.

    Raises:
        UserError: it cannot be read.
    """
    from i2srf_kd.system.config import read_yaml  # here: what only runs commands starts without YAML

    content = read_yaml(config)
    section = content.get("distill", content)
    folder = Path(config).parent
    entries = module_entries(section.get("import")) if isinstance(section, dict) else []
    return module_files([str(folder / entry) if is_file_entry(entry) else entry for entry in entries])


def _files_of(name: str) -> Iterable[Path]:
    """Files of a dotted name, found as Python finds them."""
    path: Optional[Sequence[str]] = None
    spec = None
    words = name.split(".")
    for count in range(1, len(words) + 1):
        spec = PathFinder.find_spec(".".join(words[:count]), path)
        if spec is None:
            return []
        path = spec.submodule_search_locations
    if path is not None:
        return sorted(file for folder in path for file in Path(folder).rglob("*.py"))
    return [Path(spec.origin)] if spec and spec.origin else []


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

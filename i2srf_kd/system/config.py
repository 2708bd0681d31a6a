"""Options in YAML files: read in one place, checked against a dataclass in one place.

    @dataclass(frozen=True)
    class SpeedOptions:
        amp_dtype: Optional[Literal["float32", "bfloat16"]] = None
        workers: Annotated[int, AtLeast(1)] = 1

    options = parse_section(SpeedOptions, read_yaml("train.yaml").get("speed"), "speed")

The dataclass is the list of the options, their types and their defaults. The standard library checks it: sections are
read by the torch-only core and by commands that must start at once.
"""

import difflib
from collections.abc import Hashable
from dataclasses import MISSING, Field, fields
from typing import (
    Annotated,
    Any,
    Collection,
    Dict,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.packed import CONFIG_KEY, open_file

Section = TypeVar("Section")


class AtLeast(NamedTuple):
    """Smallest value of a number: ``Annotated[int, AtLeast(1)]``."""

    minimum: float


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: PathLike, name: str = "") -> Dict[str, Any]:
    """Read a YAML file of options.

    Args:
        path: the file; an empty one holds no options. Of a packed model, the configuration in it.
        name: how errors call it, such as ``--distill_config kd.yaml``. Default: its path.

    Raises:
        UserError: it cannot be read, is no valid YAML, gives an option twice, or holds something else than options.
    """
    name = name or str(path)
    try:
        with open_file(path, CONFIG_KEY) as file:
            options = yaml.load(file.read().decode("utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is no valid YAML: {error}") from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UserError(f"{name} must hold options such as 'key: value', not {options!r}")
    return options


def parse_section(kind: Type[Section], section: Optional[Mapping[str, Any]], where: str) -> Section:
    """Make a dataclass of the options of a section.

    Args:
        kind: the dataclass. Its fields may be ``bool``, ``int``, ``float``, ``str``, ``Any``, ``Literal``, lists,
            tuples and dictionaries of these, optional ones, and numbers with :class:`AtLeast`.
        section: the options; None stands for none.
        where: how errors call the section, such as ``conf/slurm.yaml: train``.

    Raises:
        UserError: names the section, the option and what is expected of it.
    """
    section = {} if section is None else section
    if not isinstance(section, Mapping):
        raise UserError(f"{where} must hold options such as 'key: value', not {section!r}")
    options: Tuple[Field[Any], ...] = fields(kind)  # type: ignore[arg-type]
    refuse_unknown(section, [option.name for option in options], where)
    types = get_type_hints(kind, include_extras=True)
    for option in options:
        if option.name not in section and option.default is option.default_factory is MISSING:
            raise UserError(f"{where} needs {option.name}: {_expected(types[option.name])}")
    values = {}
    for name, value in section.items():
        try:
            values[name] = _converted(types[name], value)
        except ValueError:
            raise UserError(f"{where}: {name} must be {_expected(types[name])}, not {value!r}") from None
    return kind(**values)


def refuse_unknown(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse options that a section does not have.

    Raises:
        UserError: names them, those that there are, and the one that was probably meant.
    """
    unknown = [str(name) for name in section if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{where} has no option {', '.join(unknown)}: it has {', '.join(known)}{hint}")


def _converted(kind: Any, value: Any) -> Any:
    """The value as the type has it; ValueError where it does not fit."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Union:  # Optional
        return None if value is None else _converted(parts[0], value)
    if origin is Annotated:
        value = _converted(parts[0], value)
        fits = value >= parts[1].minimum
    elif origin in (list, tuple):
        fits = isinstance(value, (list, tuple))
        value = origin(_converted(parts[0], item) for item in value) if fits else value
    elif origin is Literal:
        fits = value in parts
    elif kind is float and not isinstance(value, bool):
        fits = isinstance(value, (int, float, str))
        value = float(value) if fits else value  # PyYAML reads 1e-3 as a text
    else:
        fits = kind is Any or (isinstance(value, origin or kind) and (kind is bool or not isinstance(value, bool)))
    if not fits:
        raise ValueError
    return value


def _expected(kind: Any) -> str:
    """What a type accepts, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Union:
        return _expected(parts[0])
    if origin is Annotated:
        return f"{_expected(parts[0])}, {parts[1].minimum:g} or more"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(parts[0]) or _expected(parts[0]).removeprefix('one of ')}"
    return _WORDS.get(origin or kind, "a value")


_WORDS: Dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "options such as 'key: value'",
}
_PLURALS: Dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}

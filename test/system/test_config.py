"""Options in YAML files, read and checked in one place."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal, Optional, Tuple

import pytest

from i2srf_kd.system.config import AtLeast, parse_section, read_yaml
from i2srf_kd.system.errors import UserError


@dataclass(frozen=True)
class Options:
    method: str
    weight: float = 1.0
    steps: Annotated[int, AtLeast(1)] = 1
    dtype: Optional[Literal["float32", "bfloat16"]] = None
    parts: Tuple[Literal["student", "loss"], ...] = ()
    words: Optional[List[str]] = None
    fused: bool = False
    conf: Optional[Dict[str, Any]] = None


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: [", "--config .*options.yaml is no valid YAML"),
        ("a: 1\nb: {c: 1, c: 2}\n", "(?s)no valid YAML.*'c' is given twice.*line 2"),
        ("? {a: 1}\n: 2\n", "no valid YAML"),
        ("[1, 2]", r"must hold options such as 'key: value', not \[1, 2\]"),
        (b"a: \xff", "no valid YAML"),
    ],
)
def test_file_without_options_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_yaml(file, f"--config {file}")


def test_empty_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# default: {partition: gpu}\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    with pytest.raises(UserError, match="cannot read .*absent.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_values_get_the_types_of_the_section(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("{method: kd, weight: 1e-3, parts: [loss], words: null, conf: {inter: true}}")
    expected = Options("kd", 0.001, parts=("loss",), conf={"inter": True})
    assert parse_section(Options, read_yaml(tmp_path / "x.yaml"), "distill") == expected


@pytest.mark.parametrize(
    "section, message",
    [
        ({"wieght": 1}, "distill has no option wieght: it has method, weight, .*; did you mean weight[?]"),
        ({}, "distill needs method: a text"),
        ({"weight": "much"}, "distill: weight must be a number, not 'much'"),
        ({"weight": True}, "weight must be a number, not True"),
        ({"steps": 0}, "steps must be a whole number, 1 or more, not 0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"dtype": "half"}, "dtype must be one of float32, bfloat16, not 'half'"),
        ({"dtype": ["float32"]}, "dtype must be one of"),
        ({"parts": "student"}, "parts must be a list of student, loss"),
        ({"parts": ["teacher"]}, "parts must be a list of student, loss"),
        ({"words": "--x"}, "words must be a list of texts, not '--x'"),
        ({"fused": "yes"}, "fused must be true or false, not 'yes'"),
        ({"fused": 1}, "fused must be true or false"),
        ({"conf": 3}, "conf must be options such as 'key: value', not 3"),
        ([1], "distill must hold options"),
    ],
)
def test_wrong_option_is_named_with_what_is_expected(section: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_section(
            Options, {"method": "kd", **section} if section and isinstance(section, dict) else section, "distill"
        )


def test_commands_that_read_options_start_at_once() -> None:
    code = "import sys, i2srf_kd.system.config; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

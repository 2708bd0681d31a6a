"""What a part of the benchmark hands back, as a table and as JSON."""

import json
import platform
from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence

import torch

from i2srf_kd import __version__
from i2srf_kd.system.files import PathLike, write_text
from i2srf_kd.system.markdown import Column, named_values, table_of


@dataclass
class Report:
    """Rows by column key; what a row lacks or has as None was not measured.

    Attributes:
        part: name of the part.
        columns: of the table; rows may have more keys, which go into the JSON alone.
        conditions: sizes, rates, threads.
        notes: sentences below the table.
    """

    part: str
    columns: Sequence[Column]
    rows: List[Dict[str, Any]] = field(default_factory=list)
    conditions: Dict[str, Any] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)

    def table(self) -> str:
        """The rows as a Markdown table."""
        return "\n".join(table_of(self.columns, self.rows))

    def text(self) -> str:
        """Conditions, table and notes."""
        return "\n\n".join([f"{self.part}: {named_values(self.conditions)}", self.table(), *self.notes])

    def write(self, path: PathLike) -> None:
        """Write everything as JSON, with what it was measured by."""
        versions = {"i2srf_kd": __version__, "torch": torch.__version__, "python": platform.python_version()}
        content = {"part": self.part, "versions": versions, "conditions": self.conditions, "rows": self.rows}
        write_text(path, json.dumps({**content, "notes": self.notes}, indent=2) + "\n")

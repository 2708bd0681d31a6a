"""Tables in Markdown."""

from typing import Any, List, Mapping, NamedTuple, Sequence

MISSING = "–"


class Column(NamedTuple):
    """A column of numbers: key in the rows, heading, and how a value is written."""

    key: str
    title: str
    form: str = "{}"

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of a row; what was not measured is a dash."""
        value = row.get(self.key)
        return MISSING if value is None else self.form.format(value)


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table; the first column heads its row."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def table_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> List[str]:
    """Lines of a table of numbers."""
    return table_lines([column.title for column in columns], [[column.text(row) for column in columns] for row in rows])


def named_values(values: Mapping[str, Any]) -> str:
    """``seconds 4, threads 1``: conditions of a measurement in one line."""
    return ", ".join(
        f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in values.items()
    )

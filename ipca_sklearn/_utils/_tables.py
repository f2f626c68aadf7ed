"""Tables of scored images: their columns, rows as CSV that no spreadsheet runs or as strict JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


class Column(NamedTuple):
    """A column of the tables that the commands in `tables` write, or models of several "products" or with "align"."""

    name: str
    kind: type
    meaning: str
    computed_in: str
    tables: tuple[str, ...] = ("predict", "watch")


# In the order of the tables. Help, documentation, headers and JSON keys come from here.
COLUMNS = (
    Column("path", str, "the image (absolute in `watch`)", "cli"),
    Column("n_bytes", int, "size of the file in bytes", "watching", ("watch",)),
    Column("modified_ns", int, "time of change in nanoseconds since 1970", "watching", ("watch",)),
    Column(
        "product",
        str,
        "the nearest product, or the one named (empty if none is near enough)",
        "products",
        ("products",),
    ),
    Column("product_p_value", float, "how often an image of the product is as far from it", "products", ("products",)),
    Column("score", float, "higher is more normal", "detection"),
    Column("p_value", float, "how often a normal image scores as low", "detection"),
    Column("label", int, "+1 normal, -1 anomalous", "detection"),
    Column("top", int, "first row of the box around the worst defect (without one, of the largest value)", "detection"),
    Column("left", int, "first column of the box", "detection"),
    Column("height", int, "rows of the box", "detection"),
    Column("width", int, "columns of the box", "detection"),
    Column(
        "n_defects",
        int,
        "connected regions of patches above their threshold (an image can have one and score normal)",
        "detection",
    ),
    Column("defect_area", int, "pixels of all defects", "detection"),
    Column("aligned", bool, "whether the part was found", "features", ("align",)),
    Column("alignment", float, "correlation with the mean image", "features", ("align",)),
    Column("drift", int, "1 from a drift alarm on, else 0 (empty without `--drift-alarm`)", "monitoring", ("watch",)),
    Column("error", str, "why there is no score, or no picture", "features"),
)


def columns_of(*tables: str) -> tuple[Column, ...]:
    """Return the columns of a command, and of "products" and "align" if they are named."""
    return tuple(column for column in COLUMNS if not {*tables}.isdisjoint(column.tables))


def columns_in_words(*tables: str) -> str:
    """Return names and meanings as one paragraph."""
    return "; ".join(f"{column.name}: {column.meaning}" for column in columns_of(*tables))


class RowFormat:
    """Rows as CSV or JSON lines, as the suffix says; bytes of names that are not UTF-8 are surrogates in both."""

    def __init__(self, suffix: str, columns: Sequence[Column]) -> None:
        self.is_csv = suffix.lower() != ".jsonl"
        self.names = [column.name for column in columns]
        self._columns = columns
        self.header = _csv_line(self.names) if self.is_csv else ""

    def line(self, row: Mapping[str, Any], shown: Callable[[str], str] = str) -> str:
        """Return the line of a row: what it lacks is empty or null. `shown` changes the text of CSV cells."""
        if not self.is_csv:
            return to_json({name: row.get(name) for name in self.names}) + "\n"
        cells = (as_cell(row.get(name)) for name in self.names)
        return _csv_line([shown(cell) if isinstance(cell, str) else cell for cell in cells])

    def parse(self, line: str) -> dict[str, Any]:
        """Return the row of a line; a ValueError, KeyError or csv.Error if it is none."""
        if not self.is_csv:
            row = json.loads(line)
            return {name: row[name] for name in self.names}
        (cells,) = csv.reader([line], strict=True)
        pairs = zip(self._columns, cells, strict=True)
        return {column.name: column.kind(cell) if cell else None for column, cell in pairs}


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()


def as_cell(value: Any) -> Any:
    """Return a value of a CSV table: text that a spreadsheet would run as a formula gets a ``'`` before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def of_cell(text: str) -> str:
    """Return the text that `as_cell` has written as this cell."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text


def to_json(value: Any) -> str:
    """Return a value as strict JSON: NaN and infinities, for which it has no numbers, are null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The rows of `predict`, as CSV or JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from ipca_sklearn import ProductRouter
from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._tables import as_cell, to_json
from ipca_sklearn.cli._text import standard_output

COLUMNS = ("path", "score", "p_value", "label", "top", "left", "height", "width", "n_defects", "defect_area", "error")
PRODUCT_COLUMNS = (COLUMNS[0], "product", "product_p_value", *COLUMNS[1:])
ALIGNMENT_COLUMNS = ("aligned", "alignment")


def columns_of(pipe: Pipeline) -> tuple[str, ...]:
    """Return the columns of `predict` for a model."""
    columns = PRODUCT_COLUMNS if isinstance(pipe[-1], ProductRouter) else COLUMNS
    return columns if pipe[0].align is None else (*columns[:-1], *ALIGNMENT_COLUMNS, columns[-1])


class Table:
    """Rows as CSV or JSON lines, each written at once.

    Bytes of file names that are not UTF-8 are written as they are to CSV, and as lone surrogates to JSON, so that
    Python's `errors="surrogateescape"` gives the name back. In CSV, text that a spreadsheet would run as a formula gets
    a `'` before it, and in a terminal all that could control it is escaped. In JSON, numbers that are not finite are
    null.

    Parameters
    ----------
    path : Path
        File to write, its suffix is the form; "-" is CSV on the standard output.
    stack : ExitStack
        Closes the file.
    columns : sequence of str, default=COLUMNS
        What is written of each row.
    """

    def __init__(self, path: Path, stack: ExitStack, columns: Sequence[str] = COLUMNS) -> None:
        self._path = path
        self._columns = columns
        if str(path) == "-":
            self._stream = standard_output()
        else:
            stack.enter_context(naming(path))  # also of what is still in the buffer when the file is closed
            opened = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            self._stream = stack.enter_context(opened)
        self._in_terminal = self._stream.isatty()
        self._csv = None if path.suffix.lower() == ".jsonl" else csv.DictWriter(self._stream, columns)
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        with naming(self._path):
            if self._csv is not None:
                self._csv.writerow({name: self._cell(row[name]) for name in self._columns})
            else:
                self._stream.write(to_json({name: row[name] for name in self._columns}) + "\n")

    def _cell(self, value: Any) -> Any:
        cell = as_cell(value)
        return printable(cell) if self._in_terminal and isinstance(cell, str) else cell

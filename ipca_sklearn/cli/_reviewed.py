"""Reviewed images: the ticks of a report, read back from the CSV file that its button saves."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._tables import of_cell
from ipca_sklearn.cli._learnt import same_file

ReviewedFile = Annotated[
    Path | None,
    typer.Option(
        "--reviewed",
        metavar="CSV",
        help="Ticks saved from a report of `predict` or `watch`: images that are good, and defects.",
    ),
]
LABELS = ("good", "defect")


@dataclass(frozen=True)
class Ticks:
    """The images of a file of ticks, each once, in its order."""

    good: list[Path]
    defects: list[Path]


def read_reviewed(path: Path) -> Ticks:
    """Read the ticks of a report.

    Parameters
    ----------
    path : Path
        CSV in UTF-8 with the columns `path` and `label`, "good" or "defect"; other columns are not read. The paths
        are those that `predict` wrote: relative ones start at the current folder, as everywhere in a command line.

    Raises
    ------
    ValueError
        It is no such table, has no image, or an image has both labels. The message names the file and the line.
    FileNotFoundError
        The file, or an image in it, does not exist.
    """
    where = printable(path)
    found: dict[str, tuple[str, int, Path]] = {}
    # A spreadsheet that saves the file may put a mark of byte order before it.
    with naming(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            if not {"path", "label"} <= set(table.fieldnames or ()):
                raise ValueError(
                    f"{where}, line 1: there are no columns path and label, separated by commas: name a file that the "
                    "button of a report has saved"
                )
            for row in table:
                label, name = (row["label"] or "").strip().lower(), of_cell(row["path"] or "")
                line = f"{where}, line {table.line_num}"
                if label not in LABELS:
                    raise ValueError(f"{line}: the label is {label!r}: write good or defect, or remove the line")
                image = Path(name)
                if not name or not image.is_file():
                    raise FileNotFoundError(
                        f"{line}: there is no file {printable(name)!r}: run the command in the folder in which "
                        "`predict` ran, or remove the line"
                    )
                other, first, _ = found.setdefault(same_file(image), (label, table.line_num, image))
                if other != label:
                    raise ValueError(
                        f"{line}: {printable(name)} is {label}, and {other} in line {first}: remove one of the lines"
                    )
        except csv.Error as error:
            raise ValueError(f"{where}, after line {table.line_num}: this is no CSV: {error}") from error
    if not found:
        raise ValueError(f"{where} has no ticks: tick images in the report, and save them again")
    by_label = {kind: [image for label, _, image in found.values() if label == kind] for kind in LABELS}
    return Ticks(by_label["good"], by_label["defect"])

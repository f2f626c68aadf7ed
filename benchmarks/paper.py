"""python benchmarks/paper.py --mvtec ROOT --magnetic-tile ROOT: the paper's Tables 1-10 and Figures 2-3.

A run may be interrupted: finished cells (class x setup x trial) are kept in the file of --state and not run again.
docs/paper_experiments.md has one command per table, and what differs from the paper.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import argument_parser, environment, markdown_table, write_results
from _paper_figures import draw
from _paper_runs import Conditions, Runs
from _paper_state import Result, State
from _paper_tables import CROP_CLASS, GROUPS, IMAGE, PIXEL, TABLES, TEST, TILES, TRAIN, Column, Setup, Table

STATISTICS: dict[str | None, Callable[[Iterable[float]], float]] = {
    None: statistics.mean,
    "min": min,
    "avg": statistics.mean,
    "max": max,
}
METHOD = """\
Each cell is "paper / ours". The method is the paper's (`score="mahalanobis", centering="deferred"`, maps not smoothed):
images resized to 256 x 256 (nearest), the centre 224 x 224, ImageNet normalisation, batches of 8. Image ROCAUC from the
maximum of the map, pixel ROCAUC from the map resized bilinearly to the crop. FPS is all images of all classes over the
total time, without reading the images from disk, with resizing them and with the network. Eq. 6 is `solver="svd"`,
Sec. 3.3 `solver="gram_svd"`; k is the number of dimensions. Two things differ: our first step has as many images as the
others (the paper's can have 32), and our training also sets a threshold, from scores of the later half of the images
(where all images are one step: from two more fits, of half of them each)."""
ON_CPU = "SVD driver (gesvd, gesvdj): ours is LAPACK's in every column, drivers can be chosen on CUDA only."


@dataclass
class Row:
    """Figures of one metric and group; `ours` is None where there is none."""

    metric: str
    group: str
    classes: list[str]
    paper: list[float]
    ours: list[float | None]


class Report:
    """Figures of tables from the results of cells."""

    def __init__(self, runs: Runs, n_trials: int, crop_class: str) -> None:
        self.runs, self.n_trials, self.crop_class = runs, n_trials, crop_class

    def classes(self, table: Table) -> tuple[str, ...]:
        """Return the classes of a table."""
        return (self.crop_class,) if table.classes == (CROP_CLASS,) else table.classes

    def cells(self, table: Table) -> list[tuple[str, Setup]]:
        """Return what must be run for a table."""
        setups = [setup for column in table.columns for setup in column.setups(self.n_trials)]
        return [(name, setup) for name in self.classes(table) for setup in setups]

    def rows(self, table: Table) -> list[Row]:
        """Return the rows, over the classes for which every column that ran at all has results."""
        ran = [[name for name in self.classes(table) if self._trials(column, [name])] for column in table.columns]
        common = set.intersection(*(set(names) for names in ran if names)) if any(ran) else set()
        rows = []
        for (metric, group), paper in table.figures.items():
            members = GROUPS.get(group, self.classes(table) if len(table.classes) == 1 else (group,))
            classes = [name for name in members if name in common]
            trials = [self._trials(column, classes) if classes else [] for column in table.columns]
            ours = [
                STATISTICS[column.statistic](aggregate(metric, results) for results in runs) if runs else None
                for column, runs in zip(table.columns, trials, strict=True)
            ]
            rows.append(Row(metric, group, classes, list(paper), ours))
        return rows

    def _trials(self, column: Column, classes: list[str]) -> list[list[Result]]:
        """Return, for each trial that all of the classes have, their results."""
        trials = []
        for setup in column.setups(self.n_trials):
            results = [self.runs.result(name, setup) for name in classes]
            found = [result for result in results if result is not None]
            if len(found) == len(classes):
                trials.append(found)
        return trials

    def label(self, table: Table, row: Row) -> str:
        """Return the name of a row's classes: of those of a mean, where some are missing."""
        if row.group not in GROUPS:
            own = self.classes(table)[0] if len(table.classes) == 1 else row.group
            return row.group if own == row.group else f"{own} (paper: {row.group})"
        n_all = len(GROUPS[row.group])
        if len(row.classes) == n_all:
            return row.group
        which = ": " + ", ".join(row.classes) if row.classes else ""
        return f"{row.group} (mean of {len(row.classes)} of {n_all} classes{which})"

    def remarks(self, table: Table) -> list[str]:
        """Return why columns have no figures, and of how many trials statistics are."""
        names = [name for name in self.classes(table) if name not in self.runs.missing]
        remarks = []
        for column in table.columns:
            setups = column.setups(self.n_trials)
            reasons: dict[str, list[str]] = {}
            for name in names:
                left = [setup for setup in setups if self.runs.result(name, setup) is None]
                if left:
                    which = name if len(setups) == 1 else f"{name} ({len(left)} of {len(setups)} trials)"
                    reasons.setdefault(self.runs.reason(name, left[0]), []).append(which)
            remarks += [f"- {column.label}: {', '.join(which)}: {reason}" for reason, which in reasons.items()]
        if any(column.statistic for column in table.columns):
            remarks.append(f"- Random crops: {self.n_trials} trials (paper: 100).")
        if any(column.setup.svd_driver for column in table.columns) and not self._on_cuda:
            remarks.append(f"- {ON_CPU}")
        return remarks

    @property
    def _on_cuda(self) -> bool:
        return self.runs.conditions.device.startswith("cuda")

    def as_markdown(self, table: Table) -> str:
        """Return a table with its heading and remarks."""
        title = f"## Table {table.number}. {table.title}"
        rows = self.rows(table)
        body = [[row.metric, self.label(table, row), *map(cell, row.paper, row.ours)] for row in rows]
        missing = [name for name in self.classes(table) if name in self.runs.missing]
        if len(missing) == len(self.classes(table)):
            title += f"\n\nNot run: {self.runs.missing[missing[0]]}"
        header = ["", "", *(self._label(column) for column in table.columns)]
        return "\n\n".join([title, markdown_table(header, body), "\n".join(self.remarks(table))]).strip()

    def _label(self, column: Column) -> str:
        return column.label + (" (ours: LAPACK)" if column.setup.svd_driver and not self._on_cuda else "")

    def as_json(self, table: Table) -> dict[str, Any]:
        """Return a table with what it was run with."""
        columns = [
            {"label": column.label, "statistic": column.statistic, **asdict(self.runs.conditions.resolve(column.setup))}
            for column in table.columns
        ]
        rows = [asdict(row) for row in self.rows(table)]
        return {"title": table.title, "columns": columns, "rows": rows, "remarks": self.remarks(table)}


def aggregate(metric: str, results: Sequence[Result]) -> float:
    """Return the mean of the classes, or the frames of all of them by the time of all of them."""
    if metric in (IMAGE, PIXEL):
        name = "image_roc_auc" if metric == IMAGE else "pixel_roc_auc"
        return statistics.mean(result[name] for result in results)
    part = {TRAIN: "train", TEST: "test"}[metric]
    return sum(result[f"n_{part}"] for result in results) / sum(result[f"{part}_seconds"] for result in results)


def cell(paper: float, ours: float | None) -> str:
    return f"{paper:.1f} / {'-' if ours is None else f'{ours:.1f}'}"


def heading(options: argparse.Namespace, runs: Runs) -> str:
    shared = runs.conditions
    parts = ["# The paper's tables", METHOD, environment() + f"; run on {shared.device}"]
    if shared.backbone is not None:
        parts.append(
            f"**Backbone: ours is {shared.backbone} in every column**, all its features, whatever the column says."
        )
    if (shared.weights, shared.image_size, shared.crop_size) != (paper_weights(shared.backbone), 256, 224):
        parts.append(f"**A trial**: weights {shared.weights}, images {shared.image_size}, crop {shared.crop_size}.")
    if options.note:
        parts.append(f"**{options.note}**")
    missing = [name for name in GROUPS["All"] if name in runs.missing]
    if missing:
        parts.append(f"Classes that are missing and left out: {', '.join(missing)}.")
    return "\n\n".join(parts)


def paper_weights(backbone: str | None) -> str:
    """Return the weights that torchvision had when the paper was written; another backbone has its own."""
    return "IMAGENET1K_V1" if backbone is None else "DEFAULT"


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    numbers = [table.number for table in TABLES]
    parser.add_argument("--mvtec", type=Path, help="folder of MVTec AD's classes")
    parser.add_argument("--magnetic-tile", type=Path, help="folder of the magnetic tile defects, for Table 10")
    parser.add_argument("--tables", type=int, nargs="*", choices=numbers, default=numbers, metavar="1..10")
    parser.add_argument(
        "--figures", type=int, nargs="*", choices=(2, 3), default=[], help="pages of pictures, in --out"
    )
    parser.add_argument("--backbone", help="replaces the paper's backbone in all tables")
    parser.add_argument(
        "--weights", help="as of the extractor, or none: random (default: IMAGENET1K_V1, as the paper's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--trials", type=int, default=100, help="random crops in Table 5")
    parser.add_argument("--crop-class", default=CROP_CLASS, help="class of Table 5")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--limit", type=int, help="stop after so many new cells; run again to go on")
    parser.add_argument("--note", help="printed in the report, for example which images these are")
    parser.add_argument("--state", type=Path, help="file of finished cells (default: beside the report)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    weights = options.weights or paper_weights(options.backbone)
    conditions = Conditions(options.backbone, weights, options.image_size, options.crop_size, options.device)
    name = "paper" if options.backbone is None else "paper_" + options.backbone.replace(":", "_")
    state = State(options.state or options.out / f"{name}.jsonl")
    runs = Runs(conditions, {"mvtec": options.mvtec, TILES: options.magnetic_tile}, state)
    report = Report(runs, options.trials, options.crop_class)
    tables = [table for table in TABLES if table.number in options.tables]
    try:
        runs.run((cell for table in tables for cell in report.cells(table)), options.limit)
        figures = {number: draw(number, runs, options.out, name) for number in options.figures}
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from here") from None
    parts = [heading(options, runs), *(report.as_markdown(table) for table in tables)]
    parts += [f"## Figure {number}\n\nPages: {'; '.join(told) or 'none'}." for number, told in figures.items()]
    values = {
        "environment": environment(),
        "note": options.note,
        "conditions": asdict(conditions),
        "missing_classes": list(runs.missing),
        "tables": {table.number: report.as_json(table) for table in tables},
        "cells": runs.as_json(),
    }
    write_results(options.out, name, "\n\n".join(parts), values)


if __name__ == "__main__":
    main()

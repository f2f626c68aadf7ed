"""The paper's tables beside ours, from the results of cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common.reports import markdown_table
from benchmarks.paper.runs import Runs
from benchmarks.paper.state import Result
from benchmarks.paper.tables import CROP_CLASS, GROUPS, IMAGE, PIXEL, TEST, TRAIN, Column, Setup, Table

STATISTICS: dict[str | None, Callable[[Iterable[float]], float]] = {
    None: statistics.mean,
    "min": min,
    "avg": statistics.mean,
    "max": max,
}
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
        """Return the cells of a table: class and setup."""
        setups = [setup for column in table.columns for setup in column.setups(self.n_trials)]
        return [(name, setup) for name in self.classes(table) for setup in setups]

    def rows(self, table: Table) -> list[Row]:
        """Return the rows, over the classes with results in every column that ran at all."""
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
        """Return the results of the classes for each trial that all of them have."""
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
        """Return the reasons for missing figures, and the number of trials behind the statistics."""
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
        """Return a table with the setups of its columns."""
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

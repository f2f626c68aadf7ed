"""The figures of `evaluate`: tables for a terminal, and pictures of curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from sklearn.metrics import RocCurveDisplay

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._precision import below
from ipca_sklearn.inspection import PimoDisplay

# Titles of the tables, and keys and headings of their columns.
_TABLES = {
    "images": {
        "image_roc_auc": "image ROCAUC",
        "image_average_precision": "average precision",
        "image_f1_max": "F1 max",
        "found": "found",
    },
    "pixels": {
        "pixel_roc_auc": "pixel ROCAUC",
        "pixel_average_precision": "average precision",
        "pixel_f1_max": "F1 max",
        "pixel_f1": "F1 of masks",
    },
    "regions": {"aupro": "AUPRO", "aupro_0.05": "AUPRO 5 %", "aupimo": "AUPIMO"},
    "defects": {"pro": "PRO", "region_f1": "F1 of defects"},
}
# Where the heading of a column needs its table to be understood.
_NAMES = {key: heading for columns in _TABLES.values() for key, heading in columns.items()} | {
    "image_average_precision": "image average precision",
    "image_f1_max": "image F1 max",
    "false_positive_rate": "false alarms",
    "pixel_average_precision": "pixel average precision",
    "pixel_f1_max": "pixel F1 max",
}
_ROC_LABELS = {"xlabel": "Share of normal images called anomalous", "ylabel": "Share of anomalous images found"}


def print_report(report: dict[str, Any]) -> None:
    """Print tables of an `evaluation_report`; "-" stands for figures that the images do not give."""
    rows = report["defects"]
    names = [printable(row["defects"]) for row in rows]
    width = max(len(name) for name in (*names, *_TABLES))
    for title, columns in _TABLES.items():
        counted = "n_images" if title == "images" else "n_masks"
        typer.echo(f"{title:{width}}  {'n':>5}" + "".join(f"  {heading:<18}" for heading in columns.values()).rstrip())
        for name, row in zip(names, rows, strict=True):
            cells = (f"  {_cell(row, key):<18}" for key in columns)
            typer.echo(f"{name:{width}}  {row[counted]:5d}{''.join(cells)}".rstrip())
        typer.echo("")
    classes = rows[0]["found_by_size"]
    if classes is not None:
        typer.echo("defects found, by the side of a square of their area in pixels of the resized image:")
        for row in classes:
            name = f"{row['from']:g} to {row['to']:g}" if row["to"] is not None else f"{row['from']:g} and more"
            share = "" if row["found"] is None else " ({:.0%}, {:.0%}-{:.0%})".format(row["found"], *row["interval"])
            typer.echo(f"  {name:<12} {row['n_found']} of {row['n_defects']}{share}")
        typer.echo("")
    typer.echo(
        f"after each figure its {report['confidence_level']:.0%} interval, from {report['n_resamples']} resamples of "
        "the images; of shares of images, that of Clopper and Pearson"
    )
    if report["false_positive_rate"] is None:
        typer.echo("there are no normal images")
        return
    low, high = report["false_positive_rate_interval"]
    typer.echo(
        f"{report['false_positive_rate']:.0%} ({low:.0%}-{high:.0%}) of {report['n_normal']} normal images are called "
        "anomalous"
    )


def _cell(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    low, high = row["intervals"][key]
    if key == "found":
        return f"{row[key]:.0%} ({low:.0%}-{high:.0%})"
    return f"{row[key]:.3f} ({low:.2f}-{high:.2f})"


def print_comparison(report: dict[str, Any]) -> None:
    """Print tables of `compare_scores`: of all images, and of each type of defect."""
    level = f"{report['confidence_level']:.0%} interval"
    for kind in report["defects"]:
        title = f"{printable(kind['defects'])} ({kind['n_images']})"
        typer.echo(f"{title:24} {'a':>6} {'b':>6}  {'b - a':>6}  {level:16} p")
        for row in kind["measures"]:
            low, high = row["interval"]
            typer.echo(
                f"{_NAMES[row['measure']]:24} {row['a']:6.3f} {row['b']:6.3f}  {row['difference']:+6.3f}  "
                f"{f'{low:+.3f} {high:+.3f}':16} {row['p_value']:.2g}"
            )
        typer.echo("")
    typer.echo(
        "p is the p-value of no difference: image ROCAUC by DeLong's method, the others from "
        f"{report['n_resamples']} resamples of the images, the same for both models; there are {report['n_normal']} "
        "normal images"
    )


def draw_comparison(
    path: Path, report: dict[str, Any], labels: np.ndarray, scores: Sequence[np.ndarray], names: Sequence[str]
) -> None:
    """Draw the ROC curves of two models, and the differences of all measures with their intervals."""
    figure, (curves, differences) = _subplots(2, (12, 6))
    if len(np.unique(labels)) == 2:
        for letter, name, of_model in zip("ab", names, scores, strict=True):
            display = RocCurveDisplay.from_predictions(labels == -1, -of_model, ax=curves)
            display.line_.set(label=f"{letter}: {printable(name)}, area {display.roc_auc:.3f}")
        curves.legend(loc="lower right")
    curves.set(**_ROC_LABELS)
    measures = report["defects"][0]["measures"]
    rows = np.arange(len(measures))
    values = np.array([row["difference"] for row in measures])
    ends = np.array([row["interval"] for row in measures]).T
    differences.hlines(rows, *ends, linewidth=2)
    differences.plot(values, rows, "o")
    differences.axvline(0, color="0.5", linewidth=1)
    differences.set_yticks(rows, [_NAMES[row["measure"]] for row in measures])
    differences.invert_yaxis()
    differences.set(xlabel=f"b - a, with its {report['confidence_level']:.0%} interval")
    figure.savefig(path, dpi=110)


def draw_roc(path: Path, labels: np.ndarray, scores: np.ndarray, defect_types: np.ndarray, offset: float) -> None:
    """Draw the ROC curves of images: of all, and of each type of defect; and where the threshold lies on each."""
    figure, (axes,) = _subplots(1, (6, 6))
    is_called = below(scores, offset)
    false_alarms = np.mean(is_called[labels == 1])
    types = sorted(map(str, set(defect_types[labels == -1].tolist())))
    for number, name in enumerate(["all", *(types if types != ["all"] else [])]):
        chosen = (labels == 1) | (defect_types == name) if number else np.ones(len(labels), dtype=bool)
        # Curves meet in the corner, or are the same: that of all is wide and lies below, so that it is seen.
        colour, width = ("black", 4.5) if name == "all" else (f"C{(number - 1) % 10}", 1.5)
        found = np.mean(is_called[chosen & (labels == -1)])
        label = f"{printable(name)}: {found:.0%} found"
        display = RocCurveDisplay.from_predictions(labels[chosen] == -1, -scores[chosen], ax=axes)
        display.line_.set(label=f"{label}, area {display.roc_auc:.3f}", color=colour, linewidth=width)
        marker: dict[str, Any] = {"marker": "o", "markersize": width + 5, "markeredgecolor": "white"}
        axes.plot(false_alarms, found, color=colour, clip_on=False, zorder=5, **marker)
    axes.plot([0, 1], [0, 1], "--", color="0.6", label="chance")
    axes.plot([], [], "o", color="0.4", label=f"threshold {offset:.4g}: {false_alarms:.0%} false alarms")
    axes.legend(loc="lower right")
    axes.set(**_ROC_LABELS)
    figure.savefig(path, dpi=110)


def draw_pimo(
    path: Path, masks: np.ndarray, maps: np.ndarray, defect_types: np.ndarray, region: np.ndarray | None
) -> None:
    """Draw the per-image overlap curves of images with a defect."""
    figure, (axes,) = _subplots(1, (7, 5.5))
    PimoDisplay.from_predictions(masks, maps, groups=defect_types, region=region, ax=axes)
    figure.savefig(path, dpi=110)


def _subplots(n_columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure that opens no window, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, n_columns, squeeze=False)[0]

"""`predict`: images to rows of a table, heat maps, masks and a report, one step of images at a time."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import SkippedImagesWarning
from ipca_sklearn.cli._common import Device, ModelFile, find_images, open_model
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.inspection import HtmlReport, hottest_box, overlay
from ipca_sklearn.inspection._pictures import image_size, open_upright, patch_mask

UNREADABLE = 3  # exit code
COLUMNS = ("path", "score", "p_value", "label", "top", "left", "height", "width", "error")


def predict(
    model: ModelFile,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images or folders; `-` reads paths from stdin.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .csv or .jsonl; `-` is CSV on stdout.")
    ] = Path("-"),
    maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Write heat maps over the images, as PNG.")] = None,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="Write masks of anomalous patches, as PNG.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page of all images, sorted by score.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Score images, and write tables, heat maps, masks and a report.

    The columns are path, score (higher is more normal), p-value, label (+1 normal, -1 anomalous), the box around the
    hottest region in pixels of the image, and error. An image that cannot be read is a row with its error, and the exit
    code is then 3.
    """
    pipe = open_model(model, device, on_error="skip")
    images = find_images(paths)
    failed = 0
    with ExitStack() as stack:
        table = Table(output, stack)
        page = None
        if report is not None:
            title = f"{model.name}, {len(images)} images"
            page = stack.enter_context(HtmlReport(report, threshold=pipe[-1].offset_, title=title))
        rows_in_terminal = str(output) == "-" and sys.stdout.isatty()
        progress = stack.enter_context(Progress(len(images), plain=rows_in_terminal))
        for number, row in enumerate(rows(pipe, images), 1):
            table.write(row)
            if row["error"]:
                failed += 1
            else:
                if maps is not None:
                    _save(overlay(pipe, row["map"], open_upright(row["path"])), maps, number, row["path"])
                if masks is not None:
                    _save(patch_mask(pipe, row["map"], row["size"]), masks, number, row["path"])
            if page is not None:
                _add_to_report(page, pipe, row)
            progress.show(number)
    if failed:
        typer.echo(f"{failed} of {len(images)} images cannot be read; see the column error", err=True)
        raise typer.Exit(UNREADABLE)


class Table:
    """Rows as CSV or JSON lines, each written at once."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        if str(path) != "-" and path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output {path} ends in neither .csv nor .jsonl")
        stream: IO[str] = sys.stdout
        if str(path) != "-":
            stream = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        self._stream = stream
        self._csv = None if path.suffix == ".jsonl" else csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        if self._csv is not None:
            self._csv.writerow(row)
        else:
            self._stream.write(json.dumps({name: row[name] for name in COLUMNS}) + "\n")


def rows(pipe: Pipeline, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield a row per image, with its map and its size. One step of images is in memory at a time."""
    size = pipe[-1].step_size or 16
    for start in range(0, len(paths), size):
        yield from _score(pipe, list(paths[start : start + size]))


def _score(pipe: Pipeline, paths: list[Path]) -> list[dict[str, Any]]:
    extractor, detector = pipe[0], pipe[-1]
    features = extractor.transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)  # the rows have the reasons
        maps = detector.transform(features)
    scores = detector.score_maps(maps)
    p_values = detector.p_values(scores=scores)
    found = []
    for index, (path, anomaly_map, score, p_value) in enumerate(zip(paths, maps, scores, p_values, strict=True)):
        if index in features.skipped:
            error = " ".join(features.skipped[index].split())
            found.append(dict.fromkeys(COLUMNS) | {"path": str(path), "error": error})
            continue
        size = image_size(path)
        box = hottest_box(anomaly_map, detector.map_threshold_, extractor.covered_box(size))
        row = {
            "path": str(path),
            "score": float(score),
            "p_value": float(p_value),
            "label": -1 if score < detector.offset_ else 1,
            **dict(zip(("top", "left", "height", "width"), box, strict=True)),
            "error": None,
        }
        found.append(row | {"map": anomaly_map, "size": size})
    return found


def _add_to_report(page: HtmlReport, pipe: Pipeline, row: dict[str, Any]) -> None:
    if row["error"]:
        page.add(row["path"], error=row["error"])
        return
    thumbnail = open_upright(row["path"], page.thumbnail_size)
    heat_map = overlay(pipe, row["map"], thumbnail)
    page.add(row["path"], row["score"], p_value=row["p_value"], image=thumbnail, heat_map=heat_map)


def _save(image: Image.Image, folder: Path, number: int, path: str) -> None:
    """Write a picture; the number keeps images of one name in two folders apart."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:06d}_{Path(path).stem}.png")

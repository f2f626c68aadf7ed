"""`predict`: images to rows of a table, heat maps, masks and a report, a few images at a time."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageOps
from scipy.ndimage import label
from sklearn.pipeline import Pipeline

from ipca_sklearn import SkippedImagesWarning
from ipca_sklearn.cli._common import UNREADABLE, Device, ModelFile, Progress, list_images, open_model
from ipca_sklearn.inspection import HtmlReport

COLUMNS = ("path", "score", "p_value", "label", "top", "left", "height", "width", "error")


def predict(
    model: ModelFile,
    places: Annotated[
        list[Path], typer.Argument(metavar="PATHS...", help="Images or folders; `-` reads paths from stdin.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .csv or .jsonl; `-` is CSV on stdout.")
    ] = Path("-"),
    maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Write heat maps over the images, as PNG.")] = None,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="Write masks of anomalous patches, as PNG.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of all images, sorted by score, as .html.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Score images: path, score (higher is more normal), p-value, label, the hottest box, and what went wrong.

    label is +1 (normal) or -1 (anomalous), the box is in pixels of the image. An image that cannot be read is a row
    with its error, and the exit code is then 3.
    """
    pipe = open_model(model, device, on_error="skip")
    paths = list_images(places)
    progress = Progress(len(paths))
    failed = 0
    with ExitStack() as stack:
        table = Table(output, stack)
        page = None
        if report is not None:
            title = f"{model.name}, {len(paths)} images"
            page = stack.enter_context(HtmlReport(report, threshold=pipe[-1].offset_, title=title))
        for number, row in enumerate(rows(pipe, paths), 1):
            table.write(row)
            if row["error"]:
                failed += 1
            else:
                if maps is not None:
                    _save(overlay(pipe, row["map"], open_upright(row["path"])), maps, number, row["path"])
                if masks is not None:
                    _save(mask_image(pipe, row), masks, number, row["path"])
            if page is not None:
                _add_to_report(page, pipe, row)
            progress.show(number)
    if failed:
        typer.echo(f"{failed} of {len(paths)} images cannot be read; see the column error", err=True)
        raise typer.Exit(UNREADABLE)


class Table:
    """Rows as CSV or JSON lines, each written as it comes."""

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
    """Yield a row per image, with its map and its size; a few images are in memory at a time."""
    size = pipe[-1].step_size or 16
    for start in range(0, len(paths), size):
        yield from _score(pipe, list(paths[start : start + size]))


def _score(pipe: Pipeline, paths: list[Path]) -> list[dict[str, Any]]:
    extractor, detector = pipe[0], pipe[-1]
    features = extractor.transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)  # the rows tell which, and why
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


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image as it is shown, from its header."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
    return (width, height) if turned else (height, width)


def open_upright(path: str, side: int | None = None) -> Image.Image:
    """Return an image as it is shown, no larger than a square of this side."""
    with Image.open(path) as image:
        if side is not None:
            image.draft("RGB", (side, side))  # JPEG files are decoded at a fraction of their size
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":  # 16 bits; PIL would cut the upper half off
            upright = Image.fromarray((np.asarray(upright, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8))
        upright = upright.convert("RGB")
    if side is not None:
        upright.thumbnail((side, side))
    return upright


def hottest_box(
    anomaly_map: np.ndarray, threshold: float, covered: tuple[float, float, float, float]
) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of the anomalous region around the largest value.

    Where nothing is above the threshold it is the patch of the largest value.
    """
    peak = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    regions, _ = label(anomaly_map > threshold)
    inside = regions == regions[peak] if regions[peak] else np.zeros_like(regions, dtype=bool)
    inside[peak] = True
    row, column = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left, height, width = covered
    y, x = height / anomaly_map.shape[0], width / anomaly_map.shape[1]
    first = round(top + row[0] * y), round(left + column[0] * x)
    last = round(top + (row[-1] + 1) * y), round(left + (column[-1] + 1) * x)
    return (*first, last[0] - first[0], last[1] - first[1])


def _stretched(pipe: Pipeline, values: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Return a map laid over an image of a size, zero where it is not inspected."""
    top, left, height, width = (round(value) for value in pipe[0].covered_box(size))
    laid = np.zeros(size, dtype=np.float32)
    stretched = Image.fromarray(values.astype(np.float32)).resize((width, height), resample)
    laid[top : top + height, left : left + width] = np.asarray(stretched)
    return laid


def overlay(pipe: Pipeline, anomaly_map: np.ndarray, image: Image.Image) -> Image.Image:
    """Return the image in grey with the heat map over it: black is 0, yellow twice the threshold and more."""
    from matplotlib import colormaps

    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    size = grey.shape[:2]
    limit = pipe[-1].map_threshold_
    limit = 2 * limit if 0 < limit < np.inf else 1
    warmth = _stretched(pipe, anomaly_map, size, Image.Resampling.BILINEAR) / limit
    colours = 255 * colormaps["inferno"](np.clip(warmth, 0, 1))[..., :3]
    inspected = _stretched(pipe, np.ones_like(anomaly_map), size, Image.Resampling.NEAREST)[..., None]
    return Image.fromarray((grey + 0.6 * inspected * (colours - grey)).astype(np.uint8))


def _add_to_report(page: HtmlReport, pipe: Pipeline, row: dict[str, Any]) -> None:
    if row["error"]:
        page.add(row["path"], error=row["error"])
        return
    thumbnail = open_upright(row["path"], page.thumbnail_size)
    heat_map = overlay(pipe, row["map"], thumbnail)
    page.add(row["path"], row["score"], p_value=row["p_value"], image=thumbnail, heat_map=heat_map)


def mask_image(pipe: Pipeline, row: dict[str, Any]) -> Image.Image:
    """Return a mask of the image's size, white where a patch is anomalous."""
    marked = _stretched(pipe, row["map"] > pipe[-1].map_threshold_, row["size"], Image.Resampling.NEAREST)
    return Image.fromarray((255 * marked).astype(np.uint8))


def _save(image: Image.Image, folder: Path, number: int, path: str) -> None:
    """Write a picture; the number keeps images of one name in two folders apart."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:06d}_{Path(path).stem}.png")

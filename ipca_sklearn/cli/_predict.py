"""`predict`: images to rows of a table, heat maps, masks and a report, a few images at a time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageOps
from scipy.ndimage import label
from sklearn.pipeline import Pipeline

from ipca_sklearn.cli._common import UNREADABLE, Device, ModelFile, Progress, list_images, open_model

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
    device: Device = "auto",
) -> None:
    """Score images: path, score (higher is more normal), p-value, label, the hottest box, and what went wrong.

    label is +1 (normal) or -1 (anomalous), the box is in pixels of the image. An image that cannot be read is a row
    with its error, and the exit code is then 3.
    """
    pipe = open_model(model, device)
    paths = list_images(places)
    progress = Progress(len(paths))
    failed = 0
    with ExitStack() as stack:
        table = Table(output, stack)
        for number, row in enumerate(rows(pipe, paths), 1):
            table.write(row)
            if row["error"]:
                failed += 1
            else:
                if maps is not None:
                    _save(overlay(pipe, row), maps, number, row["path"])
                if masks is not None:
                    _save(mask_image(pipe, row), masks, number, row["path"])
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
        block = list(paths[start : start + size])
        try:
            yield from _score(pipe, block)
        except (OSError, ValueError):  # one of them cannot be read: which?
            for path in block:
                try:
                    yield from _score(pipe, [path])
                except (OSError, ValueError) as error:
                    yield dict.fromkeys(COLUMNS) | {"path": str(path), "error": " ".join(str(error).split())}


def _score(pipe: Pipeline, paths: list[Path]) -> list[dict[str, Any]]:
    extractor, detector = pipe[0], pipe[-1]
    maps = detector.transform(extractor.transform(paths))
    scores = detector.score_maps(maps)
    p_values = detector.p_values(scores=scores)
    found = []
    for path, anomaly_map, score, p_value in zip(paths, maps, scores, p_values, strict=True):
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


def overlay(pipe: Pipeline, row: dict[str, Any]) -> Image.Image:
    """Return the image in grey with the heat map over it: black is 0, yellow twice the threshold and more."""
    from matplotlib import colormaps

    with Image.open(row["path"]) as image:
        grey = np.asarray(ImageOps.exif_transpose(image).convert("L"), dtype=np.float32)[..., None]
    limit = pipe[-1].map_threshold_
    warmth = _stretched(pipe, row["map"], row["size"], Image.Resampling.BILINEAR) / (2 * limit if limit > 0 else 1)
    colours = 255 * colormaps["inferno"](np.clip(warmth, 0, 1))[..., :3]
    inspected = _stretched(pipe, np.ones_like(row["map"]), row["size"], Image.Resampling.NEAREST)[..., None]
    return Image.fromarray((grey + 0.6 * inspected * (colours - grey)).astype(np.uint8))


def mask_image(pipe: Pipeline, row: dict[str, Any]) -> Image.Image:
    """Return a mask of the image's size, white where a patch is anomalous."""
    marked = _stretched(pipe, row["map"] > pipe[-1].map_threshold_, row["size"], Image.Resampling.NEAREST)
    return Image.fromarray((255 * marked).astype(np.uint8))


def _save(image: Image.Image, folder: Path, number: int, path: str) -> None:
    """Write a picture; the number keeps images of one name in two folders apart."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:06d}_{Path(path).stem}.png")

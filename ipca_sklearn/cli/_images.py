"""Images scored by a model, as the rows and the pictures that `predict`, `watch` and reports of `fit` show."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn import ProductRouter, SkippedImagesWarning
from ipca_sklearn._utils._precision import below
from ipca_sklearn._utils._tables import COLUMNS
from ipca_sklearn.cli._terminal import one_line, warn
from ipca_sklearn.detection import find_defects
from ipca_sklearn.inspection import HtmlReport, heat_layer, hottest_box, open_upright, overlay

_SECONDS_BETWEEN_PAGES = 60.0
_LATEST_SIZE = 320  # of the pictures of a page that is written again and again


def score_images(
    pipe: Pipeline,
    paths: Sequence[Path],
    min_area: float = 0,
    merge_distance: float = 0,
    product: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a row per image. One step of images is in memory at a time.

    Besides the columns of the table a row has `pipe`, the pipeline of one product that scored the image, and, as far as
    the image was read, its `anomaly_map`, its `size` and its `defects`; of several products also `scored_as`, the name
    of that product, and `is_known`, whether the image looks like it.
    """
    detector = pipe[-1].detector if isinstance(pipe[-1], ProductRouter) else pipe[-1]
    step = detector.step_size or 16
    for start in range(0, len(paths), step):
        yield from _score_step(pipe, list(paths[start : start + step]), min_area, merge_distance, product)


def _score_step(
    pipe: Pipeline, paths: list[Path], min_area: float, merge_distance: float, product: str | None
) -> Iterator[dict[str, Any]]:
    extractor = pipe[0]
    features = extractor.transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)  # the rows have the reasons
        maps, scored = _score_maps(pipe, features, product)
    placed = features.alignment() if extractor.align is not None else None
    sizes = features.image_sizes()
    for index, (path, anomaly_map) in enumerate(zip(paths, maps, strict=True)):
        row: dict[str, Any] = dict.fromkeys(column.name for column in COLUMNS) | {"path": str(path), "pipe": pipe}
        if index in features.skipped:
            yield row | {"error": one_line(features.skipped[index])}
            continue
        row |= scored[index] | {"anomaly_map": anomaly_map}
        if placed is not None:
            row |= {"aligned": bool(placed["aligned"][index]), "alignment": float(placed["quality"][index])}
        size = sizes[index]
        if size is None:  # the file has gone or changed since it was scored
            yield row | {"error": _why_unreadable(path, extractor.max_pixels)}
            continue
        detector = row["pipe"][-1]
        (defects,) = find_defects(
            anomaly_map[None],
            detector.map_threshold_,
            min_area=min_area,
            merge_distance=merge_distance,
            image_sizes=size,
            covered_box=extractor.covered_box,
            region=detector.map_region_,
            normal_maxima=detector.calibration_maxima_,
        )
        row |= {"size": size, "defects": defects}
        row |= zip(("top", "left", "height", "width"), _boxes(pipe, row)[0], strict=True)
        yield row | {"n_defects": len(row["defects"]), "defect_area": sum(defect.area for defect in row["defects"])}


def _score_maps(pipe: Pipeline, features: Any, product: str | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the maps, and for each image scores, label, and the pipeline of one product that gave them."""
    detector = pipe[-1]
    if not isinstance(detector, ProductRouter):
        maps = detector.transform(features)
        scores = detector.score_maps(maps)
        labels = np.where(below(scores, detector.offset_), -1, 1)
        columns = {"score": scores, "p_value": detector.p_values(scores=scores), "label": labels}
        return maps, _rows_of(columns)
    routed = detector.route(features, product)
    parts = {name: Pipeline([pipe.steps[0], ("detector", detector.detectors_[name])]) for name in detector.detectors_}
    names = routed.products.copy()
    if product is None:
        names[~routed.is_known] = None
    columns = {
        "product": names,
        "product_p_value": routed.product_p_values,
        "score": routed.scores,
        "p_value": routed.p_values,
        "label": routed.labels,
        "scored_as": routed.products,
        "is_known": routed.is_known,
    }
    rows = zip(routed.products, _rows_of(columns), strict=True)
    return routed.maps, [row | {"pipe": parts.get(name)} for name, row in rows]


def _rows_of(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a dict of Python's own numbers for each row."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _boxes(pipe: Pipeline, row: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the defects of an image; without any, that of the patch with the largest value."""
    boxes = [defect.box for defect in row["defects"]]
    return boxes or [hottest_box(row["anomaly_map"], inf, pipe[0].covered_box(row["size"]))]


def draw(pipe: Pipeline, row: dict[str, Any], with_map: bool, page: HtmlReport | None) -> dict[str, Any]:
    """Return the pictures of a row that show its image; if that cannot be read any more, the row gets the reason.

    `"map"` is the heat map over the image, `"report"` what `HtmlReport.add` takes.
    """
    pictures: dict[str, Any] = {"report": {}}
    limit = pipe[0].max_pixels
    if row["error"] is not None:
        return pictures
    try:
        if with_map:
            pictures["map"] = overlay(pipe, row["anomaly_map"], open_upright(row["path"], max_pixels=limit))
        if page is not None:
            image = open_upright(row["path"], max(page.thumbnail_size, page.picture_size or 0), limit)
            pictures["report"] = {
                "image": image,
                "heat_map": heat_layer(pipe, row["anomaly_map"], _shrunk(row["size"], 2 * page.thumbnail_size)),
                "boxes": _boxes(pipe, row),
                "size": row["size"],
            }
    except ImportError:  # of matplotlib: not the image's fault
        raise
    except Exception as error:  # decoders raise whatever they like, and a single image never ends a run
        row["error"] = _unreadable(error)
    return pictures


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a size of the same shape that fits a square of this side."""
    factor = min(1.0, side / max(size))
    return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def _why_unreadable(path: Path, max_pixels: int) -> str:
    try:
        open_upright(path, max_pixels=max_pixels)
    except Exception as error:
        return _unreadable(error)
    return _unreadable("it is there again by now")


def _unreadable(error: object) -> str:
    return f"scored, but then it could not be read again: {one_line(error)}"


class LatestReport(HtmlReport):
    """The page of the latest images, written again at most once a minute; one that cannot be written is a warning.

    Images are kept as the page holds them: measured on leather of 1024 x 1024 pixels, 27 kB each.
    """

    def __init__(self, path: Path, *, title: str, n_images: int, **settings: Any) -> None:
        super().__init__(path, title=f"{title}, the latest {n_images} images", picture_size=_LATEST_SIZE, **settings)
        self._latest: deque[Any] = deque(maxlen=n_images)
        self._n_new = 0
        self._written_at = -_SECONDS_BETWEEN_PAGES

    def go_on(self, paths: Iterable[str]) -> None:
        """Begin with the images of the page that is there, as far as they are among these paths."""
        if not os.path.exists(self.path):
            return
        try:
            earlier = self.read_encoded()
        except (OSError, ValueError) as error:
            warn(f"the report begins anew: {error}")
            return
        known = {image.row["name"] for image in earlier}.intersection(paths)
        self._latest.extend(image for image in earlier if image.row["name"] in known)

    def add_encoded(self, image: Any) -> None:
        """Keep an image for the next page."""
        self._latest.append(image)
        self._n_new += 1
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write the page if it has news and is a minute old."""
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_PAGES:
            self.write()

    def write(self) -> None:
        """Write the page if it has news."""
        if not self._n_new:
            return
        self._written_at = time.monotonic()
        try:
            with self:
                for image in self._latest:
                    super().add_encoded(image)
        except OSError as error:
            warn(f"the report is not written: {error}")
        else:
            self._n_new = 0

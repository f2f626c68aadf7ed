"""A report of the latest images of a run that does not end."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ipca_sklearn.cli._text import warn
from ipca_sklearn.inspection import HtmlReport

SECONDS_BETWEEN_PAGES = 60.0
N_IMAGES = 500


class _Shown(NamedTuple):
    row: dict[str, Any]
    image: bytes | None
    heat_map: bytes | None


class LatestReport:
    """The page of `HtmlReport` for the latest images, written again at most once a minute.

    Their pictures are kept as JPEG, a few kilobytes each. A page that cannot be written is a warning.

    Parameters
    ----------
    path : Path
        Page to write.
    threshold : float
        `offset_` of the detector.
    title : str
        Heading of the page.
    """

    def __init__(self, path: Path, *, threshold: float, title: str) -> None:
        self._path, self._threshold, self._title = path, threshold, title
        self.thumbnail_size = self._page().thumbnail_size
        self._latest: deque[_Shown] = deque(maxlen=N_IMAGES)
        self._n_new = 0
        self._last = -SECONDS_BETWEEN_PAGES

    def add(self, row: Mapping[str, Any], pictures: Mapping[str, Image.Image]) -> None:
        """Add the row of an image, with its pictures `thumbnail` and `heat_map` if there are any."""
        kept = {name: row[name] for name in ("path", "score", "p_value", "error")}
        self._latest.append(_Shown(kept, _packed(pictures.get("thumbnail")), _packed(pictures.get("heat_map"))))
        self._n_new += 1
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write the page if it has news and is a minute old."""
        if self._n_new and time.monotonic() - self._last >= SECONDS_BETWEEN_PAGES:
            self.write()

    def write(self) -> None:
        """Write the page if it has news."""
        if not self._n_new:
            return
        self._last = time.monotonic()
        try:
            with self._page() as page:
                for row, image, heat_map in self._latest:
                    page.add(
                        row["path"],
                        row["score"],
                        p_value=row["p_value"],
                        image=_unpacked(image),
                        heat_map=_unpacked(heat_map),
                        error=row["error"],
                    )
        except OSError as error:
            warn(f"the report is not written: {error}")
        else:
            self._n_new = 0

    def _page(self) -> HtmlReport:
        title = f"{self._title}, the latest {N_IMAGES} images"
        return HtmlReport(self._path, threshold=self._threshold, title=title)


def _packed(picture: Image.Image | None) -> bytes | None:
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _unpacked(content: bytes | None) -> Image.Image | None:
    return None if content is None else Image.open(io.BytesIO(content), formats=["JPEG"])

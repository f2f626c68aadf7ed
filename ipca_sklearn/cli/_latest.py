"""A report of the latest images of a run that does not end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ipca_sklearn.cli._text import warn
from ipca_sklearn.inspection import HtmlReport, ModelCard
from ipca_sklearn.inspection._report import EncodedImage, images_of

SECONDS_BETWEEN_PAGES = 60.0
N_IMAGES = 500
PICTURE_SIZE = 320


class LatestReport:
    """The page of `HtmlReport` for the latest images, written again at most once a minute.

    Images are kept as the page holds them: measured on leather of 1024 x 1024 pixels, 27 kB each. A page that cannot be
    written is a warning.

    Parameters
    ----------
    path : Path
        Page to write.
    threshold : float
        `offset_` of the detector.
    title : str
        Heading of the page.
    normal_scores : ndarray
        `calibration_scores_` of the detector.
    model, source : str or None, default=None
        Which model has scored images from where, for the page to say.
    card : ModelCard or None, default=None
        The card of the model, for the page to show.
    """

    def __init__(
        self,
        path: Path,
        *,
        threshold: float,
        title: str,
        normal_scores: np.ndarray,
        model: str | None = None,
        source: str | None = None,
        card: ModelCard | None = None,
    ) -> None:
        self._path, self._threshold, self._title, self._normal_scores = path, threshold, title, normal_scores
        self._model, self._source, self._card = model, source, card
        self.page = self._page()  # not written: it has the sizes of the pictures
        self._latest: deque[EncodedImage] = deque(maxlen=N_IMAGES)
        self._n_new = 0
        self._last = -SECONDS_BETWEEN_PAGES

    def go_on(self, paths: Iterable[str]) -> None:
        """Begin with the images of the page that is there, as far as they are among these paths."""
        if not self._path.exists():
            return
        try:
            earlier = images_of(self._path, self.page.title)
        except (OSError, ValueError) as error:
            warn(f"the report begins anew: {error}")
            return
        known = {image.row["name"] for image in earlier}.intersection(paths)
        self._latest.extend(image for image in earlier if image.row["name"] in known)

    def add(self, row: Mapping[str, Any], pictures: Mapping[str, Any]) -> None:
        """Add the row of an image, with the pictures for `HtmlReport.add` if there are any."""
        self._latest.append(
            self.page.encode(row["path"], row["score"], p_value=row["p_value"], error=row["error"], **pictures)
        )
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
                for image in self._latest:
                    page.add_encoded(image)
        except OSError as error:
            warn(f"the report is not written: {error}")
        else:
            self._n_new = 0

    def _page(self) -> HtmlReport:
        return HtmlReport(
            self._path,
            threshold=self._threshold,
            title=f"{self._title}, the latest {N_IMAGES} images",
            picture_size=PICTURE_SIZE,
            normal_scores=self._normal_scores,
            model=self._model,
            source=self._source,
            card=self._card,
        )

"""A page of many images, sorted by score, to look through in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import resources
from typing import Any

from PIL import Image

from ipca_sklearn._utils._files import replacing

__all__ = ["HtmlReport"]


class HtmlReport:
    """One HTML file with thumbnails, heat maps and scores, which needs no other file and no network.

    The images are sorted by score, the most anomalous first. A slider moves the threshold, and says how many images are
    anomalous then; images can be filtered by label and by their path; the heat map shows under the pointer, or on
    focus. The address of the page (after #) keeps the settings. Only thumbnails near the window are decoded, so that
    10,000 images are no problem for the browser.

    Use it as a context manager: the file takes the place of an older one when the block ends without an error.

    Parameters
    ----------
    path : str or path-like
        File to write.
    threshold : float
        Images with lower scores are anomalous: `offset_` of the detector.
    title : str, default="Anomaly report"
        Heading of the page.
    thumbnail_size : int, default=128
        Longer side of the pictures in pixels.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.

    Notes
    -----
    Pictures wait in a temporary file, so memory does not depend on their number but for a few bytes each. The page
    allows itself, by its content security policy, nothing but its own script, its own style and pictures within it;
    paths and messages are put in as text.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from ipca_sklearn.inspection import HtmlReport
    >>> picture = Image.new("RGB", (200, 100))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "report.html")
    ...     with HtmlReport(path, threshold=-3.0) as report:
    ...         report.add("a.png", -2.5, p_value=0.4, image=picture, heat_map=picture)
    ...         report.add("b.png", error="b.png is not an image")
    ...     path.stat().st_size < 20_000
    True
    """

    def __init__(
        self, path: Any, *, threshold: float, title: str = "Anomaly report", thumbnail_size: int = 128
    ) -> None:
        self.path = path
        self.threshold = threshold
        self.title = title
        self.thumbnail_size = thumbnail_size
        self._rows: list[tuple[float, int, int]] = []  # score, and where the row is in the temporary file
        self._closing = ExitStack()

    def __enter__(self) -> HtmlReport:
        with ExitStack() as stack:
            self._page = stack.enter_context(replacing(self.path))
            self._waiting = stack.enter_context(tempfile.TemporaryFile())
            self._closing = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if error is None:
                self._write()
        except BaseException as own:
            self._closing.__exit__(type(own), own, own.__traceback__)
            raise
        self._closing.__exit__(kind, error, traceback)

    def add(
        self,
        name: str,
        score: float | None = None,
        *,
        p_value: float | None = None,
        image: Image.Image | None = None,
        heat_map: Image.Image | None = None,
        error: str | None = None,
    ) -> None:
        """Add an image.

        Parameters
        ----------
        name : str
            Its path, shown as it is.
        score : float or None
            Higher is more normal; None for an image that could not be read, which is listed first.
        p_value : float or None, default=None
            How often a normal image scores as low.
        image, heat_map : PIL image or None, default=None
            Of any size; shrunk to `thumbnail_size`.
        error : str or None, default=None
            Why there is no score.
        """
        known = score is not None and math.isfinite(score)
        row = {
            "name": name,
            "score": score if known else None,
            "p": p_value if known else None,
            "error": error,
            "image": self._picture(image),
            "heat": self._picture(heat_map),
        }
        # "<" could end the block of the page that holds the rows.
        text = json.dumps(row, ensure_ascii=True).replace("<", "\\u003c").encode()
        self._rows.append((float(score) if known else -math.inf, self._waiting.tell(), len(text)))  # type: ignore[arg-type]
        self._waiting.write(text)

    def _picture(self, image: Image.Image | None) -> str | None:
        if image is None:
            return None
        small = image.convert("RGB")
        small.thumbnail((self.thumbnail_size, self.thumbnail_size))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=65, optimize=True)
        return base64.b64encode(buffer.getvalue()).decode()

    def _sorted_rows(self) -> Iterator[bytes]:
        separator = b"\n"
        for _, start, length in sorted(self._rows, key=lambda row: row[:2]):
            self._waiting.seek(start)
            yield separator + self._waiting.read(length)
            separator = b",\n"

    def _write(self) -> None:
        files = resources.files("ipca_sklearn.inspection") / "assets"
        script, style, page = (
            (files / name).read_text(encoding="utf-8") for name in ("report.js", "report.css", "page.html")
        )
        settings = {"threshold": self.threshold if math.isfinite(self.threshold) else None}
        values = {
            "title": html.escape(self.title),
            "script": script,
            "style": style,
            "script_hash": _hash(script),
            "style_hash": _hash(style),
            "settings": json.dumps(settings),
        }
        # In one pass: a title may hold what looks like another name to fill in.
        for number, part in enumerate(re.split(r"{{(\w+)}}", page)):
            if number % 2 == 0:
                self._page.write(part.encode())
            elif part == "rows":
                self._page.writelines(self._sorted_rows())
            else:
                self._page.write(values[part].encode())


def _hash(text: str) -> str:
    """Return what a content security policy knows a script or a style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

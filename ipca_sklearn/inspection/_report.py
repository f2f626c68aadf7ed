"""HtmlReport: a page of many images, sorted by score, for a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import resources
from types import TracebackType

from PIL import Image

from ipca_sklearn._utils._files import naming, replacing
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.inspection._pictures import in_8_bits

__all__ = ["HtmlReport"]


class HtmlReport:
    """One HTML file with thumbnails, heat maps and scores; it needs no other file and no connection.

    The images are sorted by score, the most anomalous first. A slider moves the threshold, and the page shows how many
    images are anomalous with it. Images can be filtered by label and by path. The heat map appears under the pointer or
    on focus. The address of the page (after #) keeps the settings. The browser decodes only the thumbnails near the
    window, so it can show 10,000 images.

    Use it as a context manager: the file replaces an older one when the block ends without an error.

    Parameters
    ----------
    path : str or path-like
        File to write.
    threshold : float
        `offset_` of the detector: images with lower scores are anomalous.
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
    Pictures are kept in a temporary file until the page is written, so an image takes only a few bytes of memory. The
    content security policy of the page allows its own script, its own style and the pictures in it, and nothing else.
    Paths and messages are inserted as text.

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
        self, path: PathLike, *, threshold: float, title: str = "Anomaly report", thumbnail_size: int = 128
    ) -> None:
        self.path = path
        self.threshold = threshold
        self.title = title
        self.thumbnail_size = thumbnail_size
        self._rows: list[tuple[float, int, int]] = []  # score, start and length of the row in the file
        self._closing = ExitStack()

    def __enter__(self) -> HtmlReport:
        with ExitStack() as stack:
            self._page = stack.enter_context(replacing(self.path))
            self._row_file = stack.enter_context(tempfile.TemporaryFile())
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._write()
        except BaseException as own:
            self._closing.__exit__(type(own), own, own.__traceback__)
            raise
        self._closing.__exit__(kind, error, traceback)

    def add(
        self,
        name: PathLike,
        score: float | None = None,
        *,
        p_value: float | None = None,
        image: Image.Image | None = None,
        heat_map: Image.Image | None = None,
        error: object = None,
    ) -> None:
        """Add an image.

        Parameters
        ----------
        name : str or path-like
            Path of the image, shown as given.
        score : float or None
            Higher is more normal; None or NaN for an image that could not be read. These are listed first. A number of
            numpy or torch is one too, also for `p_value`.
        p_value : float or None, default=None
            Share of normal images that score as low or lower; None or NaN is not known.
        image, heat_map : PIL image or None, default=None
            Of any size; shrunk to `thumbnail_size`.
        error : str, Exception or None, default=None
            Why there is no score.
        """
        score = _number(score)
        row = {
            "name": os.fsdecode(name),
            "score": score,
            "p": None if score is None else _number(p_value),
            "error": None if error is None else str(error),
            "image": self._picture(image),
            "heat": self._picture(heat_map),
        }
        # Unescaped, "<" could end the element of the page that holds the rows.
        text = json.dumps(row, ensure_ascii=True).replace("<", "\\u003c").encode()
        self._rows.append((-math.inf if score is None else score, self._row_file.tell(), len(text)))
        with naming(tempfile.gettempdir()):
            self._row_file.write(text)

    def _picture(self, image: Image.Image | None) -> str | None:
        if image is None:
            return None
        small = in_8_bits(image)
        small.thumbnail((self.thumbnail_size, self.thumbnail_size))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=65, optimize=True)
        return base64.b64encode(buffer.getvalue()).decode()

    def _sorted_rows(self) -> Iterator[bytes]:
        separator = b"\n"
        for _, start, length in sorted(self._rows, key=lambda row: row[:2]):
            self._row_file.seek(start)
            yield separator + self._row_file.read(length)
            separator = b",\n"

    def _write(self) -> None:
        files = resources.files("ipca_sklearn.inspection") / "assets"
        script, style, page = (
            (files / name).read_text(encoding="utf-8") for name in ("report.js", "report.css", "page.html")
        )
        settings = {"threshold": _number(self.threshold)}
        values = {
            "title": html.escape(self.title),
            "script": script,
            "style": style,
            "script_hash": _hash(script),
            "style_hash": _hash(style),
            "settings": json.dumps(settings),
        }
        # In one pass, as a title may contain what looks like a placeholder.
        for number, part in enumerate(re.split(r"{{(\w+)}}", page)):
            if number % 2 == 0:
                self._page.write(part.encode())
            elif part == "rows":
                with naming(tempfile.gettempdir()):  # reading flushes the rows; errors of the page have a name already
                    self._page.writelines(self._sorted_rows())
            else:
                self._page.write(values[part].encode(errors="backslashreplace"))  # a title may be the name of a file


def _number(value: float | None) -> float | None:
    """Return a number of any kind as a float of Python, for JSON, which has no NaN and no infinity."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _hash(text: str) -> str:
    """Return the hash by which a content security policy identifies a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

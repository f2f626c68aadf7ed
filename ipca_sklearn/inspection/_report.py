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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from ipca_sklearn._utils._files import naming, printable, replacing
from ipca_sklearn._utils._typing import ArrayLike, PathLike
from ipca_sklearn._version import __version__
from ipca_sklearn.inspection._model_card import ModelCard, describe_model
from ipca_sklearn.inspection._pictures import in_8_bits

# In the order in which they are read: each uses what those before it define.
_SCRIPTS = ("words.js", "ticks.js", "histogram.js", "cards.js", "viewer.js", "report.js", "controls.js")
_ROW = ("name", "score", "p", "note", "anomalous", "error", "image", "heat", "boxes", "n_boxes", "size")
# Of an image: more outlines hide what they are around.
_MOST_BOXES = 100
_CARD = '<details id="card">\n<summary>Model card</summary>\n<div class="card-tables">\n{}\n</div>\n</details>'
_PICTURE = rb"data:image/jpeg;base64,[A-Za-z0-9+/=]+"


@dataclass(frozen=True)
class EncodedImage:
    """An image as the page holds it."""

    row: dict[str, Any]
    picture: bytes | None


@dataclass(eq=False, repr=False)
class HtmlReport:
    """One HTML file with pictures, heat maps and scores; it needs no other file and no connection.

    The images are sorted by score, the most anomalous first. A histogram shows the scores, with the threshold as a line
    to be dragged, and the page says how many images are anomalous with it. Images can be filtered, sorted and grouped
    by folder. A click opens one large, with its heat map by a slider and outlines of the anomalous regions. Each can be
    ticked as good or as a defect; the browser keeps the ticks, and a button saves them as a CSV file, which
    `ipca-sklearn update`, `threshold` and `evaluate` take as `--reviewed`. The address of the page (after #) keeps the
    settings. The browser decodes only the pictures near the window, so the page can show 10,000 images. A line below
    the title says which model has scored which images, and when and by which version the page was written.

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
        Longer side of the small pictures in pixels.
    picture_size : int or None, default=640
        Longer side of the large pictures in pixels; None leaves them out, and the small ones are enlarged.
    normal_scores : array-like of shape (n,) or None, default=None
        `calibration_scores_` of the detector. With them the page draws the scores of normal images behind the others,
        and says how many of these a threshold calls anomalous.
    model : str, path-like, estimator or None, default=None
        Which model has scored. A str is shown as it is, a `Path` by the name of the file and a digest of its bytes, a
        fitted estimator by its classes and a digest of what it has learnt.
    source : str or None, default=None
        Where the images come from: a folder, say. Shown beside their number.
    card : ModelCard or None, default=None
        What :func:`model_card` returned: the page has it in a part that opens with a click.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist, or `model` names no file.
    TypeError
        `model` is none of these.

    Notes
    -----
    Measured on leather: an image of 256 x 256 pixels takes 22 kB of the page, one of 1024 x 1024 pixels 56 kB, and
    either takes 9 kB without a large picture. Pictures are kept in a temporary file until the page is written, so an
    image takes only a few bytes of memory. The content security policy of the page allows its own script, its own
    style and the pictures in it, and nothing else. Paths and messages are inserted as text. The browser keeps the ticks
    for the address of the file (`localStorage`); where it keeps nothing the page says so.

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
    ...         report.add("a.png", -2.5, p_value=0.4, image=picture, boxes=[(20, 30, 10, 10)])
    ...         report.add("b.png", error="b.png is not an image")
    ...     path.stat().st_size < 50_000
    True
    """

    path: PathLike
    _: KW_ONLY
    threshold: float
    title: str = "Anomaly report"
    thumbnail_size: int = 128
    picture_size: int | None = 640
    normal_scores: ArrayLike | None = None
    model: object = None
    source: str | None = None
    card: ModelCard | None = None

    def __post_init__(self) -> None:
        self._rows: list[tuple[float, int, int, int]] = []  # score; start, length of the row, and of the large picture
        self._closing = ExitStack()

    def __enter__(self) -> HtmlReport:
        self._rows.clear()  # the page may be written again
        self._model_text = None if self.model is None else describe_model(self.model)  # now: it may be written anew
        with ExitStack() as stack:
            self._page = stack.enter_context(replacing(self.path))
            self._row_file = stack.enter_context(tempfile.TemporaryFile())
            self._closing = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            with self._closing:
                self._write()
        else:
            self._closing.__exit__(kind, error, traceback)

    def add(
        self,
        name: PathLike,
        score: float | None = None,
        *,
        p_value: float | None = None,
        image: Image.Image | None = None,
        heat_map: Image.Image | None = None,
        boxes: Sequence[tuple[int, int, int, int]] = (),
        size: tuple[int, int] | None = None,
        note: str | None = None,
        is_anomalous: bool = False,
        error: object = None,
    ) -> None:
        """Add an image.

        Parameters
        ----------
        name : str or path-like
            Path of the image, shown as given. Images are known by it: it is what the ticks are kept and saved for.
        score : float or None
            Higher is more normal; None or NaN for an image that could not be read. These are listed first. A number of
            numpy or torch is one too, also for `p_value`.
        p_value : float or None, default=None
            Share of normal images that score as low or lower; None or NaN is not known.
        image, heat_map : PIL image or None, default=None
            Of any size and of the same shape; shrunk to `thumbnail_size` and `picture_size`. The heat map lies over the
            image: it may be transparent where nothing is anomalous.
        boxes : sequence of (int, int, int, int), default=()
            Outlines: top, left, height and width in pixels, as of `hottest_box`, the worst first. The first 100 are
            drawn, and the page says how many there are.
        size : (int, int) or None, default=None
            Height and width of the image that `boxes` are of, if `image` is a smaller copy of it.
        note : str or None, default=None
            A line below the score, such as the product that the image shows; the page can be searched for it.
        is_anomalous : bool, default=False
            The image is anomalous whatever its score, as one of an unknown product is.
        error : str, Exception or None, default=None
            Why there is no score.
        """
        score = _number(score)
        if image is not None and size is None:
            size = image.height, image.width
        row = {
            "name": os.fsdecode(name),
            "score": score,
            "p": None if score is None else _number(p_value),
            "note": note,
            "anomalous": is_anomalous,
            "error": None if error is None else str(error),
            "image": None if image is None else _jpeg(image, self.thumbnail_size, 70),
            "heat": None if heat_map is None else _layer(heat_map, 2 * self.thumbnail_size),
            "boxes": [[int(side) for side in box] for box in boxes[:_MOST_BOXES]],
            "n_boxes": len(boxes),
            "size": None if size is None else [int(side) for side in size],
        }
        picture = None
        if self.picture_size and image is not None and max(image.size) > self.thumbnail_size:
            picture = _jpeg(image, self.picture_size, 80).encode()
        self.add_encoded(EncodedImage(row, picture))

    def add_encoded(self, image: EncodedImage) -> None:
        """Add an image as a page of the same sizes holds it.

        :meta private:
        """
        # Unescaped, "<" could end the element of the page that holds the rows.
        row = json.dumps(image.row | {"id": len(self._rows)}, ensure_ascii=True).replace("<", "\\u003c").encode()
        picture = image.picture or b""
        score = -math.inf if image.row["score"] is None else image.row["score"]
        self._rows.append((score, self._row_file.tell(), len(row), len(picture)))
        with naming(tempfile.gettempdir()):
            self._row_file.write(row)
            self._row_file.write(picture)

    def read_encoded(self) -> list[EncodedImage]:
        """Return the images of an earlier page at the same path with the same title, in the order they were added.

        :meta private:
        """
        with open(self.path, "rb") as file:
            page = file.read()
        if f"<title>{html.escape(self.title)}</title>".encode(errors="backslashreplace") not in page:
            raise ValueError(f"{printable(self.path)} is no report of {printable(self.title)}")
        rows = re.search(rb'<script type="application/json" id="rows">(\[.*?\n\])</script>', page, re.DOTALL)
        found = re.finditer(rb'<script type="text/plain" id="picture-(\d+)">(%b)</script>' % _PICTURE, page)
        pictures = {int(match[1]): match[2] for match in found}
        try:
            if rows is None or not page.rstrip().endswith(b"</html>"):
                raise ValueError("a part is missing")
            by_number = {row.pop("id"): row for row in json.loads(rows[1])}
            return [
                EncodedImage({name: row[name] for name in _ROW}, pictures.get(number))
                for number, row in sorted(by_number.items())
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{printable(self.path)} is damaged") from error

    def _sorted_rows(self) -> Iterator[bytes]:
        separator = b"\n"
        for _, start, length, _ in sorted(self._rows, key=lambda row: row[:2]):
            self._row_file.seek(start)
            yield separator + self._row_file.read(length)
            separator = b",\n"

    def _pictures(self) -> Iterator[bytes]:
        """Yield the large pictures, each in an element of its own: the page reads one when it is opened."""
        for number, (_, start, row_length, length) in enumerate(self._rows):
            if length:
                self._row_file.seek(start + row_length)
                yield b'<script type="text/plain" id="picture-%d">' % number
                yield self._row_file.read(length) + b"</script>\n"

    def _write(self) -> None:
        files = resources.files("ipca_sklearn.inspection") / "assets"
        style, page, *scripts = (
            (files / name).read_text(encoding="utf-8") for name in ("report.css", "page.html", *_SCRIPTS)
        )
        script = '"use strict";\n{\n' + "\n".join(scripts) + "}\n"  # in a block: nothing of it is a global name
        known = np.empty(0) if self.normal_scores is None else np.asarray(self.normal_scores, dtype=np.float64)
        settings = {
            "threshold": _number(self.threshold),
            "normal_scores": sorted(float(f"{score:.6g}") for score in known[np.isfinite(known)]),
        }
        values = {
            "title": html.escape(self.title),
            "script": script,
            "style": style,
            "script_hash": _hash(script),
            "style_hash": _hash(style),
            "settings": json.dumps(settings),
            "provenance": _provenance(self._model_text, self.source, len(self._rows), _now()),
            "card": "" if self.card is None else _CARD.format(self.card.to_html()),
        }
        parts = {"rows": self._sorted_rows, "pictures": self._pictures}
        # In one pass, as a title may contain what looks like a placeholder.
        for number, part in enumerate(re.split(r"{{(\w+)}}", page)):
            if number % 2 == 0:
                self._page.write(part.encode())
            elif part in parts:
                with naming(tempfile.gettempdir()):  # reading flushes the rows; errors of the page have a name already
                    self._page.writelines(parts[part]())
            else:
                self._page.write(values[part].encode(errors="backslashreplace"))  # a title may be the name of a file


def _jpeg(image: Image.Image, side: int, quality: int) -> str:
    """Return a copy that fits a square of this side, as the address of a picture."""
    small = in_8_bits(image)
    small.thumbnail((side, side))
    return _address(small, "jpeg", quality=quality, optimize=True)


def _layer(image: Image.Image, side: int) -> str | None:
    """Return a layer as `_jpeg` does; None if all of it is transparent."""
    if not image.has_transparency_data:  # drawn over the image already
        return _jpeg(image, side, 70)
    small = image.convert("RGBA")
    if small.getchannel("A").getbbox() is None:
        return None
    small.thumbnail((side, side))
    return _address(small, "png", optimize=True)


def _address(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: float | None) -> float | None:
    """Return a number of any kind as a float of Python, for JSON, which has no NaN and no infinity."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _provenance(model: str | None, source: str | None, n_images: int, written: datetime) -> str:
    """Return the line of a page that says what it is, as HTML."""
    counted = f"{n_images} image{'' if n_images == 1 else 's'}"
    parts = [
        "" if model is None else f"Model: <b>{html.escape(model)}</b>",
        html.escape(counted if source is None else f"{counted}: {source}"),
        f'<time datetime="{written.isoformat(timespec="seconds")}">{written.strftime("%Y-%m-%d %H:%M %z")}</time>',
        f"ipca_sklearn {__version__}",
    ]
    return " · ".join(f"<span>{part}</span>" for part in parts if part)


def _now() -> datetime:
    """Return the time with the offset of the time zone."""
    return datetime.now().astimezone()


def _hash(text: str) -> str:
    """Return the hash by which a content security policy identifies a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

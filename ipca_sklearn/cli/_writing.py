"""Folders of pictures: their names, and what is there of earlier runs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn.cli._text import warn

_LONGEST_NAME = 255  # bytes, on most file systems
_OURS = re.compile(r"\d{6,}_.*\.(png|npy|tiff)", re.DOTALL)


def picture_names(images: Sequence[Path], end: str = ".png") -> list[str]:
    """Return a name of a picture for each image; the number keeps images of one name in two folders apart."""
    return [_picture_name(number, path, end) for number, path in enumerate(images, 1)]


def _picture_name(number: int, path: Path, end: str) -> str:
    start = f"{number:06d}_"
    stem = os.fsencode(path.stem)
    room = _LONGEST_NAME - len(start) - len(end)
    # Cut at a whole character, if the name has these.
    short = path.stem if len(stem) <= room else stem[:room].decode("utf-8", "ignore")
    return f"{start}{short}{end}"


class PictureFolder:
    """A folder that pictures are written to. At the end, a warning tells which are there of earlier runs.

    Nothing is removed: a picture of an earlier run may be one that somebody wants to keep.

    Parameters
    ----------
    option : str
        What the user calls it, for the message.
    folder : Path
        Made when the first picture is written.
    """

    def __init__(self, option: str, folder: Path) -> None:
        self._option = option
        self._folder = folder
        there = folder.iterdir() if folder.is_dir() else ()
        self._old = {file.name for file in there if _OURS.fullmatch(file.name)}

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._old:
            first = printable(min(self._old))
            warn(
                f"{self._option} {self._folder} also holds {len(self._old)} pictures of an earlier run, such as "
                f"{first}: remove them, or name a new folder for each run"
            )

    def save(self, picture: Image.Image | np.ndarray, name: str) -> None:
        """Write a picture, or a map of numbers as its name ends in .npy or .tiff."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with naming(self._folder / name):
            if isinstance(picture, Image.Image):
                picture.save(self._folder / name)
            elif name.endswith(".npy"):
                np.save(self._folder / name, picture)
            else:
                Image.fromarray(picture).save(self._folder / name, compression="tiff_deflate")
        self._old.discard(name)

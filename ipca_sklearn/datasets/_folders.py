"""What the loaders of folders share: listing images, and the Bunch that they return."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.utils import Bunch

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NORMAL_TYPE = "good"


class Sample(NamedTuple):
    """One test image: its path, the type of its defect ("good" is none), and the path of its mask."""

    path: Path
    defect_type: str
    mask_path: Path | None


def list_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, recursive: bool = False) -> list[Path]:
    """List the images in a folder, sorted by name; an absent folder has none.

    Names that begin with a dot are left out: archives made on macOS carry a ``._000.png`` for each ``000.png``. Links
    to absent files are listed; they fail when they are read.

    Parameters
    ----------
    folder : Path
        Folder to list.
    suffixes : tuple of str
        Lower-case suffixes to accept, in any case.
    recursive : bool, default=False
        Also list the subfolders: the images of a folder come first, then those of its subfolders by name. Hidden
        subfolders are left out, links to folders are not followed.

    Returns
    -------
    list of Path
    """
    found: list[Path] = []
    for parent, subfolders, names in os.walk(folder):
        found += [
            Path(parent, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if recursive else []
    return found


def require_images(folder: Path, what: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """List the images of a folder with `list_images`, and raise if there are none.

    Parameters
    ----------
    folder : Path
        Folder to list.
    what : str
        Name of the images in the message, for example "normal training image".
    suffixes : tuple of str
        Lower-case suffixes to accept, in any case.

    Returns
    -------
    list of Path
        At least one path.

    Raises
    ------
    FileNotFoundError
        If the folder is absent or has no image.
    """
    images = list_images(folder, suffixes)
    if not images:
        state = "has no images" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"no {what} found: {folder} {state}; expected files ending in {', '.join(suffixes)}.")
    return images


def existing_root(root: str | os.PathLike[str], layout: str) -> Path:
    """Return `root` as a path, or raise an error that names it and the expected layout.

    Parameters
    ----------
    root : str or path-like
        Folder given by the caller; a leading ``~`` is the home folder.
    layout : str
        The files expected in it, for the message.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If `root` does not exist.
    NotADirectoryError
        If `root` is a file.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"root={str(path)!r} is a file; pass the folder that holds {layout}.")
    raise FileNotFoundError(f"root={str(path)!r} does not exist; pass the folder that holds {layout}.")


def make_bunch(train_paths: list[Path], tests: list[Sample], descr: str) -> Bunch:
    """Return the Bunch of a loader of folders.

    Parameters
    ----------
    train_paths : list of Path
        The normal images to fit on.
    tests : list of Sample
        The test images in their final order.
    descr : str
        Source, licence, citation and split.

    Returns
    -------
    sklearn.utils.Bunch
    """
    defect_types = np.array([test.defect_type for test in tests], dtype=str)
    return Bunch(
        train_paths=train_paths,
        test_paths=[test.path for test in tests],
        test_labels=np.where(defect_types == NORMAL_TYPE, 1, -1),
        mask_paths=[test.mask_path for test in tests],
        defect_types=defect_types,
        DESCR=descr,
    )

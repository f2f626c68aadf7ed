"""Listing images of folders, and the Bunch that loaders return."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.utils import Bunch

from ipca_sklearn._utils._files import identity_of, printable
from ipca_sklearn._utils._messages import first_few
from ipca_sklearn.images._formats import FORMAT_NAMES, IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES

NORMAL_TYPE = "good"


class Sample(NamedTuple):
    """One test image: its path, the type of its defect ("good" is none), and the path of its mask."""

    path: Path
    defect_type: str
    mask_path: Path | None


def list_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, recursive: bool = False) -> list[Path]:
    """List the images in a folder, sorted by name; an absent folder has none.

    Names that begin with a dot are left out. Links to absent files are listed; they fail when they are read. If
    `recursive`, the images of a folder come first, then those of its subfolders by name; a folder that a link leads to
    is listed once, where it really is if that is here. Formats that are not read, and links to folders that are listed
    already or lead back, are warned of.

    Parameters
    ----------
    folder : Path
        Where the images lie.
    suffixes : tuple of str, default=IMAGE_SUFFIXES
        In lower case: how names of images end.
    recursive : bool, default=False
        Search subfolders too, through all levels.

    Returns
    -------
    list of Path

    Examples
    --------
    >>> from pathlib import Path
    >>> from ipca_sklearn.datasets import list_images
    >>> list_images(Path("no such folder"))
    []
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    passed_over: list[str] = []
    only_this = ((parent, names) for parent, _, names in itertools.islice(_visible(folder), 1))
    for parent, names in _folders(str(folder), passed_over) if recursive else only_this:
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and suffix in suffixes:
                found.append(Path(parent, name))
            elif not name.startswith(".") and suffix in OTHER_IMAGE_SUFFIXES:
                others[suffix] += 1
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        warnings.warn(
            f"{printable(folder)} has images of formats that are not read, and that are passed over: {counts}. Convert "
            f"them ({FORMAT_NAMES} are read), or ignore this warning",
            UserWarning,
            stacklevel=3,
        )
    if passed_over:
        warnings.warn(
            "folders that links lead to a second time, or back to, are listed once: passed over are "
            f"{first_few([*map(printable, passed_over)])}",
            UserWarning,
            stacklevel=3,
        )
    return found


def _visible(root: Path | str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk like `os.walk` in sorted order, without following links, and leave out hidden folders."""
    for parent, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield parent, subfolders, names


def _folders(root: str, passed_over: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder, its subfolders and those that links lead to, each once; add those not listed to `passed_over`."""
    # What is really here comes before what links lead to, so that a link to a neighbour does not take its place.
    here = {identity_of(parent) for parent, _, _ in _visible(root)}
    listed = set(here)
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        chosen = []
        for _, subfolders, names in _visible(parent):
            yield parent, names
            for path in (os.path.join(parent, name) for name in subfolders):
                identity = identity_of(path)
                is_link = os.path.islink(path)
                if identity in here and not is_link:
                    chosen.append(path)
                elif identity in listed or (is_link and identity in map(identity_of, _above(path))):
                    passed_over.append(path)
                else:
                    listed.add(identity)
                    chosen.append(path)
            break
        waiting += reversed(chosen)


def _above(path: str) -> Iterable[str]:
    """Return the real folders that a link is in: following a link to one of them leads round."""
    folder = Path(os.path.realpath(os.path.dirname(path)))
    return [str(folder), *map(str, folder.parents)]


def require_images(folder: Path, what: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """List the images of a folder, and raise a FileNotFoundError that names `what` is missing if there are none."""
    images = list_images(folder, suffixes)
    if not images:
        state = "has no images" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"no {what} found: {printable(folder)} {state}; expected files ending in {', '.join(suffixes)}."
        )
    return images


def existing_root(root: str | os.PathLike[str], layout: str) -> Path:
    """Return `root` with ``~`` expanded, or raise an error that names it and the expected layout."""
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"root={str(path)!r} is a file; pass the folder that holds {layout}.")
    raise FileNotFoundError(f"root={str(path)!r} does not exist; pass the folder that holds {layout}.")


def make_bunch(train_paths: list[Path], tests: list[Sample], descr: str, **facts: str) -> Bunch:
    """Return the Bunch of a loader of folders; its description is filled in with numbers of images and `facts`."""
    defect_types = np.array([test.defect_type for test in tests], dtype=str)
    is_normal = defect_types == NORMAL_TYPE
    return Bunch(
        train_paths=train_paths,
        test_paths=[test.path for test in tests],
        test_labels=np.where(is_normal, 1, -1),
        mask_paths=[test.mask_path for test in tests],
        defect_types=defect_types,
        DESCR=descr.format(
            n_train=len(train_paths),
            n_normal=is_normal.sum(),
            n_anomalous=(~is_normal).sum(),
            types=", ".join(np.unique(defect_types[~is_normal])) or "none",
            **facts,
        ),
    )

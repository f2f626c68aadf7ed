"""What is checked about images before a model learns them: that they are normal, and how many are copies."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli._text import warn


def refuse_test_images(folders: Iterable[Path], images: Iterable[Path]) -> None:
    """Raise if a folder is that of a whole data set: its test images, defects and masks would be learnt as normal.

    Parameters
    ----------
    folders : iterable of Path
        As the user named them.
    images : iterable of Path
        What they hold, at any depth.

    Raises
    ------
    ValueError
        The message names the folder to learn from.
    """
    places = sorted({image.parent for image in images})
    for folder in folders:
        for place in places:
            if place.is_relative_to(folder):
                _refuse_root(folder, place.relative_to(folder).parts)
    for place in places:
        _refuse_part(place)


def _refuse_root(folder: Path, parts: tuple[str, ...]) -> None:
    """Refuse a folder that has images at `parts`, if these lie in a part of a data set that is not for learning."""
    names = [part.lower() for part in parts]
    for depth, name in enumerate(names):
        if name in ("test", "ground_truth") or names[depth : depth + 2] == ["train", "good"]:
            root = folder.joinpath(*parts[:depth])
            good = root / "train" / "good"
            advice = f"Name {printable(good)}" if good.is_dir() else "Name the folder of normal images alone"
            raise ValueError(
                f"{printable(folder)} is or holds a data set ({printable(root / parts[depth])}): its test images, "
                f"defects and masks would be learnt as normal. {advice}"
            )


def _refuse_part(place: Path) -> None:
    """Refuse a folder of defects or masks of a data set: one that lies beside its train/good."""
    path = place.resolve()
    for part in (path, *path.parents):
        good = part.parent / "train" / "good"
        is_for_learning = part.name != "ground_truth" and (
            part.name != "test" or path.relative_to(part).parts[:1] == ("good",)
        )
        if not is_for_learning and good.is_dir():
            raise ValueError(
                f"{printable(place)} holds defects or masks of a data set, which would be learnt as normal. Name "
                f"{printable(good)}"
            )


def tell_copies(images: Sequence[Path]) -> None:
    """Print a warning if images are exact copies of others: each counts again, in the model and in the threshold.

    Sizes are compared first. Of files of one size, a part is read, and of those that agree in it all of their content.
    """
    together = [group for same_size in _groups(images, _size) for group in _groups(same_size, _middle)]
    copies = [group for maybe in together for group in _groups(maybe, _digest)]
    n_copies = sum(len(group) - 1 for group in copies)
    if n_copies:
        first, second = copies[0][:2]
        warn(
            f"{n_copies} of {len(images)} images are exact copies of others, such as {printable(second)} of "
            f"{printable(first)}: they count twice, and a threshold from copies of learnt images is too tight. Take "
            "them out"
        )


def _groups(images: Sequence[Path], key: Callable[[Path], Any]) -> list[list[Path]]:
    """Return the groups of at least two images of the same key. Files that cannot be read are left out."""
    by_key: dict[Any, list[Path]] = defaultdict(list)
    for image in images:
        try:
            by_key[key(image)].append(image)
        except OSError:  # it is reported when it is learnt
            continue
    return [group for group in by_key.values() if len(group) > 1]


def _size(path: Path) -> int:
    if not path.is_file():  # reading a pipe or a device may never end
        raise FileNotFoundError(path)
    return path.stat().st_size


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(4096)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

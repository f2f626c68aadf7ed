"""Training images: which a model may learn, which it has learnt, and which of these it should not have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import file_digest, printable
from ipca_sklearn._utils._messages import first_few
from ipca_sklearn.cli._arguments import Ticks, find_images
from ipca_sklearn.cli._images import draw, score_images
from ipca_sklearn.cli._predict import note_of, open_page
from ipca_sklearn.cli._terminal import warn
from ipca_sklearn.datasets import list_images
from ipca_sklearn.persistence import new_images, pixel_numbers

_FALSE_DISCOVERY_RATE = 0.05
_N_NAMED = 5  # images in a terminal


def not_learnt(pipe: Pipeline, paths: Sequence[Path]) -> list[Path]:
    """Return the images that a model has not learnt, known by their pixels."""
    if not hasattr(pipe[-1], "learnt_images_"):
        warn("the model was not written by `ipca-sklearn fit` and does not know its images: none can be left out")
    return [Path(path) for path in new_images(pipe, paths)]


def without_learnt(pipe: Pipeline, good: Sequence[Path]) -> list[Path]:
    """Return the good images that a model has not learnt, with a warning that counts the others."""
    new = not_learnt(pipe, good)
    n_learnt = len(good) - len(new)
    if n_learnt:
        warn(
            f"{n_learnt} of {len(good)} good images were learnt by the model: they are left out, as learnt images look "
            "more normal than new ones"
        )
    return new


def pixels_of(pipe: Pipeline, paths: Iterable[Path]) -> list[int | None]:
    """Return a number for the pixels of each image, as the extractor of a model decodes it."""
    return pixel_numbers(paths, pipe[0].max_pixels, pipe[0].n_jobs)


def with_ticks(pipe: Pipeline, ticks: Ticks, paths: list[Path]) -> list[Path]:
    """Return the images of folders that are no ticked defects, and the ticked good ones; print how many these are.

    Images are compared by their pixels: a copy of a defect is not learnt either.
    """
    defects = set(pixels_of(pipe, ticks.defects))
    kept = {path: pixels for path, pixels in zip(paths, pixels_of(pipe, paths), strict=True) if pixels not in defects}
    good = zip(ticks.good, pixels_of(pipe, ticks.good), strict=True)
    known = defects.union(kept.values())
    added = [path for path, pixels in good if pixels not in known]
    left_out = {"defects": len(ticks.defects), "in the folders too": len(ticks.good) - len(added)}
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    typer.echo(f"{printable(ticks.file)}: {len(added)} good images" + (f"; left out: {counts}" if counts else ""))
    return [*kept, *added]


def images_of_products(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the images of each product: of its folder, or of train/good in it, as MVTec AD's layout has it."""
    images: dict[str, list[Path]] = {}
    for root in roots:
        if not root.is_dir():
            raise ValueError(
                f"--products: {printable(root)} is no folder: name one that holds a folder for each product"
            )
        loose = list_images(root)
        if loose:
            raise ValueError(f"--products: {printable(loose[0])} lies beside the folders of products: of which is it?")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"--products: {printable(root)} holds no folder: it takes one for each product")
        for folder in folders:
            if folder.name in images:
                raise ValueError(f"--products: there are two folders {folder.name!r}: give each product a name")
            good = folder / "train" / "good"
            try:
                images[folder.name] = find_images([good if good.is_dir() else folder], "--products")
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error}. Put good images of the product there, or remove the folder"
                ) from error
    return images


def print_if_products(folders: Iterable[Path], images: Iterable[Path]) -> None:
    """Print that a folder may hold products, if all of its images lie in folders in it."""
    images = list(images)
    for folder in folders:
        parts = [image.relative_to(folder).parts for image in images if image.is_relative_to(folder)]
        names = sorted({first for first, *_ in parts})
        if len(names) > 1 and all(len(path) > 1 for path in parts):
            typer.echo(
                f"{printable(folder)} holds images in {len(names)} folders, and one model learns them all; if these "
                "are products, --products learns a model for each"
            )


def refuse_test_images(folders: Iterable[Path], images: Iterable[Path]) -> None:
    """Raise if a folder is that of a whole data set: its test images, defects and masks would be learnt as normal."""
    parents = sorted({image.parent for image in images})
    for folder in folders:
        for parent in parents:
            if parent.is_relative_to(folder):
                _refuse_root(folder, parent.relative_to(folder).parts)
    for parent in parents:
        _refuse_part(parent)


def _refuse_root(folder: Path, parts: tuple[str, ...]) -> None:
    """Refuse a folder that has images at `parts`, if these lie in a part of a data set that is not for learning."""
    for depth in range(len(parts)):
        root = folder.joinpath(*parts[:depth])
        good = root / "train" / "good"
        # The names of a data set, not of any folder that happens to be called "test".
        beside = [name for name in ("train", "test", "ground_truth") if (root / name).is_dir()]
        if good.is_dir() or (parts[depth] in beside and parts[depth] != "train" and len(beside) > 1):
            raise ValueError(
                f"{printable(folder)} is or holds a data set ({printable(root / parts[depth])}): its test images, "
                f"defects and masks would be learnt as normal. {_advice(good)}"
            )


def _refuse_part(folder: Path) -> None:
    """Refuse a folder of defects or masks of a data set: it lies beside train/good, or test beside ground_truth."""
    path = folder.resolve()
    for part in (path, *path.parents):
        root = part.parent
        good = root / "train" / "good"
        is_for_learning = part.name != "ground_truth" and (
            part.name != "test" or path.relative_to(part).parts[:1] == ("good",)
        )
        if not is_for_learning and (good.is_dir() or all((root / name).is_dir() for name in ("test", "ground_truth"))):
            raise ValueError(
                f"{printable(folder)} holds defects or masks of a data set, which would be learnt as normal. "
                f"{_advice(good)}"
            )


def _advice(good: Path) -> str:
    return f"Name {printable(good)}" if good.is_dir() else "Name the folder of normal images alone"


def warn_of_copies(images: Sequence[Path]) -> None:
    """Print a warning if images are exact copies of others: each counts again, in the model and in the threshold."""
    groups = [list(images)]
    for key in (_size, _middle, file_digest):  # each reads more, of fewer files
        groups = [alike for group in groups for alike in _groups(group, key)]
    n_copies = sum(len(group) - 1 for group in groups)
    if n_copies:
        first, second = groups[0][:2]
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


def print_suspects(suspects: np.ndarray, paths: Sequence[Path]) -> None:
    """Print how many training images stand out, were left out, and are nearly the same as others."""
    groups = {
        f"stand out (false discovery rate {_FALSE_DISCOVERY_RATE:.0%})": suspects["q_value"] <= _FALSE_DISCOVERY_RATE,
        "were left out": suspects["trimmed"],
        "are nearly the same as others": suspects["near_duplicate_of"] >= 0,
    }
    for finding, chosen in groups.items():
        names = [printable(paths[index]) for index in suspects["index"][chosen]]
        listed = f": {first_few(names, _N_NAMED)}" if names else ""
        typer.echo(f"{len(names)} of {len(suspects)} training images {finding}{listed}")


def write_report(
    report: Path, pipe: Pipeline, paths: Sequence[Path], suspects: np.ndarray, *, model: Path, folders: Sequence[Path]
) -> None:
    """Write the page of the training images with their scores by models that have not learnt them.

    The heat maps are those of the model, which has learnt all images but those that were left out.
    """
    ranked = [paths[index] for index in suspects["index"]]
    title = f"{model.name}, {len(ranked)} training images"
    with open_page(report, pipe, title=title, n_images=len(ranked), model=model, sources=folders) as page:
        for suspect, row in zip(suspects, score_images(pipe, ranked), strict=True):
            pictures = draw(pipe, row, False, page)["report"]
            other = suspect["near_duplicate_of"]
            notes = (
                "left out by --trim" if suspect["trimmed"] else None,
                f"nearly the same as {paths[other]}" if other >= 0 else None,
                note_of(row),
            )
            page.add(
                row["path"],
                suspect["score"],
                p_value=suspect["p_value"],
                note="; ".join(filter(None, notes)) or None,
                error=row["error"],
                **pictures,
            )

"""Options that several commands have, and what their values stand for: numbers, images, models, ticked images.

Modules that declare options are imported for `--help` too. What imports torch or scikit-learn, which takes seconds, is
imported by the functions that need it.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan, nextafter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._messages import nearest
from ipca_sklearn._utils._tables import of_cell
from ipca_sklearn.cli._terminal import warn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Those of the estimators, as a test shows.
DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_GAUSSIANS = 256
ABOVE_0, BELOW_HALF, BELOW_1 = 5e-324, nextafter(0.5, 0), nextafter(1, 0)

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file written by `ipca-sklearn fit`. Loading it can execute code.")
]
ChangedModel = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="MODEL", help="Write here and keep the old model.")
]
OnError = Annotated[
    str, typer.Option(help="raise: stop at an image that cannot be read; skip: leave it out and print a warning.")
]
Product = Annotated[
    str | None, typer.Option(metavar="NAME", help="Product, for a model of several; see `ipca-sklearn fit --products`.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto: a GPU if there is one.")]
Components = Annotated[
    str,
    typer.Option(
        "--k",
        help="Components per Gaussian: a number, a share of the variance such as 0.99, or auto: 96 where patches share "
        "a Gaussian, else 16, and at most half of the features.",
    ),
]
ReviewedFile = Annotated[
    Path | None,
    typer.Option(
        "--reviewed",
        metavar="CSV",
        help="Ticks saved from a report of `predict` or `watch`: images that are good, and defects.",
    ),
]
DefectsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the list of defects of each image: .jsonl, a line per image."),
]
MinArea = Annotated[float, typer.Option(min=0, help="Leave out defects of fewer pixels of the image.")]
MergeDistance = Annotated[
    float, typer.Option(min=0, help="Regions with at most so many pixels between them are one defect.")
]


def choose_backbone(name: str) -> str:
    """Return a name, or print the backbones and exit if it is `list` or a pattern.

    Names of timm are checked when the network is made: timm takes more names than it lists.
    """
    if name == DEFAULT_BACKBONE or (name.startswith("timm:") and not _is_pattern(name)):
        return name
    from ipca_sklearn.features import list_backbones

    see = "`--backbone list` prints which there are"
    rows = list_backbones(name if _is_pattern(name) else None)
    if name == "list" or _is_pattern(name):
        if not rows:
            raise typer.BadParameter(f"no backbone matches {name!r}; {see}")
        width = max(len(known) for known, _ in rows)
        for known, weights in rows:
            typer.echo(f"{known:<{width}}  {weights}")
        raise typer.Exit
    names = [known for known, _ in rows]
    if name in names:
        return name
    import torchvision  # only for the error: it takes half a second

    if name in torchvision.models.list_models(module=torchvision.models):
        raise typer.BadParameter(
            f"no layers are known for {name!r}; name some in Python, with PatchFeatureExtractor(layers=[...])"
        )
    raise typer.BadParameter(f"{name!r} is unknown{nearest(name, names)}; {see}")


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def parse_size(option: str, text: str, word: str) -> Any:
    """Return a word that is allowed, a side, or (height, width)."""
    if text == word:
        return text
    match = re.fullmatch(r"0*([1-9]\d*)(?:[x,]0*([1-9]\d*))?", text)
    if match is None:
        raise ValueError(f"{option} {text!r} is no size: use 256 for a square, 160x416 for height x width, or {word}")
    height, width = match.groups()
    return int(height) if width is None else (int(height), int(width))


def parse_number(
    option: str, text: str, kind: type[int | float], words: str, least: float, most: float, word: str = "auto"
) -> Any:
    """Return a number of a range, or the first word of `word`, which the error shows as a whole."""
    if text == word.partition(":")[0]:
        return text
    try:
        number = kind(text)
    except ValueError:
        number = nan
    if not least <= number <= most:
        raise ValueError(f"{option} {text!r}: use {words}, or {word}")
    return number


def parse_components(option: str, text: str) -> Any:
    """Return `n_components`: a whole number, a share of the variance, or "auto"."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    words = "a whole number from 1 on, a share of the variance below 1"
    return parse_number(option, text, float, words, ABOVE_0, BELOW_1)


def check_finite(unit: str, values: dict[str, float]) -> None:
    """Refuse values of options that are no finite numbers."""
    for option, value in values.items():
        if not isfinite(value):
            raise ValueError(f"{option} {value}: name a finite number of {unit}")


def find_images(paths: Iterable[Path], option: str = "") -> list[Path]:
    """Return files as they are, and the images of folders through all levels; "-" is the lines of the standard input.

    What an `option` names must be there; a file that is named as an argument is an error when it is read. A warning
    names folders without images.
    """
    paths, prefix = list(paths), f"{option}: " if option else ""
    if option:
        for path in paths:
            if str(path) != "-" and not path.exists():
                raise FileNotFoundError(f"{option} {printable(path)}: there is no such file or folder")
    found = [(path, _images_at(path)) for path in paths]
    images = [image for _, of_path in found for image in of_path]
    empty = ", ".join(map(printable, folders_of(path for path, of_path in found if not of_path)))
    if images and empty:
        warn(f"{prefix}no images in {empty}: only the others are read")
    if not images:
        from ipca_sklearn.datasets import IMAGE_SUFFIXES

        listed = ", ".join(map(printable, paths))
        raise FileNotFoundError(f"{prefix}no images in {listed}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return images


def _images_at(path: Path) -> list[Path]:
    """Return the images that a path stands for; an absent file is an error when it is read."""
    if str(path) == "-":  # as bytes, because names need not be UTF-8
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
        return [Path(os.fsdecode(line)) for line in lines if line.strip()]
    if path.is_dir():
        from ipca_sklearn.datasets import list_images

        return list_images(path, recursive=True)
    return [path]


def folders_of(paths: Iterable[Path]) -> list[Path]:
    """Return those of the arguments of a command that are folders."""
    return [path for path in paths if str(path) != "-" and path.is_dir()]


def check_common(device: str | None, on_error: str) -> None:
    """Refuse bad values before any work is done: not all of it would use them."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"--on-error {on_error!r}: use raise or skip")
    import torch

    from ipca_sklearn._utils._devices import resolve_device

    resolve_device(device, torch.device("cpu"))


def open_model(path: Path, device: str | None, *, on_error: str = "raise", product: str | None = None) -> Pipeline:
    """Load a model of one product, or that of a product, and set where it computes and how bad images are handled."""
    return of_product(open_file(path, device, on_error=on_error), product, path)


def open_file(path: Path, device: str | None, *, on_error: str = "raise") -> Pipeline:
    """Load a model of one product or of several, as `open_model`."""
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter, persistence

    check_common(device, on_error)
    pipe = persistence.load(path)
    steps = [type(step) for _, step in pipe.steps] if isinstance(pipe, Pipeline) else []
    if steps not in ([PatchFeatureExtractor, PatchGaussianDetector], [PatchFeatureExtractor, ProductRouter]):
        raise ValueError(f"{path} holds a {type(pipe).__name__}, but no pipeline written by `ipca-sklearn fit`")
    pipe[0].set_params(device=device, on_error=on_error)
    return pipe


def of_product(pipe: Pipeline, product: str | None, path: Path) -> Pipeline:
    """Return the pipeline of one product of a model, which shares the detector with it."""
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import ProductRouter

    router = pipe[-1]
    if not isinstance(router, ProductRouter):
        if product is not None:
            raise ValueError(f"--product {product!r}: {printable(path)} is of one product, which has no name")
        return pipe
    names = ", ".join(map(repr, router.detectors_))
    if product is None:
        raise ValueError(f"{printable(path)} has the products {names}: name one with --product")
    if product not in router.detectors_:
        raise ValueError(f"--product {product!r}: {printable(path)} has {names}")
    return Pipeline([pipe.steps[0], ("detector", router.detectors_[product])])


@dataclass(frozen=True)
class Ticks:
    """The images that are ticked in a report, each once, and the file of the ticks."""

    file: Path
    good: list[Path]
    defects: list[Path]


def read_ticks(path: Path) -> Ticks:
    """Read the CSV file that the button of a report saves: columns `path` and `label`, "good" or "defect".

    Relative paths start at the current folder, as `predict` has written them. Errors name the file and the line.
    """
    where = printable(path)
    by_file: dict[str, tuple[str, int, Path]] = {}
    # A spreadsheet that saves the file may put a mark of byte order before it.
    with naming(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            if not {"path", "label"} <= set(table.fieldnames or ()):
                raise ValueError(
                    f"{where}, line 1: there are no columns path and label, separated by commas: name a file that the "
                    "button of a report has saved"
                )
            for row in table:
                label, name = (row["label"] or "").strip().lower(), of_cell(row["path"] or "")
                line = f"{where}, line {table.line_num}"
                if label not in ("good", "defect"):
                    raise ValueError(f"{line}: the label is {label!r}: write good or defect, or remove the line")
                image = Path(name)
                if not name or not image.is_file():
                    raise FileNotFoundError(
                        f"{line}: there is no file {printable(name)!r}: run the command in the folder in which "
                        "`predict` ran, or remove the line"
                    )
                other, first, _ = by_file.setdefault(os.path.realpath(image), (label, table.line_num, image))
                if other != label:
                    raise ValueError(
                        f"{line}: {printable(name)} is {label}, and {other} in line {first}: remove one of the lines"
                    )
        except csv.Error as error:
            raise ValueError(f"{where}, after line {table.line_num}: this is no CSV: {error}") from error
    if not by_file:
        raise ValueError(f"{where} has no ticks: tick images in the report, and save them again")
    good, defects = (
        [image for of_image, _, image in by_file.values() if of_image == label] for label in ("good", "defect")
    )
    return Ticks(path, good, defects)

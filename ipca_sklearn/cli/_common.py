"""What the commands share: options, lists of images, models."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter, persistence
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn._utils._files import printable
from ipca_sklearn.datasets._folders import IMAGE_SUFFIXES, list_images

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file written by `ipca-sklearn fit`. Loading it can execute code.")
]
OnError = Annotated[
    str, typer.Option(help="raise: stop at an image that cannot be read; skip: leave it out and print a warning.")
]
Product = Annotated[
    str | None, typer.Option(metavar="NAME", help="Product, for a model of several; see `ipca-sklearn fit --products`.")
]


class Align(StrEnum):
    """What `--align` is."""

    TRANSLATION = "translation"
    RIGID = "rigid"


Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto: a GPU if there is one.")]


def find_images(paths: Iterable[Path], option: str = "") -> list[Path]:
    """Return files as they are, and the images of folders, searched through all levels.

    Hidden files and folders are left out, see `list_images`. The path "-" stands for the lines of the standard input.
    What an `option` names must be there; a file that is named as an argument is an error when it is read.
    """
    if option:
        for path in paths:
            if str(path) != "-" and not path.exists():
                raise FileNotFoundError(f"{option} {printable(path)}: there is no such file or folder")
    found = list(_find(paths))
    if not found:
        listed = ", ".join(map(printable, paths))
        raise FileNotFoundError(
            f"{option}{': ' if option else ''}no images in {listed}; expected files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def _find(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if str(path) == "-":  # as bytes, because names need not be UTF-8
            lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            yield from (Path(os.fsdecode(line)) for line in lines if line.strip())
        elif path.is_dir():
            yield from list_images(path, recursive=True)
        else:
            yield path  # an absent file is an error when it is read


def folders_of(paths: Iterable[Path]) -> list[Path]:
    """Return those of the arguments of a command that are folders."""
    return [path for path in paths if str(path) != "-" and path.is_dir()]


def check_common(device: str | None, on_error: str) -> None:
    """Refuse bad values before any work is done: not all of it would use them."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"--on-error {on_error!r}: use raise or skip")
    resolve_device(device, torch.device("cpu"))


def open_model(path: Path, device: str | None, *, on_error: str = "raise", product: str | None = None) -> Pipeline:
    """Load a model of one product, or that of a product, and set where it computes and what it does about bad images.

    "Bad" are images that cannot be read.
    """
    return of_product(open_whole(path, device, on_error=on_error), product, path)


def open_whole(path: Path, device: str | None, *, on_error: str = "raise") -> Pipeline:
    """Load a model of one product or of several, as `open_model`."""
    check_common(device, on_error)
    pipe = persistence.load(path)
    steps = [type(step) for _, step in pipe.steps] if isinstance(pipe, Pipeline) else []
    if steps not in ([PatchFeatureExtractor, PatchGaussianDetector], [PatchFeatureExtractor, ProductRouter]):
        raise ValueError(f"{path} holds a {type(pipe).__name__}, but no pipeline written by `ipca-sklearn fit`")
    pipe[0].set_params(device=device, on_error=on_error)
    return pipe


def of_product(whole: Pipeline, product: str | None, path: Path) -> Pipeline:
    """Return the pipeline of one product of a model; it shares the detector with it.

    Raises
    ------
    ValueError
        The model has several products and none is named, or it has not this one.
    """
    router = whole[-1]
    if not isinstance(router, ProductRouter):
        if product is not None:
            raise ValueError(f"--product {product!r}: {printable(path)} is of one product, which has no name")
        return whole
    names = ", ".join(map(repr, router.detectors_))
    if product is None:
        raise ValueError(f"{printable(path)} has the products {names}: name one with --product")
    if product not in router.detectors_:
        raise ValueError(f"--product {product!r}: {printable(path)} has {names}")
    return Pipeline([whole.steps[0], ("detector", router.detectors_[product])])

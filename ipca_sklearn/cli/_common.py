"""What the commands share: one-line errors, lists of images, progress, models."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from sklearn.pipeline import Pipeline
from typer.core import TyperGroup

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, persistence

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ERROR, UNREADABLE = 1, 3  # exit codes; 2 is a wrong command line (click's)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="File of `ipca-sklearn fit`. It can execute code.")]
OnError = Annotated[
    str, typer.Option(help="raise: stop at an image that cannot be read; skip: go on without it, and say so.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto: a GPU if there is one.")]


class Commands(TyperGroup):
    """Commands whose errors are one line and exit code 1, or a traceback with --debug."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with warnings.catch_warnings():
                if not ctx.params.get("debug"):
                    warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
            if ctx.params.get("debug") or isinstance(error, (typer.Exit, typer.Abort)):
                raise
            told = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"error: {told}", err=True)
            raise typer.Exit(ERROR) from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def list_images(places: Iterable[Path]) -> list[Path]:
    """Return the images of files and folders, folders searched through all levels and sorted.

    A place named "-" stands for the lines of the standard input.
    """
    found = list(_walk(places))
    if not found:
        raise FileNotFoundError(
            f"no images in {', '.join(map(str, places))}; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def _walk(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if str(place) == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif place.is_dir():
            for folder, folders, files in os.walk(place):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)
        else:
            yield place  # what is wrong with it is said when it is read


def open_model(path: Path, device: str | None, *, on_error: str = "raise") -> Pipeline:
    """Load a model, let it compute on a device and say what it does about images that cannot be read."""
    pipe = persistence.load(path)
    steps = [step for _, step in pipe.steps] if isinstance(pipe, Pipeline) else []
    if [type(step) for step in steps] != [PatchFeatureExtractor, PatchGaussianDetector]:
        raise ValueError(f"{path} holds no pipeline of `ipca-sklearn fit` but a {type(pipe).__name__}")
    pipe[0].set_params(device=device, on_error=on_error)
    return pipe


class Progress:
    """Images done, images per second and the time left, on the standard error: one line, or one in ten seconds."""

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._first = total, done
        self._started = self._shown = time.monotonic()
        self._rewrites = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Say that so many images are done."""
        now = time.monotonic()
        last = done >= self._total
        if not last and now - self._shown < (0.2 if self._rewrites else 10):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = "" if last or rate == 0 else f", {_duration((self._total - done) / rate)} left"
        line = f"{done}/{self._total} images, {rate:.1f} images/s{left}"
        if self._rewrites:
            typer.echo(f"\r\x1b[K{line}", err=True, nl=last)
        else:
            typer.echo(line, err=True)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"

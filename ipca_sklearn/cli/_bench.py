"""`bench`: what a model costs on this machine."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import shown_bytes
from ipca_sklearn.cli._common import ModelFile, Product, open_model

ENGINES = ("torch", "openvino", "onnxruntime")
_N_FRAMES = 20  # one at a time


def bench(
    model: ModelFile,
    images: Annotated[int, typer.Option(min=2, max=10_000, help="How many images are learnt and scored.")] = 48,
    product: Product = None,
) -> None:
    """Measure a model on this machine: images per second, a frame, size and memory.

    The images are noise of the model's image size, in memory: files take their decoding besides. Each engine that is
    installed runs the network (the package `openvino`, or `onnxruntime` with `onnxscript`).
    """
    pipe = open_model(model, "cpu", product=product)
    height, width = pipe[0].image_size_
    frames = np.random.default_rng(0).integers(0, 255, (images, height, width, 3), dtype=np.uint8)
    typer.echo(
        f"model: {shown_bytes(model.stat().st_size)}, backbone {pipe[0].backbone}, images {height} x {width}, "
        f"{pipe[-1].n_gaussians_} Gaussians of {pipe[-1].n_features_in_} features; {torch.get_num_threads()} threads"
    )
    typer.echo(f"{'engine':<20}{'learning':>14}{'maps':>14}{'one frame':>14}")
    for name in ENGINES:
        pipe[0].set_params(engine=name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few images, and of engines that are not installed: a row says so
            label = pipe[0].engine_
            if not label.startswith(name):
                typer.echo(f"{name:<20}  {label.removeprefix('torch: ')}")
                continue
            learning, maps, frame = _measure(pipe, frames)
        typer.echo(f"{label:<20}{learning:>8.0f} img/s{maps:>8.0f} img/s{1000 * frame:>11.1f} ms")
    peak = _peak_memory()
    if peak is not None:
        typer.echo(f"peak memory, all of it: {shown_bytes(peak)}")


def _measure(pipe: Pipeline, frames: np.ndarray) -> tuple[float, float, float]:
    """Return images per second learnt and scored, and the seconds of a frame: the median."""
    pipe.transform(frames[:2])  # engines compile, and threads start
    learning = len(frames) / _seconds(lambda: clone(pipe[-1]).fit(pipe[0].transform(frames)))
    maps = len(frames) / _seconds(lambda: pipe.transform(frames))
    seconds = [_seconds(partial(pipe.score_samples, frames[index % len(frames)][None])) for index in range(_N_FRAMES)]
    return learning, maps, statistics.median(seconds)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak_memory() -> int | None:
    """Return the largest memory of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

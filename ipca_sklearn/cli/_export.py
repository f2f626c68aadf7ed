"""`export` and `bench`: a model as a file for other programs, and what it costs on this machine."""

from __future__ import annotations

import statistics
import sys
import warnings
from enum import StrEnum
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import TYPE_CHECKING, Annotated

import typer

from ipca_sklearn._utils._files import naming, printable, shown_bytes
from ipca_sklearn.cli._arguments import ModelFile, Product, find_images, open_model
from ipca_sklearn.cli._outputs import ONNX, OPENVINO, Output, check_outputs

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

ENGINES = ("torch", "openvino", "onnxruntime")
_N_FRAMES = 20  # one at a time


Format = StrEnum("Format", ["ONNX", "OPENVINO"])
Precision = StrEnum("Precision", {"FP32": "FP32", "FP16": "FP16", "INT8": "INT8"})


def export(
    model: ModelFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write: .onnx, or .xml for OpenVINO with a .bin beside it."
        ),
    ],
    format: Annotated[Format, typer.Option(help="Kind of file.", case_sensitive=False)] = Format.ONNX,
    precision: Annotated[
        Precision,
        typer.Option(help="For OpenVINO: FP16 halves the file, INT8 is a network of integers.", case_sensitive=False),
    ] = Precision.FP32,
    calibration_images: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Good images, which --precision INT8 needs.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the pixels that the file takes: uint8 or float32.")] = "uint8",
    check: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Images: the file is written only if it scores them as the model does."),
    ] = None,
    product: Product = None,
) -> None:
    """Write a model as an ONNX file or for OpenVINO: images (n, 3, H, W) to scores and maps."""
    from ipca_sklearn.export import to_onnx, to_openvino

    if format is Format.ONNX and (precision is not Precision.FP32 or calibration_images):
        raise ValueError("--precision and --calibration-images are for --format openvino")
    images = find_images(check, "--check") if check else None
    good = find_images(calibration_images, "--calibration-images") if calibration_images else None
    n_bytes = model.stat().st_size if model.is_file() else 0
    outputs = [Output("--output", output, ONNX if format is Format.ONNX else OPENVINO, n_bytes=n_bytes)]
    if format is Format.OPENVINO:
        outputs.append(Output("--output", output.with_suffix(".bin")))
    check_outputs(outputs, files=[model])
    pipe = open_model(model, "cpu", product=product)
    with naming(output):
        if format is Format.ONNX:
            agreement = to_onnx(pipe, output, dtype=dtype, check=images)
        else:
            agreement = to_openvino(pipe, output, precision=precision, images=good, dtype=dtype, check=images)
    typer.echo(f"{printable(output)}: {shown_bytes(sum(part.path.stat().st_size for part in outputs))}")
    if agreement is not None:
        typer.echo(
            f"{agreement.n_images} images checked: scores differ by {agreement.score_difference:.1e} of the largest "
            f"value of a map, {agreement.n_other_labels} labels differ"
        )


def bench(
    model: ModelFile,
    images: Annotated[int, typer.Option(min=2, max=10_000, help="How many images are learnt and scored.")] = 48,
    product: Product = None,
) -> None:
    """Measure a model on this machine: images per second, a frame, size and memory.

    The images are noise of the model's image size, in memory: files take their decoding besides. Each engine that is
    installed runs the network (the package `openvino`, or `onnxruntime` with `onnxscript`).
    """
    import numpy as np
    import torch

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
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        typer.echo(f"peak memory, all of it: {shown_bytes(peak)}")


def _measure(pipe: Pipeline, frames: np.ndarray) -> tuple[float, float, float]:
    """Return images per second learnt and scored, and the seconds of a frame: the median."""
    from sklearn.base import clone

    pipe.transform(frames[:2])  # engines compile, and threads start
    learning = len(frames) / timeit(lambda: clone(pipe[-1]).fit(pipe[0].transform(frames)), number=1)
    maps = len(frames) / timeit(lambda: pipe.transform(frames), number=1)
    one_frame = [frames[index % len(frames)][None] for index in range(_N_FRAMES)]
    seconds = [timeit(partial(pipe.score_samples, frame), number=1) for frame in one_frame]
    return learning, maps, statistics.median(seconds)

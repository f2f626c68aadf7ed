"""`export`: a model as a file for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ipca_sklearn._utils._files import naming, printable, shown_bytes
from ipca_sklearn.cli._common import ModelFile, Product, find_images, open_model
from ipca_sklearn.cli._outputs import ONNX, OPENVINO, Output, check_outputs
from ipca_sklearn.export import to_onnx, to_openvino


class Format(StrEnum):
    """What kind of file."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """What OpenVINO's file stores."""

    FP32 = "FP32"
    FP16 = "FP16"
    INT8 = "INT8"


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

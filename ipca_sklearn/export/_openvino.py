"""A fitted pipeline as a model of OpenVINO: float32, float16 weights, or a network of 8-bit integers."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import replacing
from ipca_sklearn._utils._typing import Image, PathLike
from ipca_sklearn.export._agreement import (
    HINT_OF_16_BITS,
    LARGEST_DIFFERENCE,
    Agreement,
    compare,
    expected_results,
    imported,
    pixels_of,
)
from ipca_sklearn.export._onnx import checked_module, onnx_bytes
from ipca_sklearn.features.backbones._catalogue import warn_of_license
from ipca_sklearn.images._decode import check_images

# How much scores and maps may differ from those of the pipeline, of the largest value of a map.
LARGEST_DIFFERENCES = {"FP32": LARGEST_DIFFERENCE, "FP16": 0.02, "INT8": 0.5}
# All later layers see the errors of the first ones: with these in float32 the median error of a map of Lite0
# falls from 12 to 1.2 % (docs/dev_notes.md).
N_FLOAT_CONVOLUTIONS = 4
_NO_DIGEST = "0" * 64  # until the weights are written
# OpenVINO takes bfloat16 by itself where a CPU has it, which moves scores by a tenth.
PINNED = {"INFERENCE_PRECISION_HINT": "f32"}


def to_openvino(
    pipe: Pipeline,
    path: PathLike,
    *,
    precision: str = "FP32",
    images: Sequence[Image] | None = None,
    dtype: str = "uint8",
    input_size: tuple[int, int] | None = None,
    check: Sequence[Image] | None = None,
) -> Agreement | None:
    """Write a fitted pipeline as a model of OpenVINO: `path`, which ends in .xml, and its weights beside it in a .bin.

    Parameters
    ----------
    pipe : Pipeline
        As for :func:`to_torch`.
    path : str or path-like
        The file, such as `"model.xml"`; it and the .bin are replaced only when the new ones are complete. For the
        moment between the two there is no .xml, so a kill there leaves no model rather than one of two halves.
    precision : {"FP32", "FP16", "INT8"}, default="FP32"
        Of what is stored. `"FP16"` halves the file; OpenVINO computes with these weights in float32. `"INT8"`: NNCF
        turns the products of the network into those of 8-bit integers, with ranges from `images`; its first four
        convolutions, resizing and distances stay in float32.
    images : sequence of images, default=None
        For `"INT8"`: good images, as for the fit; some tens are enough.
    dtype : {"uint8", "float32"}, default="uint8"
    input_size : (int, int) or None, default=None
        As for :func:`to_onnx`.
    check : sequence of images, default=None
        OpenVINO scores these images with the file before it is kept, and the pipeline scores them too.

    Returns
    -------
    Agreement or None
        How far they were apart on the images of `check`, labels at the threshold included; None without.

    Raises
    ------
    ImportError
        openvino, or what :func:`to_onnx` needs besides onnxruntime, is not installed; for `"INT8"` nncf.
    ValueError
        `path` does not end in .xml, or another `precision` or `dtype`; `"INT8"` without `images`. Or the scores or maps
        of an image in `check` differ by more than a share of the largest value of its map: 1e-4 for `"FP32"`, 0.02 for
        `"FP16"`, 0.5 for `"INT8"`. Nothing is written then.
    RuntimeError, TypeError, NotFittedError
        As :func:`to_onnx`.

    Warns
    -----
    UserWarning
        As :func:`to_onnx`.

    Notes
    -----
    Inputs and outputs are those of :func:`to_onnx`. Its metadata are the section `ipca_sklearn` of `rt_info`, with
    `precision`, `inference_precision` and `weights_sha256`, the SHA-256 of the .bin: whoever copies the files, or loads
    them while they are written, can tell whether they belong together. **Compile the model with
    INFERENCE_PRECISION_HINT="f32"**: on CPUs with bfloat16 OpenVINO takes that by itself, and scores move by a tenth.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"{path}: name a file that ends in .xml; its weights go beside it, into a .bin")
    if precision not in LARGEST_DIFFERENCES:
        raise ValueError(f"precision={precision!r} is none of {', '.join(map(repr, LARGEST_DIFFERENCES))}")
    if (precision == "INT8") != (images is not None):
        raise ValueError("precision='INT8' takes images=, good images that show the ranges of values; others take none")
    openvino = imported("openvino", "writing an OpenVINO model")
    nncf = _import_nncf() if precision == "INT8" else None
    module = checked_module(pipe, dtype, input_size)
    expected = expected_results(pipe, check, dtype, input_size)
    content, outside = onnx_bytes(module, dtype)
    core = openvino.Core()
    model = core.read_model(content)
    if images is not None and nncf is not None:
        images = check_images(images)
        pixels = [pixels_of(images, index, dtype) for index in range(len(images))]
        operations = model.get_ordered_ops()
        convolutions = [op for op in operations if op.get_type_name() in ("Convolution", "GroupConvolution")]
        first = [op.get_friendly_name() for op in convolutions[:N_FLOAT_CONVOLUTIONS]]
        scope = nncf.IgnoredScope(names=[*outside, *first], validate=False)
        model = nncf.quantize(model, nncf.Dataset(pixels), subset_size=len(pixels), ignored_scope=scope)
    facts = module.metadata | {"dtype": dtype, "precision": precision, "weights_sha256": _NO_DIGEST}
    for name, value in facts.items():
        model.set_rt_info(value, ["ipca_sklearn", name])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps files that are mapped
        written = Path(folder, "model.xml")
        openvino.save_model(model, written, compress_to_fp16=precision == "FP16")
        agreement = None
        if expected:
            compiled = core.compile_model(written, "CPU", PINNED)
            agreement = compare(
                lambda pixels: tuple(compiled(pixels).to_tuple()),
                expected,
                module.offset,
                largest_difference=LARGEST_DIFFERENCES[precision],
                hint="Give it more images=" if precision == "INT8" else HINT_OF_16_BITS,
            )
        _replace_both(path, written.read_bytes(), written.with_suffix(".bin").read_bytes())
    warn_of_license(pipe, path)
    return agreement


def _replace_both(path: Path, description: bytes, weights: bytes) -> None:
    """Write the .xml and the .bin beside it; there is no .xml while they do not belong together."""
    digest = hashlib.sha256(weights).hexdigest()
    with replacing(path) as xml, replacing(path.with_suffix(".bin")) as binary:
        xml.write(description.replace(_NO_DIGEST.encode(), digest.encode()))
        binary.write(weights)
        for file in (xml, binary):
            file.flush()  # a full disk leaves the old model
        path.resolve().unlink(missing_ok=True)


def _import_nncf() -> Any:
    """Import NNCF; unless NNCF_CI is set then, it reports its use over the network (3.4)."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        return imported("nncf", "precision='INT8'")
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before

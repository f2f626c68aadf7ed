"""A fitted pipeline as one ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import replacing
from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._typing import Image, PathLike, Size
from ipca_sklearn.export._agreement import (
    HINT_OF_16_BITS,
    LARGEST_DIFFERENCE,
    Agreement,
    compare,
    expected_results,
    imported,
)
from ipca_sklearn.export._module import PatchGaussianModule, to_torch
from ipca_sklearn.features.backbones._catalogue import warn_of_license

# What a protocol buffer, and so an ONNX file in one piece, holds at most.
_MAX_BYTES = 2**31 - 2**24


def to_onnx(
    pipe: Pipeline,
    path: PathLike,
    *,
    dtype: str = "uint8",
    input_size: tuple[int, int] | None = None,
    opset_version: int = 18,
    check: Sequence[Image] | None = None,
) -> Agreement | None:
    """Write a fitted pipeline as one ONNX file, network included.

    Parameters
    ----------
    pipe : Pipeline
        As for :func:`to_torch`.
    path : str or path-like
        The file; replaced only when the new one is complete.
    dtype : {"uint8", "float32"}, default="uint8"
        Type of the input `images` (n, 3, H, W); n, H and W are dynamic. Floats are in [0, 1].
    input_size : (int, int) or None, default=None
        Height and width of all images, such as a camera's frames; n stays dynamic. The file is faster, most if it is
        the size that the images are resized to (`image_size_` of the extractor).
    opset_version : int, default=18
        Version of ONNX's operators.
    check : sequence of images, default=None
        onnxruntime scores these images (paths, PIL images, arrays or tensors, of any sizes) with the file before it is
        written, and the pipeline scores them too: some real ones show that both agree on this machine.

    Returns
    -------
    Agreement or None
        How far they were apart on the images of `check`; None without.

    Raises
    ------
    ImportError
        onnx and onnxscript are not installed: `pip install onnx onnxscript`; for `check` onnxruntime.
    ValueError
        The scores or the maps of an image in `check` differ by more than 1e-4 of the largest value of its map, or it
        has not `input_size`; nothing is written. Or the model has more than 2 GB, the limit of an ONNX file in one
        piece: only `covariance="full"` with many features has so many numbers.
    RuntimeError
        `torch.export` cannot follow the network: a file for onnxruntime holds no control flow that depends on the
        values of an image.
    TypeError, NotFittedError
        As `to_torch`.

    Warns
    -----
    UserWarning
        The licence of the network's weights sets conditions for those who pass the file on.

    Notes
    -----
    Outputs are `score` (n,), higher is more normal, and `map` (n, H', W'), larger is more anomalous; scores agree with
    `pipe.score_samples` to about 1e-5. The metadata of the file are the `metadata` of the module that :func:`to_torch`
    returns, and `dtype`. Size: 4 bytes for each of the C (k + 2) m numbers of C Gaussians (`n_gaussians_`) and each
    weight of the network, and 16 for each patch where patches share a Gaussian.
    """
    onnxruntime = None if check is None else imported("onnxruntime", "check=")
    module = checked_module(pipe, dtype, input_size)
    expected = expected_results(pipe, check, dtype, input_size)
    content, _ = onnx_bytes(module, dtype, opset_version)
    agreement = None
    if onnxruntime is not None and expected:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        agreement = compare(
            lambda pixels: session.run(None, {"images": pixels}),
            expected,
            module.offset,
            largest_difference=LARGEST_DIFFERENCE,
            hint=HINT_OF_16_BITS,
        )
    # Not ONNXProgram.save: from 1.5 GB on it writes weights to a second file.
    with replacing(path) as file:
        file.write(content)
    warn_of_license(pipe, path)
    return agreement


def checked_module(pipe: Pipeline, dtype: str, input_size: Size | None) -> PatchGaussianModule:
    """Return the module that is written, or raise what `to_onnx` raises before it computes anything."""
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"dtype={dtype!r}: the input of the file is 'uint8' or 'float32'")
    for package in ("onnx", "onnxscript"):  # torch.onnx needs them
        imported(package, "writing ONNX")
    module = to_torch(pipe)
    n_bytes = sum(value.nbytes for value in module.state_dict().values())
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"the model has {n_bytes / 1e9:.1f} GB, an ONNX file holds 2: lower n_components, or n_random_features "
            "with covariance='full'"
        )
    if input_size is not None:
        module.fix_size((int(input_size[0]), int(input_size[1])))
    return module


def onnx_bytes(module: PatchGaussianModule, dtype: str, opset_version: int = 18) -> tuple[bytes, list[str]]:
    """Return a module as the content of an ONNX file, with its metadata, and the names of nodes beside the network."""
    fixed = module.input_size
    height, width = fixed or (module.image_size[0], module.image_size[1] + 1)
    images = torch.zeros(2, 3, height, width, dtype=getattr(torch, dtype), device="cpu")
    sides = {} if fixed else {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    dynamic = {"images": {0: torch.export.Dim("n"), **sides}}
    try:
        with as_in_a_fresh_process(torch.device("cpu")):
            program: Any = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                opset_version=opset_version,
                input_names=["images"],
                output_names=["score", "map"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise RuntimeError(
            f"backbone {module.metadata['backbone']} cannot be written as ONNX, because torch.export cannot follow it "
            f"({type(cause).__name__}: {str(cause)[:300]}). Control flow that depends on the values of an image has no "
            "place in such a file: keep the model with persistence.save, or choose another backbone"
        ) from error
    program.model.metadata_props.update(module.metadata, dtype=dtype)
    outside = [node.name for node in program.model.graph if ".backbone" not in node.metadata_props.get("namespace", "")]
    return bytes(program.model_proto.SerializeToString()), outside

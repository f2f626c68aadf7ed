"""Time anomalib's PaDiM, or what it exports; `python -m benchmarks.latency` runs this with another interpreter.

The argument is a file that describes the job. The last line printed is a JSON object: the milliseconds of the calls by
the number of images, or why there are none. The environment of that interpreter needs no ipca_sklearn.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.accuracy.rivals import load_weights
from benchmarks.common.rivals import Images, build, fit_gaussian, versions
from benchmarks.latency.calls import frames_as_arrays, groups_of, milliseconds

# What each kind of export needs to be written and run.
PACKAGES = {"padim": (), "padim_onnx": ("onnx", "onnxscript", "onnxruntime"), "padim_openvino": ("openvino",)}


@torch.no_grad()
def fitted(job: dict[str, Any], prepare: v2.Compose) -> torch.nn.Module:
    """Return a PaDiM that has learnt the training images."""
    torch.manual_seed(0)
    model = build("padim", job["backbone"], job["layers"])
    load_weights(model.feature_extractor.feature_extractor, job["backbone"], job["weights"])
    model.train()
    for batch in DataLoader(Images(job["train"], prepare), 16):
        model(batch)
    fit_gaussian(model)
    return model.eval()


class Outputs(torch.nn.Module):
    """A model whose result is a plain tuple, which is what an exported file can give."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and maps."""
        found = self.model(images)
        return found.pred_score, found.anomaly_map


def runner(kind: str, model: torch.nn.Module, example: torch.Tensor, threads: int) -> Callable[[torch.Tensor], object]:
    """Return what scores prepared images of the example's shape."""
    if kind == "padim":
        return model
    if kind == "padim_onnx":
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "padim.onnx"))
            torch.onnx.export(Outputs(model).eval(), (example,), path, dynamo=True, input_names=["images"])
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images.numpy()})
    import openvino

    converted = openvino.convert_model(Outputs(model).eval(), example_input=example, input=list(example.shape))
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    return lambda images: compiled(images.numpy())


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    missing = [name for name in PACKAGES[job["row"]] if find_spec(name) is None]
    if missing:
        return {"skipped": f"{', '.join(missing)} not installed beside anomalib", "environment": versions()}
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    resized = [v2.Resize(job["size"], antialias=True), *floats]
    model = fitted(job, v2.Compose([v2.PILToTensor(), *resized]))
    prepare = v2.Compose(resized)
    frames = frames_as_arrays(job["test"])
    found: dict[str, Any] = {}
    for size in job["sizes"]:
        inputs = groups_of(frames, size)

        def prepared(images: Any) -> torch.Tensor:
            return prepare(torch.from_numpy(images).movedim(-1, 1))

        run = runner(job["row"], model, prepared(inputs[0]), job["threads"])

        def call(images: Any, run: Any = run) -> object:
            return run(prepared(images))

        found[str(size)] = milliseconds(call, inputs, job["warm_up"], job["calls"])
    return {"ms": found, "environment": versions()}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))

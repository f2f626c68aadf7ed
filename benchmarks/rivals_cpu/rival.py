"""Let a method of anomalib learn, and store it for torch, onnxruntime and OpenVINO; needs no ipca_sklearn.

The argument is a file that describes the job. The last line printed is a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.accuracy.rivals import load_weights
from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.rivals import Images, Whole, build, fit_gaussian, versions
from benchmarks.rivals_cpu.score import BATCH


@torch.no_grad()
def learn(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model = build(job["method"], job["backbone"], job["layers"])
    load_weights(model.feature_extractor.feature_extractor, job["backbone"], job["weights"])
    as_learnt = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )
    model.feature_extractor(torch.zeros(BATCH, 3, 256, 256))
    model.train()
    baseline = restart_peak()
    start = time.perf_counter()
    for batch in DataLoader(Images(job["train"], as_learnt), BATCH, num_workers=job["threads"]):
        model(batch)
    if job["method"] == "patchcore":
        model.subsample_embedding(0.1)
    else:
        fit_gaussian(model)
    found = {"learning_per_s": len(job["train"]) / (time.perf_counter() - start), "learning_mb": peak_mb() - baseline}
    whole, stem = Whole(model.eval()).eval(), str(Path(job["folder"], job["method"]))
    example = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    torch.save(whole, f"{stem}.pt")
    skipped = {}
    for suffix, write in (("onnx", _write_onnx), ("xml", _write_openvino)):
        try:
            write(whole, example, f"{stem}.{suffix}")
        except Exception as error:  # whatever the exporters raise is a result
            Path(f"{stem}.{suffix}").unlink(missing_ok=True)
            skipped[suffix] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
    return found | {"skipped": skipped, "environment": versions()}


def _write_onnx(module: torch.nn.Module, example: torch.Tensor, path: str) -> None:
    """As anomalib exports, with a dynamic number of images."""
    torch.onnx.export(
        module, (example,), path, input_names=["images"], dynamic_axes={"images": {0: "n"}}, dynamo=False,
        opset_version=17,
    )  # fmt: skip


def _write_openvino(module: torch.nn.Module, example: torch.Tensor, path: str) -> None:
    """As anomalib exports: OpenVINO converts the ONNX file."""
    import openvino

    openvino.save_model(openvino.Core().read_model(path.removesuffix("xml") + "onnx"), path, compress_to_fp16=False)


if __name__ == "__main__":
    print(json.dumps(learn(json.loads(Path(sys.argv[1]).read_text()))))

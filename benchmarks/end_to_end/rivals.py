"""Measure a method of anomalib once; `python -m benchmarks.end_to_end` runs this with another interpreter.

It runs anomalib's torch models in a plain loop over a DataLoader, because anomalib's engine adds work that belongs to
no method. The argument is a file that describes the job; the last line printed is a JSON object with the figures. The
environment of that interpreter needs no ipca_sklearn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.rivals import Images, build, fit_gaussian, megabytes_kept, versions

LAYERS = {"padim": ["layer1", "layer2", "layer3"], "patchcore": ["layer2", "layer3"]}


def prepare(size: list[int]) -> v2.Compose:
    """Images as ours are: resized to the same size, antialiased, with ImageNet's mean and deviation."""
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(size, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def finish(method: str, model: Any) -> None:
    """Make the model ready to score, as anomalib does at the end of its epoch."""
    if method == "patchcore":
        model.subsample_embedding(0.1)
    else:
        fit_gaussian(model)


@torch.no_grad()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    method, device = job["contender"], torch.device(job["device"])
    model = build(method, "resnet18", LAYERS[method]).to(device)  # random weights cost it the same

    def batches(name: str) -> Iterator[Tensor]:
        loader = DataLoader(
            Images(job[name], prepare(job["size"])), batch_size=job["batch"], num_workers=job["threads"]
        )
        return (batch.to(device) for batch in loader)

    baseline = restart_peak()
    model.feature_extractor(torch.zeros(job["batch"], 3, *job["size"], device=device))
    model.train()
    start = time.perf_counter()
    for batch in batches("train"):
        model(batch)
    finish(method, model)
    _wait(device)
    training = time.perf_counter() - start
    training_peak = peak_mb()
    restart_peak()
    model.eval()
    start = time.perf_counter()
    outputs = [model(batch) for batch in batches("test")]
    maps, scores = ([getattr(output, name).cpu() for output in outputs] for name in ("anomaly_map", "pred_score"))
    testing = time.perf_counter() - start
    assert sum(map(len, maps)) == sum(map(len, scores)) == len(job["test"])
    return {
        "train_images_per_s": len(job["train"]) / training,
        "test_images_per_s": len(job["test"]) / testing,
        "baseline_mb": baseline,
        "train_peak_mb": training_peak - baseline,
        "test_peak_mb": peak_mb() - baseline,
        "model_mb": megabytes_kept(method, model),
        "environment": versions(),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))

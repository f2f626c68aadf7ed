"""Time anomalib's PaDiM; `python -m benchmarks.latency` runs this with another interpreter.

The argument is a file that describes the job. The last line printed is a JSON object: the milliseconds of the calls by
the number of images. The environment of that interpreter needs no ipca_sklearn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.accuracy.rivals import load_weights
from benchmarks.common.rivals import Images, build, fit_gaussian, versions
from benchmarks.latency.calls import frames_as_arrays, groups_of, milliseconds


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


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    resized = [v2.Resize(job["size"], antialias=True), *floats]
    model = fitted(job, v2.Compose([v2.PILToTensor(), *resized]))
    prepare = v2.Compose(resized)
    frames = frames_as_arrays(job["test"])
    found: dict[str, Any] = {}
    for size in job["sizes"]:
        inputs = groups_of(frames, size)

        def call(images: Any) -> object:
            return model(prepare(torch.from_numpy(images).movedim(-1, 1)))

        found[str(size)] = milliseconds(call, inputs, job["warm_up"], job["calls"])
    return {"ms": found, "environment": versions()}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from benchmarks.common.memory import peak_mb, restart_peak

LAYERS = {"padim": ["layer1", "layer2", "layer3"], "patchcore": ["layer2", "layer3"]}


class Images(Dataset):
    """Image files, prepared as ours are: 256 x 256 nearest, the centre 224 x 224, ImageNet's mean and deviation."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.prepare = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize((256, 256), InterpolationMode.NEAREST_EXACT),
                v2.CenterCrop(224),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.prepare(image.convert("RGB"))


def build(method: str) -> Any:
    """Return the model with random weights; they need no download and cost the same."""
    options = {"backbone": "resnet18", "layers": LAYERS[method], "pre_trained": False}
    if method == "padim":
        from anomalib.models.image.padim.torch_model import PadimModel

        return PadimModel(**options, n_features=100)
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return PatchcoreModel(**options)


def finish(method: str, model: Any) -> None:
    """Make the model ready to score, as anomalib does at the end of its epoch."""
    if method == "patchcore":
        model.subsample_embedding(0.1)
    elif hasattr(model, "fit_gaussian"):  # the name in other versions
        model.fit_gaussian()
    else:
        model.fit()


def numbers_kept(method: str, model: Any) -> list[Tensor]:
    return [model.gaussian.mean, model.gaussian.inv_covariance] if method == "padim" else [model.memory_bank]


@torch.no_grad()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    method, device = job["contender"], torch.device(job["device"])
    model = build(method).to(device)

    def batches(name: str) -> Iterator[Tensor]:
        loader = DataLoader(Images(job[name]), batch_size=job["batch"], num_workers=job["threads"])
        return (batch.to(device) for batch in loader)

    baseline = restart_peak()
    model.feature_extractor(torch.zeros(job["batch"], 3, 224, 224, device=device))
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
        "model_mb": sum(tensor.nbytes for tensor in numbers_kept(method, model)) / 1e6,
        "environment": f"anomalib {version('anomalib')}, torch {torch.__version__}, Python {sys.version.split()[0]}",
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))

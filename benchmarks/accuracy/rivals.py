"""Maps and scores of a method of anomalib; `python -m benchmarks.accuracy` runs this with another interpreter.

Each argument is a file that describes a job: the paths of the images, the size they are resized to, the state dict of
the network, the file to write, and if they are large the size and stride of tiles. The environment needs no
ipca_sklearn. The last line printed is a JSON object with the result of the last job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.common.rivals import Images, build, fit_gaussian, megabytes_kept, versions

BATCH = 16


def load_weights(extractor: nn.Module, backbone: str, file: str) -> None:
    """Put the tensors of a state dict, which come in timm's order, into a network that gives some layers."""
    whole = timm.create_model(backbone)
    tensors = torch.load(file, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), tensors.values(), strict=True)))
    extractor.load_state_dict({name: whole.state_dict()[name] for name in extractor.state_dict()})


def choose_coreset(vectors: Tensor, n: int) -> Tensor:
    """Return n rows (n, m) of vectors, by anomalib's rule: the one farthest from those chosen, from a random start.

    anomalib computes distances after a random projection, which has more dimensions than these vectors have. Exact ones
    by a matrix product take a fraction of the time.
    """
    squares = vectors.square().sum(1)
    nearest, distances = torch.full_like(squares, torch.inf), torch.empty_like(squares)
    chosen = [int(torch.randint(len(vectors), (1,)))]
    while len(chosen) < n:
        last = chosen[-1]
        torch.addmv(squares, vectors, vectors[last], alpha=-2, out=distances)
        torch.minimum(nearest, distances.add_(squares[last]), out=nearest)
        nearest[last] = 0
        chosen.append(int(nearest.argmax()))
    return vectors[chosen]


@torch.no_grad()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(job["kind"], job["backbone"], job["layers"])
    load_weights(model.feature_extractor.feature_extractor, job["backbone"], job["weights"])
    # As anomalib prepares images, but for the mean and deviation, which are those of the weights.
    prepare = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(job["size"], antialias=True),
            v2.Normalize(job["mean"], job["std"]),
        ]
    )
    batch_size = BATCH
    if "tiles" in job:
        from anomalib.data.utils.tiler import Tiler

        model.tiler, batch_size = Tiler(**job["tiles"]), 1
    model.train()
    for batch in DataLoader(Images(job["train"], prepare), batch_size):
        model(batch)
    if job["kind"] == "patchcore":
        bank = torch.vstack(model.embedding_store)
        model.embedding_store.clear()
        model.memory_bank = choose_coreset(bank, int(job["coreset"] * len(bank)))
        del bank
    else:
        fit_gaussian(model)
    model.eval()
    maps, scores = [], []
    for batch in DataLoader(Images(job["test"], prepare), batch_size):
        output = model(batch)
        maps.append(output.anomaly_map[:, 0].numpy())
        scores.append(output.pred_score.flatten().numpy())
    np.savez(job["out"], maps=np.concatenate(maps), scores=np.concatenate(scores))
    return {"model_mb": megabytes_kept(job["kind"], model), "environment": versions()}


if __name__ == "__main__":
    results = [measure(json.loads(Path(job).read_text())) for job in sys.argv[1:]]
    print(json.dumps(results[-1]))

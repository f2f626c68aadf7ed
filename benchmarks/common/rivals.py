"""Methods of anomalib, as torch models without its engine. Only an environment that has anomalib imports this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset):
    """Image files, each prepared by a function of an RGB image."""

    def __init__(self, paths: list[str], prepare: Callable[[Any], Tensor]) -> None:
        self.paths, self.prepare = paths, prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.prepare(image.convert("RGB"))


class Whole(torch.nn.Module):
    """Images (n, 3, H, W) of uint8, of the size that is learnt, to scores and maps: what an exported file gives."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and maps."""
        found = self.model(images.float() / 127.5 - 1)
        return found.pred_score, found.anomaly_map


def build(method: str, backbone: str, layers: list[str]) -> Any:
    """Return the model of a method, `"padim"` or `"patchcore"`, with random weights."""
    options = {"backbone": backbone, "layers": layers, "pre_trained": False}
    if method == "padim":
        from anomalib.models.image.padim.torch_model import PadimModel

        return PadimModel(**options, n_features=100)
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return PatchcoreModel(**options)


def fit_gaussian(model: Any) -> None:
    """Let PaDiM compute its Gaussians, as anomalib does at the end of its epoch."""
    if hasattr(model, "fit_gaussian"):  # the name in other versions
        model.fit_gaussian()
    else:
        model.fit()


def megabytes_kept(method: str, model: Any) -> float:
    """Return the size of what a model keeps beside its network."""
    kept = [model.gaussian.mean, model.gaussian.inv_covariance] if method == "padim" else [model.memory_bank]
    return sum(tensor.nbytes for tensor in kept) / 1e6


def versions() -> str:
    """Return a line with the versions of this environment."""
    import platform
    from importlib.metadata import version

    return f"anomalib {version('anomalib')}, torch {torch.__version__}, Python {platform.python_version()}"

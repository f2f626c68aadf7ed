"""Inputs and fitted models for the table of public calls."""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from ipca_sklearn import (
    BatchedIncrementalPCA,
    PatchFeatureExtractor,
    PatchGaussianDetector,
    ProductRouter,
    linalg,
    monitoring,
    persistence,
)
from ipca_sklearn.decomposition import FullCovariance


class SmallNetwork(nn.Module):
    """Two maps of an image. The weights are those of a seed, whatever the program has drawn before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(images)))


class World:
    """Inputs and fitted models, made once, in plain surroundings. Models are kept as bytes: each call reads its own."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.folder = folder
        self.X = rng.normal(size=(72, 4, 4, 12)).astype(np.float32)
        self.new = rng.normal(size=(6, 4, 4, 12)).astype(np.float32)
        self.new[0, 1, 1] += 9
        self.images = rng.integers(0, 255, (24, 40, 40, 3), dtype=np.uint8)
        self.labels = np.where(np.arange(64) % 2, 1, -1)
        self.masks = np.zeros((64, 16, 16), dtype=bool)
        self.masks[::2, 4:9, 4:9] = True
        self.maps = rng.random((64, 16, 16)).astype(np.float32) + self.masks
        self.scores = rng.normal(size=80)
        self.paths = []
        for number, pixels in enumerate(self.images):
            self.paths.append(str(folder / f"{number:02}.png"))
            Image.fromarray(pixels).save(self.paths[-1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = SmallNetwork()
        self.cpu_X, self.cpu_new = torch.from_numpy(self.X), torch.from_numpy(self.new)
        self._models = {
            "pca": BatchedIncrementalPCA(4).fit(self.X),
            "whitening": BatchedIncrementalPCA(4, whiten=True).fit(self.X),
            "other": BatchedIncrementalPCA(4).fit(self.X[::2]),
            "flat": BatchedIncrementalPCA(4).fit(self.X.reshape(-1, 12)),
            "full": FullCovariance().fit(self.X),
            "detector": PatchGaussianDetector(4, smoothing=1).fit(self.X),
            "padim": PatchGaussianDetector(covariance="full", distance="mahalanobis").fit(self.X),
            "extractor": self.new_extractor().fit(self.images),
            "pipe": self.new_pipe().fit(self.images),
            "router": ProductRouter(PatchGaussianDetector(4), rejection_rate=0.1).fit(self.X, np.arange(72) % 2),
            "monitor": monitoring.DriftMonitor(random_state=0).fit(self.scores),
        }
        self._models = {name: pickle.dumps(model) for name, model in self._models.items()}
        self.joblib = folder / "pca.joblib"
        self.skops = folder / "pca.skops"
        persistence.save(self["pca"], self.joblib)
        persistence.save_skops(self["pca"], self.skops)
        for name in ("train/good/0", "test/good/0", "test/dent/0", "ground_truth/dent/0_mask"):
            path = folder / "mvtec" / "bolt" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.images[0]).save(path)
        for name in ("MT_Free/Imgs/exp1_a.jpg", "MT_Free/Imgs/exp2_a.jpg", "MT_Crack/Imgs/exp1_b.jpg"):
            path = folder / "tiles" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.images[0]).save(path)
        Image.fromarray(self.images[0, ..., 0]).save(folder / "tiles/MT_Crack/Imgs/exp1_b.png")
        with torch.random.fork_rng(devices=[]):
            state = linalg.update(linalg.empty_state(16, 12, dtype=torch.float32, device="cpu"), self.step, n_rows=4)
            self.state = state
            self.scatter = linalg.update_scatter(
                linalg.empty_scatter(16, 12, dtype=torch.float32, device="cpu"), self.step
            )

    def __getitem__(self, name: str) -> Any:
        return pickle.loads(self._models[name])

    @property
    def step(self) -> Tensor:
        return self.cpu_X.flatten(1, 2)

    @property
    def basis(self) -> linalg.Basis:
        return linalg.finalize(self.state, n_components=4)

    def new_extractor(self, **options: Any) -> PatchFeatureExtractor:
        return PatchFeatureExtractor(
            self.network, layers=["first", "second"], image_size=32, crop_size=32, random_state=0, **options
        )

    def new_pipe(self) -> Pipeline:
        return Pipeline([("features", self.new_extractor()), ("detector", PatchGaussianDetector(2))])


@dataclasses.dataclass
class Fresh:
    """A path that nobody has used."""

    folder: Path

    def __call__(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

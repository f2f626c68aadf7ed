"""Cells of the paper's tables (class x setup x trial): each is measured once and kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.utils import Bunch
from tqdm import tqdm

from benchmarks.common.reports import environment
from benchmarks.common.timing import seconds
from benchmarks.paper.state import Result, State
from benchmarks.paper.tables import TILES, Setup
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad
from ipca_sklearn.metrics import image_roc_auc_score, pixel_roc_auc_score

BATCH = 8  # "The batch size was 8 for all experiments"
PAPER_EXTRACTOR: dict[str, Any] = {
    "interpolation": "nearest",
    "normalization": "imagenet",
    "map_interpolation": "nearest",
    "pooling_size": 1,
    "batch_size": BATCH,
}
PAPER_DETECTOR: dict[str, Any] = {
    "n_gaussians": None,
    "distance": "mahalanobis",
    "centering": "deferred",
    "covariance": "low_rank",
    "image_score": "max",
    "smoothing": 0.0,
}


BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} cells, {remaining} left{postfix}"


@dataclass(frozen=True)
class Conditions:
    """Conditions that all cells of a run share; `backbone` replaces those of the paper."""

    backbone: str | None = None
    weights: str = "DEFAULT"
    image_size: int = 256
    crop_size: int = 224
    device: str = "cpu"

    def resolve(self, setup: Setup) -> Setup:
        """Return the setup as this machine can run it; equal setups share their cells."""
        if not self.device.startswith("cuda"):
            setup = replace(setup, svd_driver=None)
        if self.backbone is not None:
            setup = replace(setup, backbone=self.backbone, n_random_features=None)
        return setup


class Runs:
    """Results of cells, from the state or measured now, and the reasons for missing ones."""

    def __init__(self, conditions: Conditions, roots: dict[str, Path | None], state: State) -> None:
        self.conditions, self.state = conditions, state
        self.missing: dict[str, str] = {}
        self._roots = roots
        self._data: dict[str, Bunch] = {}
        self._environment = environment()
        self._results: dict[tuple[str, Setup], Result] = {}
        self._reasons: dict[tuple[str, Setup], str] = {}
        self._no_network: dict[str, str] = {}
        self._networks: dict[tuple[str, int | None], PatchFeatureExtractor] = {}

    def result(self, name: str, setup: Setup) -> Result | None:
        """Return the result of a cell, or None."""
        return self._results.get((name, self.conditions.resolve(setup)))

    def as_json(self) -> list[dict[str, Any]]:
        """Return all results, each with its class and its setup."""
        return [{"class": name, **asdict(setup), **result} for (name, setup), result in self._results.items()]

    def reason(self, name: str, setup: Setup) -> str:
        """Return the reason why there is no result."""
        return self.missing.get(name) or self._reasons.get((name, self.conditions.resolve(setup)), "not run yet")

    def key(self, name: str, setup: Setup) -> dict[str, Any]:
        """Return everything that a result depends on; `setup` is resolved."""
        shared = {"extractor": PAPER_EXTRACTOR, "detector": PAPER_DETECTOR, "environment": self._environment}
        images = self._fingerprint(name)
        return {"class": name, "images": images, **asdict(setup), **asdict(self.conditions), **shared}

    def run(self, cells: Iterable[tuple[str, Setup]], limit: int | None) -> None:
        """Measure the cells that the state lacks, class by class, `limit` of them at most."""
        todo: dict[str, list[Setup]] = {}
        for name, setup in dict.fromkeys((name, self.conditions.resolve(setup)) for name, setup in cells):
            if not self._find(name):
                continue
            known = self.state.get(self.key(name, setup))
            if known is None:
                todo.setdefault(name, []).append(setup)
            else:
                self._results[name, setup] = known
        chosen = [(name, setup) for name, setups in todo.items() for setup in setups][:limit]
        decoded: tuple[str, Bunch] | None = None
        with tqdm(total=len(chosen), bar_format=BAR) as bar:
            for name, setup in chosen:
                bar.set_postfix_str(f"{name}, {describe(setup)}")
                try:
                    if setup.backbone in self._no_network:
                        raise OSError(self._no_network[setup.backbone])
                    network = self._network(setup)
                    if decoded is None or decoded[0] != name:  # holds the images of one class at a time
                        decoded = None
                        decoded = (name, decode(self._data[name]))
                    self._results[name, setup] = measure(setup, network, decoded[1], self.conditions.device)
                    self.state.add(self.key(name, setup), self._results[name, setup])
                except (OSError, ImportError, ValueError, RuntimeError, MemoryError) as error:
                    self._reasons[name, setup] = self._told(error)
                bar.update()

    def paths(self, name: str) -> Bunch | None:
        """Return the files of a class, or None if it is missing."""
        return self._data[name] if self._find(name) else None

    def _find(self, name: str) -> bool:
        if name not in self._data and name not in self.missing:
            root = self._roots[TILES if name == TILES else "mvtec"]
            if root is None:
                self.missing[name] = "its folder was not named"
                return False
            try:
                self._data[name] = load_magnetic_tile(root) if name == TILES else load_mvtec_ad(root, name)
            except (OSError, ValueError) as error:
                self.missing[name] = self._told(error)
        return name in self._data

    def _fingerprint(self, name: str) -> str:
        data = self._data[name]
        files = [*data.train_paths, *data.test_paths, *filter(None, data.mask_paths)]
        listed = [(path.parent.name, path.name, path.stat().st_size) for path in files]
        return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]

    def _network(self, setup: Setup) -> PatchFeatureExtractor:
        """Return the fitted extractor; the paper's figures do not include making a network and loading its weights."""
        key = (setup.backbone, setup.trial if setup.random_crop else None)
        if key not in self._networks:
            self._networks.clear()  # keeps one network in memory
            try:
                self._networks[key] = make_extractor(setup, self.conditions).fit([np.zeros((8, 8, 3), np.uint8)])
            except OSError as error:
                self._no_network[setup.backbone] = str(error)
                raise
        return self._networks[key]

    def _told(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        for name, root in self._roots.items():  # no path of the machine goes into a report
            text = text.replace(str(root), f"<{name}>")
        return f"{type(error).__name__}: {text}"[:300]


def describe(setup: Setup) -> str:
    step = "one step" if setup.step_size is None else f"step {setup.step_size}"
    crop = f", random crop {setup.trial}" if setup.random_crop else ""
    return f"{setup.backbone}, k {setup.n_components}, {step}, {setup.solver}, {setup.dtype}{crop}"


def make_extractor(setup: Setup, conditions: Conditions) -> PatchFeatureExtractor:
    sizes = {"image_size": conditions.image_size, "crop_size": conditions.crop_size}
    return PatchFeatureExtractor(
        setup.backbone,
        weights=None if conditions.weights == "none" else conditions.weights,
        augment="random_crop" if setup.random_crop else None,
        device=conditions.device,
        random_state=setup.trial,
        **PAPER_EXTRACTOR | sizes,
    )


def make_detector(setup: Setup) -> PatchGaussianDetector:
    names = ("step_size", "solver", "svd_driver", "dtype", "n_random_features")
    varied = {name: getattr(setup, name) for name in names} | {"random_state": 0}
    return PatchGaussianDetector(setup.n_components, **PAPER_DETECTOR | varied)


def decode(data: Bunch) -> Bunch:
    """Read the images of a class, so that no speed includes it."""
    return Bunch(train=_read(data.train_paths), test=_read(data.test_paths), **data)


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    return images


def measure(setup: Setup, extractor: PatchFeatureExtractor, data: Bunch, device: str) -> Result:
    """Learn and score one class; both times include the network, because features are computed while they are read."""
    torch.set_grad_enabled(False)
    detector = make_detector(setup)
    train = extractor.fit_transform(data.train) if setup.random_crop else extractor.transform(data.train)
    test = extractor.transform(data.test)
    clone(detector).fit(train[:BATCH]).transform(train[:BATCH])  # loads the libraries
    train_seconds = seconds(lambda: detector.fit(train), device, 1, warm_up=False)[0]
    detector.set_params(step_size=BATCH)  # the step of scoring
    maps: list[np.ndarray] = []
    test_seconds = seconds(lambda: maps.append(np.asarray(detector.transform(test))), device, 1, warm_up=False)[0]
    return {
        "image_roc_auc": 100 * image_roc_auc_score(data.test_labels, -maps[0].max((1, 2))),
        "pixel_roc_auc": 100
        * pixel_roc_auc_score(extractor.transform_masks(data.mask_paths, data.test_paths), maps[0]),
        "n_train": len(data.train),
        "n_test": len(data.test),
        "train_seconds": train_seconds,
        "test_seconds": test_seconds,
    }

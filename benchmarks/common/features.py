"""Features of whole sets, computed once and read by many fits."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad, make_textures


def add_set_options(parser: argparse.ArgumentParser, materials: Sequence[str]) -> None:
    """Add the options that say which sets are read."""
    parser.add_argument("--magnetic-tile", type=Path)
    parser.add_argument("--mvtec", nargs=2, metavar=("ROOT", "CLASS"))
    parser.add_argument("--materials", nargs="*", default=list(materials), help="of make_textures")
    parser.add_argument("--n-textures", type=int, default=400)


def image_sets(options: argparse.Namespace) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return all normal and all anomalous images of each set."""
    sets: dict[str, tuple[list[Any], list[Any]]] = {}
    if options.magnetic_tile:
        sets["magnetic tiles"] = _split(load_magnetic_tile(options.magnetic_tile))
    if options.mvtec:
        root, name = options.mvtec
        options.mvtec = (Path(root), name)  # `write_results` puts a placeholder for paths
        sets[f"{name} tiles"] = _split(load_mvtec_ad(root, name))
    for material in options.materials:
        normal = make_textures(options.n_textures, 0, material=material, random_state=0).train_images
        test = make_textures(1, 200, material=material, random_state=1)
        sets[material] = (list(normal), list(test.test_images[test.test_labels == -1]))
    return sets


def _split(data: Any) -> tuple[list[Any], list[Any]]:
    test = np.array(data.test_paths)
    return [*data.train_paths, *test[data.test_labels == 1]], list(test[data.test_labels == -1])


@contextmanager
def features_on_disk(extractor: PatchFeatureExtractor, images: Sequence[Any]) -> Iterator[np.memmap]:
    """Compute the features of images once, into a temporary file that is read like an array."""
    lazy = extractor.fit(images).transform(images)
    with tempfile.TemporaryFile() as file:
        features = np.memmap(file, dtype=lazy.dtype, shape=lazy.shape)
        start = 0
        for batch in lazy.batches(16):
            features[start : start + len(batch)] = batch.numpy()
            start += len(batch)
        yield features

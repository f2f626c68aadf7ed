"""The main job on the real images, small enough for every run; the full figures are in benchmarks/."""

from __future__ import annotations

import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad
from ipca_sklearn.metrics import image_roc_auc_score, pixel_roc_auc_score


def fitted(paths):
    extractor = PatchFeatureExtractor("efficientnet_lite0", n_jobs=2)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(16))]).fit(paths)


def evaluate(pipe, data, every):
    chosen = slice(None, None, every)
    maps = pipe.transform(data.test_paths[chosen])
    masks = pipe["features"].transform_masks(data.mask_paths[chosen])
    scores = -maps.max((1, 2))
    return image_roc_auc_score(data.test_labels[chosen], scores), pixel_roc_auc_score(masks, maps)


def test_leather_defects_are_found_from_a_third_of_the_tiles(data_root):
    data = load_mvtec_ad(data_root / "mvtec", "leather")
    image, pixel = evaluate(fitted(data.train_paths[::3]), data, 3)
    assert image > 0.93 and pixel > 0.85


def test_magnetic_tile_defects_are_found_from_a_quarter_of_the_images(data_root):
    data = load_magnetic_tile(data_root / "magnetic_tile")
    pipe = fitted(data.train_paths[::4])
    image, pixel = evaluate(pipe, data, 4)
    assert image > 0.75 and pixel > 0.65
    normal = np.asarray(data.test_labels) == 1
    paths = [path for path, good in zip(data.test_paths, normal, strict=True) if good][:40]
    assert np.mean(pipe.predict(paths) == 1) > 0.8

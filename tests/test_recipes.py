"""SubspaceAD and PaDiM by public parameters, beside plain numpy that follows their papers' equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.decomposition import PCA

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.features.backbones._networks import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).resolve().parent.parent


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (n, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (0.7 * coarse + rng.integers(0, 70, (n, 64, 64, 3))).astype(np.uint8)


def bilinear(maps, size):
    """Enlarge by the two nearest values on each axis; beyond the outer centres by the edge."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = maps.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        below = np.floor(at).astype(int)
        above, share = np.minimum(below + 1, old - 1), at - below
        share = share.reshape([-1 if dimension == axis else 1 for dimension in range(3)])
        maps = (1 - share) * maps.take(below, axis) + share * maps.take(above, axis)
    return maps


def blurred(maps, sigma):
    """A Gaussian kernel of four standard deviations along both axes, over mirrored edges."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (1, 2):
        pads = [(reach, reach) if dimension == axis else (0, 0) for dimension in range(3)]
        padded = np.pad(maps, pads, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=axis)
        maps = windows @ kernel
    return maps


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_subspacead_is_that_of_numpy(monkeypatch):
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("benchmarks/ is part of the repository, not of a package")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.accuracy.evaluation import subspace_ad
    from benchmarks.accuracy.settings import SUBSPACE_AD, SUBSPACE_AD_BLUR

    layers = ["layer2.0", "layer2.1"]
    extractor = PatchFeatureExtractor(
        "resnet18",
        weights=None,
        layers=layers,
        layer_pooling="mean",
        image_size=64,
        pooling_size=1,
        margin=0,
        random_state=0,
    )
    train = np.asarray(extractor.fit_transform(pictures(20)), dtype=np.float64)
    test = np.asarray(extractor.transform(pictures(5, seed=1)), dtype=np.float64)
    detector = PatchGaussianDetector(**SUBSPACE_AD, dtype="float64").fit(train.astype(np.float32))
    maps, scores = subspace_ad(detector.transform(test.astype(np.float32)), (64, 64))

    samples = train.reshape(-1, train.shape[-1])
    mean = samples.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(samples.T))
    explained = np.cumsum(variances[::-1]) / variances.sum()
    k = int(np.searchsorted(explained, 0.99)) + 1
    assert 1 < k < samples.shape[1] and k == PCA(0.99, svd_solver="full").fit(samples).n_components_
    kept = directions[:, ::-1][:, :k]
    centred = test - mean
    squared = ((centred - centred @ kept @ kept.T) ** 2).sum(axis=-1)
    assert_close(detector.transform(test.astype(np.float32)) ** 2, squared)
    expected = blurred(bilinear(squared, (64, 64)), SUBSPACE_AD_BLUR)
    assert_close(maps, expected)
    largest = np.sort(expected.reshape(len(expected), -1), axis=1)[:, -round(0.01 * 64 * 64) :]
    assert_close(scores, largest.mean(axis=1))


def test_padim_is_that_of_numpy():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    layers = ["layer1", "layer2", "layer3"]
    extractor = PatchFeatureExtractor(
        network, layers=layers, image_size=64, map_interpolation="nearest", pooling_size=1, margin=0
    )
    detector = PatchGaussianDetector(
        n_gaussians=None,
        covariance="full",
        distance="mahalanobis",
        n_random_features=40,
        random_state=0,
        dtype="float64",  # the inverse of a covariance loses digits
    )
    train, test = pictures(30), pictures(4, seed=1)
    learnt, looked_at = (np.asarray(part) for part in (extractor.fit_transform(train), extractor.transform(test)))
    maps = detector.fit(learnt).transform(looked_at)

    seen = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, value, layer=layer: seen.update({layer: value})
        )

    def embeddings(images):
        """All layers at the places of the first one, by the nearest position."""
        pixels = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        with torch.inference_mode():
            network(torch.from_numpy(pixels).float().movedim(-1, 1))
        parts = [value.movedim(1, -1).double().numpy() for value in seen.values()]
        stretched = [part.repeat(16 // part.shape[1], axis=1).repeat(16 // part.shape[2], axis=2) for part in parts]
        return np.concatenate(stretched, axis=-1)

    assert_close(looked_at, embeddings(test))
    assert len(set(detector.feature_indices_)) == 40
    learnt, looked_at = (part[..., detector.feature_indices_].astype(float) for part in (learnt, looked_at))
    expected = np.empty((4, 16, 16))
    for place in np.ndindex(16, 16):
        samples = learnt[:, *place]
        mean = samples.mean(axis=0)
        covariance = (samples - mean).T @ (samples - mean) / (len(samples) - 1) + 0.01 * np.eye(40)
        deviations = looked_at[:, *place] - mean
        squares = np.einsum("nj,jk,nk->n", deviations, np.linalg.inv(covariance), deviations)
        expected[:, *place] = np.sqrt(squares)
    assert_close(maps, expected)

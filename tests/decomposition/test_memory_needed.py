"""What a fit takes is said before it begins, and a fit that no machine can hold does not begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn._utils import _devices
from ipca_sklearn.decomposition import FullCovariance

X = np.random.default_rng(0).normal(size=(80, 6, 7, 12)).astype(np.float32)


def stored_bytes(estimator):
    state = getattr(estimator, "pca_", estimator).fitted_.state
    return sum(
        value.numel() * value.element_size() for value in vars(state).values() if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize(
    "estimator",
    [
        BatchedIncrementalPCA(3),
        BatchedIncrementalPCA(None, step_size=10),
        BatchedIncrementalPCA(3, n_oversamples=2, dtype="float64"),
        FullCovariance(),
        PatchGaussianDetector(4),
        PatchGaussianDetector(4, n_random_features=9, random_state=0),
        PatchGaussianDetector(covariance="full", distance="mahalanobis"),
    ],
)
def test_the_model_needs_what_is_said(estimator):
    need = estimator.memory_needed(X)
    assert need.model == stored_bytes(estimator.fit(X))
    assert need.learning > 2 * need.model


def test_a_lazy_source_counts_its_network_and_a_region_its_patches_alone():
    images = np.zeros((80, 64, 64, 3), dtype=np.uint8)
    half = np.zeros((64, 64), dtype=bool)
    half[:, :32] = True
    needs = []
    for region, batch_size in ((None, 8), (half, 8), (None, 16)):
        extractor = PatchFeatureExtractor(
            "resnet18", weights=None, layers=["layer1"], image_size=64, region=region, batch_size=batch_size
        )
        features = extractor.fit(images).transform(images)
        needs.append((PatchGaussianDetector(2).memory_needed(features), features.memory_needed))
    (whole, network), (part, _), (_, network_of_more) = needs
    assert part.model == whole.model / 2
    assert whole.learning == PatchGaussianDetector(2).memory_needed(np.zeros((80, 16, 16, 64), "f4")).learning + network
    # Weights of about 0.6 MB, and for each image what the widest layer reads and writes: 64 maps of 48 x 48, twice,
    # half of the 64 pixels with a margin of 16 at both edges.
    assert (network_of_more - network) / 8 == pytest.approx(2 * 64 * 48 * 48 * 4 + 3 * 3 * 64 * 64 * 4)


def test_decoding_counts_by_the_size_of_the_first_image(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    for path, side in ((small, 64), (large, 640)):
        Image.new("RGB", (side, side)).save(path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    extractor = PatchFeatureExtractor(
        "resnet18", weights=None, layers=["layer1"], image_size=64, n_jobs=2, on_error="skip"
    ).fit([small])
    needs = [extractor.transform([path]).memory_needed for path in (large, small, tmp_path / "broken.png")]
    assert np.diff(needs).tolist() == [-12 * 2 * (640**2 - 64**2), -12 * 2 * 64**2]


def test_few_images_are_kept_and_count():
    detector = PatchGaussianDetector(2)
    assert detector.memory_needed(X[:64]).learning - detector.memory_needed(X[:1]).learning > X[:64].nbytes
    assert detector.memory_needed(X[:65]).learning < detector.memory_needed(X[:64]).learning


class NoMemory:
    """Features that no machine can hold the model of; reading them is an error."""

    ndim, dtype, device, may_skip = 4, np.dtype(np.float32), torch.device("cpu"), False
    shape = (1000, 1000, 1000, 100_000)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        raise AssertionError("was read")

    read = __getitem__


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("make", [BatchedIncrementalPCA, PatchGaussianDetector])
def test_what_cannot_fit_is_an_error_before_the_first_step(make, method):
    message = (
        r"learning P = 1000000 patches of m = 100000 features needs about \d+.* GB of memory, .* for the model; this "
        r"machine has .*GB\. Lower n_components or step_size .*image_size, grid_size.*region=.*layers"
    )
    with pytest.raises(MemoryError, match=message):
        getattr(make(), method)(NoMemory())


def test_a_failed_check_leaves_what_was_learnt(monkeypatch):
    detector = PatchGaussianDetector(2).fit(X)
    before = detector.pca_.components_.copy(), detector.offset_
    monkeypatch.setattr("ipca_sklearn.decomposition._base.memory_of", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"needs about 0 MB.*has 0 MB"):
        detector.partial_fit(X)
    np.testing.assert_array_equal(detector.pca_.components_, before[0])
    assert (detector.offset_, detector.n_samples_seen_) == (before[1], 80)


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("123456\n")
    monkeypatch.setattr(_devices, "_LIMITS", (tmp_path / "absent", limit))
    assert _devices.memory_of(torch.device("cpu")) == 123456
    limit.write_text("max\n")
    assert _devices.memory_of(torch.device("cpu")) > 1 << 27
    assert _devices.memory_of(torch.device("meta")) is None


def test_a_system_that_does_not_say_is_not_checked(monkeypatch):
    monkeypatch.setattr("ipca_sklearn.decomposition._base.memory_of", lambda device: None)
    assert PatchGaussianDetector(2).fit(X).n_samples_seen_ == 80


def test_a_pipeline_is_checked_too(monkeypatch):
    monkeypatch.setattr("ipca_sklearn.decomposition._base.memory_of", lambda device: 1000)
    extractor = PatchFeatureExtractor("resnet18", weights=None, layers=["layer1"], image_size=32)
    with pytest.raises(MemoryError, match="batch_size"):
        Pipeline([("f", extractor), ("d", PatchGaussianDetector(2))]).fit(np.zeros((70, 32, 32, 3), dtype=np.uint8))


def test_more_directions_than_features_take_no_memory():
    X = np.random.default_rng(0).normal(size=(40, 2, 3))
    all_of_them, far_more = (BatchedIncrementalPCA(2, n_oversamples=n) for n in (1, 10**30))
    assert far_more.memory_needed(X) == all_of_them.memory_needed(X)
    np.testing.assert_array_equal(far_more.fit(X).components_, all_of_them.fit(X).components_)

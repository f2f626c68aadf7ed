"""Without a GPU: no tensor of a computation on one is left on the CPU, and the results are those of the CPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, linalg
from ipca_sklearn.features._lazy import _fill
from ipca_sklearn.features._settings import settings_of
from tests.devices.pretended import CPU, GPU, Pretended, pretended_gpu, values_of

GENERATOR = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(40, 6, 8, generator=GENERATOR) * torch.tensor([9.0, 4, 2, 1, 1, 1, 1, 1])
EXTREME = SAMPLES * torch.tensor([1, 1e25, 1e-25, 0, 1, 1])[:, None]  # squares overflow, underflow, or are none
FLAT = torch.cat([SAMPLES[:, :, :2], 1e-4 * SAMPLES[:, :, 2:]], dim=2)  # weak directions are decomposed twice


def learnt(samples, n_rows=4, **how):
    state = linalg.empty_state(6, 8, dtype=samples.dtype, device=samples.device)
    for step in samples.split(16):
        state = linalg.update(state, step, n_rows=n_rows, **how)
    return state


def scatter(samples, **how):
    state = linalg.empty_scatter(6, 8, dtype=samples.dtype, device=samples.device)
    for step in samples.split(16):
        state = linalg.update_scatter(state, step, **how)
    return state


def basis(samples):
    return linalg.finalize(learnt(samples), n_components=3)


def distances(samples, distance="factor_analysis"):
    operator = linalg.distance_operator(basis(samples), distance=distance, noise_shrinkage=0.5)
    return linalg.patch_distances(operator, samples)


def distances_of_groups(samples):
    operator = linalg.distance_operator(basis(samples), distance="factor_analysis", noise_shrinkage=0.5)
    slots = torch.arange(2 * samples.shape[1], device=samples.device).view(-1, 2)
    return linalg.patch_distances(operator, linalg.GroupedSamples(torch.cat([samples, samples], 1), slots))


def packed(samples):
    state = scatter(samples)
    return linalg.unpack(8, linalg.pack(state.matrix)).to(state.matrix)


def unlike_triangles(gram):
    """Only the lower triangle counts, and NaN in one matrix of a batch is an error of that one alone."""
    return gram + torch.ones_like(gram).triu(1)


def solved(name):
    def call(samples):
        gram = torch.einsum("npm,npl->pml", samples, samples)
        values, vectors = linalg.EIGENSOLVERS[name].solve(unlike_triangles(gram), 3)
        return values, vectors.square()

    return call


def centred(samples):
    operator = linalg.distance_operator(basis(samples), distance="ppca").folded()
    samples = (samples - operator.mean).transpose(0, 1)
    return linalg.distances_from_centred(samples, operator.rows, None, operator.scale, operator.precision)


LINALG = {
    **{f"update, {solver}": lambda X, solver=solver: learnt(X, solver=solver) for solver in linalg.SOLVERS},
    "update, deferred": lambda X: learnt(X, centering="deferred"),
    "update, forgetting": lambda X: learnt(X, forgetting_factor=0.9),
    "update, long step": lambda X: linalg.update(linalg.empty_state(6, 8, device=X.device), X, n_rows=3),
    "merge": lambda X: linalg.merge(learnt(X[:20]), learnt(X[20:]), n_rows=4),
    "finalize": lambda X: basis(X),
    "finalize, deferred": lambda X: linalg.finalize(learnt(X), n_components=3, centering="deferred"),
    "components": lambda X: basis(X).components,
    "feature_noise": lambda X: basis(X).feature_noise,
    "keep_share": lambda X: linalg.keep_share(linalg.finalize_scatter(scatter(X)), 0.9),
    "keep_share, noise": lambda X: linalg.keep_share(linalg.finalize_scatter(scatter(X)), 0.9)[0].feature_noise,
    "leading_components": lambda X: linalg.leading_components(linalg.finalize_scatter(scatter(X)), 2).variance,
    "update_scatter": lambda X: scatter(X).covariance(),
    "update_scatter, in place": lambda X: scatter(X, in_place=True, forgetting_factor=0.9).covariance(),
    "merge_scatter": lambda X: linalg.merge_scatter(scatter(X[:20]), scatter(X[20:])).covariance(),
    "finalize_scatter": lambda X: linalg.finalize_scatter(scatter(X), n_components=3).variance,
    "whitening_operator": lambda X: linalg.patch_distances(linalg.whitening_operator(scatter(X), ridge=0.1), X),
    "pack and unpack": lambda X: packed(X).tril(),
    **{f"patch_distances, {name}": lambda X, name=name: distances(X, name) for name in linalg.DISTANCES},
    "patch_distances, groups": distances_of_groups,
    "distances_from_centred": centred,
    "log_likelihood": lambda X: linalg.log_likelihood(basis(X), X),
    "project": lambda X: linalg.project(basis(X), X, whiten=True),
    "reconstruct": lambda X: linalg.reconstruct(basis(X), linalg.project(basis(X), X, whiten=True), whiten=True),
    "eigensolver torch": solved("torch"),
    "eigensolver host": solved("host"),
}


# Distances that float32 gives to 0.2 % of those of float64, on either device.
ROUGH = {("patch_distances, groups", torch.float32): 5e-3}


def tensors_of(result):
    """Return the tensors of a result; the sign of a direction is the eigensolver's."""
    if isinstance(result, Tensor):
        return [result]
    if is_dataclass(result):
        parts = {field.name: getattr(result, field.name) for field in fields(result)}
        result = [
            abs(part) if name in ("rows", "transform") and part is not None else part for name, part in parts.items()
        ]
    return [tensor for part in result for tensor in tensors_of(part)] if isinstance(result, (list, tuple)) else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LINALG)
def test_linalg_computes_on_the_gpu_what_it_does_on_the_cpu(name, dtype):
    samples = SAMPLES.to(dtype)
    expected = tensors_of(LINALG[name](samples))
    with pretended_gpu():
        found = tensors_of(LINALG[name](samples.to(GPU)))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(values_of(ours), theirs, rtol=ROUGH.get((name, dtype), 1e-3), atol=1e-4)


# Branches of few matrices: their results are compared on the CPU, in tests/linalg.
RARE = {
    "squares leave the range": (EXTREME, "update, auto"),
    "squares leave the range of a Gram matrix's SVD": (EXTREME, "update, gram_svd"),
    "weak directions": (FLAT, "patch_distances, factor_analysis"),
    "weak directions, long step": (FLAT, "update, long step"),
    "norms leave the range": (1e-25 * SAMPLES, "finalize"),
}


@pytest.mark.parametrize("name", RARE)
def test_rare_branches_leave_no_tensor_on_the_cpu(name):
    samples, function = RARE[name]
    with pretended_gpu():
        found = tensors_of(LINALG[function](samples.to(GPU)))
    assert found and all(isinstance(tensor, Pretended) for tensor in found)


@pytest.mark.parametrize("solver", ["torch", "host"])
def test_a_matrix_that_fails_is_solved_alone_and_comes_back(solver, monkeypatch):
    calls = Counter()
    eigh = torch.linalg.eigh

    def failing(gram, UPLO="L"):
        calls["eigh"] += 1
        if len(gram) > 1:
            raise torch.linalg.LinAlgError("not this time")
        values, vectors = eigh(gram, UPLO=UPLO)
        return values, torch.full_like(vectors, torch.nan) if gram.ndim == 3 else vectors

    gram = torch.einsum("npm,npl->pml", SAMPLES, SAMPLES)
    expected = linalg.EIGENSOLVERS["torch"].solve(gram, 3)[0]
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pretended_gpu():
        values, _ = linalg.EIGENSOLVERS[solver].solve(gram.to(GPU), 3)
    assert calls["eigh"] > len(gram)
    torch.testing.assert_close(values_of(values), expected)


X = torch.randn(90, 6, 6, 8, generator=GENERATOR) * torch.tensor([9.0, 4, 2, 1, 1, 1, 1, 1])
DETECTORS = {
    "shared": {"n_gaussians": 9, "n_components": 3},
    "a share": {"n_gaussians": 9, "n_components": 0.9},
    "unequal cells": {"n_gaussians": 5, "n_components": 2, "smoothing": 1.0, "image_score": "max"},
    "one each": {"n_gaussians": None, "n_components": 3, "forgetting_factor": 0.99},
    "incremental": {"n_gaussians": 9, "n_components": 3, "solver": "gram_eigh", "distance": "ppca"},
    "PaDiM": {"n_gaussians": None, "covariance": "full", "distance": "mahalanobis", "n_random_features": 4},
    "held out": {"n_components": 2, "calibration": 0.3, "image_score": "mean"},
}


def through_a_detector(X, n_learnt, **parameters):
    detector = PatchGaussianDetector(**parameters, random_state=0, false_positive_rate=0.1)
    detector.fit(X[: n_learnt - 5]).partial_fit(X[n_learnt - 5 : n_learnt])
    new = X[70:]
    results = [detector.transform(new), detector.score_samples(new), detector.predict(new), detector.predict_masks(new)]
    other = PatchGaussianDetector(**parameters, random_state=0, false_positive_rate=0.1).fit(X[:n_learnt])
    numbers = [detector.offset_, detector.map_threshold_, detector.score(new), *detector.p_values(new)]
    if parameters.get("covariance") != "full":
        results.append(detector.merge(other).score_samples(new))
    numbers += [detector.calibrate(new).offset_, detector.set_threshold(new, false_positive_rate=0.2).offset_]
    defects = detector.predict_regions(new)
    return results, numbers, [len(some) for some in defects]


@pytest.mark.parametrize("n_learnt", [20, 70])  # few images are scored by models of each other
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_computes_on_the_gpu_what_it_does_on_the_cpu(name, n_learnt):
    if name == "PaDiM" and n_learnt == 20:
        pytest.skip("one branch less")
    expected, expected_numbers, n_expected = through_a_detector(X, n_learnt, **DETECTORS[name])
    with pretended_gpu():
        found, numbers, n_found = through_a_detector(X.to(GPU), n_learnt, **DETECTORS[name])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(values_of(ours), theirs, rtol=5e-3 if name == "one each" else 1e-3, atol=1e-3)
    np.testing.assert_allclose(numbers, expected_numbers, rtol=1e-3)
    assert n_found == n_expected


@pytest.mark.parametrize("solver", ["auto", "covariance"])
def test_a_pca_computes_on_the_gpu_what_it_does_on_the_cpu(solver):
    def results(X):
        pca = BatchedIncrementalPCA(3, solver=solver, whiten=True).fit(X)
        coordinates = pca.transform(X)
        pca.merge(BatchedIncrementalPCA(3, solver=solver, whiten=True).fit(X + 1))
        return [
            coordinates.square(), pca.inverse_transform(coordinates), pca.get_covariance(), pca.get_precision(),
            pca.mean_, pca.var_, pca.explained_variance_ratio_, pca.singular_values_, pca.noise_variance_,
        ]  # fmt: skip

    expected = results(SAMPLES)
    with pretended_gpu():
        found = results(SAMPLES.to(GPU))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(values_of(ours), theirs, rtol=1e-3, atol=1e-3)


EXTRACTORS = {
    "default": {},
    "paper": {"image_size": 64, "crop_size": 56, "interpolation": "nearest", "map_interpolation": "nearest"},
    "pooled grid": {"pooling_size": 1, "grid_size": 5},
    "region": {"region": np.arange(64 * 64).reshape(64, 64) < 2000},
    "mixed precision": {"amp": "bfloat16"},
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_are_computed_on_the_gpu_as_they_are_on_the_cpu(name, monkeypatch):
    # Weights on the pretended GPU are tensors of another class than those that the network has.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    how = {"image_size": 64, "random_state": 0, **EXTRACTORS[name]}
    settings = settings_of(PatchFeatureExtractor("mobilenet_v3_small", weights=None, **how).fit(images))

    def features(images, device):
        on_device = replace(settings, images=replace(settings.images, device=device))
        out = torch.empty(5, *settings.kept_shape, device=device)
        settings.backbone.to(device)
        _fill(out, np.arange(5), images[..., : settings.images.crop_size[0], : settings.images.crop_size[1]], on_device)
        return out

    expected = features(images, CPU)
    with pretended_gpu():
        found = features(images.to(GPU), GPU)
    torch.testing.assert_close(values_of(found), expected, rtol=1e-3, atol=0.05 if "amp" in how else 1e-3)


def test_a_tensor_on_the_cpu_is_refused_beside_one_on_the_gpu():
    with pretended_gpu() as waits:
        there = SAMPLES.to(GPU)
        with pytest.raises(RuntimeError, match="same device"):
            there + SAMPLES
        with pytest.raises(RuntimeError, match="same device"):
            torch.empty(6, 8, 8, device="cuda").copy_(torch.bmm(SAMPLES.mT, there))
        with pytest.raises(AssertionError, match="is on cpu"):
            values_of(there.cpu())
        assert waits == ["aten._to_copy.default"]
        assert float(there.sum()) == pytest.approx(float(SAMPLES.sum()), rel=1e-4)
        assert len(waits) == 2


def test_learning_shared_gaussians_waits_for_the_gpu_once_a_step():
    """Each value that the host reads is a time in which the GPU has nothing to do."""
    with pretended_gpu() as waits:
        step = X.to(GPU)
        detector = PatchGaussianDetector(3, n_gaussians=9).fit(step)
        waits.clear()
        detector.partial_fit(step[:16])
        few = Counter(waits)
        waits.clear()
        detector.partial_fit(step[:80])
    more = Counter(waits)
    assert (more.total() - few.total()) / 4 <= 1, more - few

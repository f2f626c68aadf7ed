"""A device without memory for a chunk of patches takes smaller chunks; the result is the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector
from ipca_sklearn.linalg import _execution, _solvers


@pytest.fixture(autouse=True)
def _forget_small_chunks() -> Any:
    _execution._smaller_chunks.clear()
    yield
    _execution._smaller_chunks.clear()


def by_gram_on_a_device_for(n_patches: int, message: str | None = None) -> Any:
    """Return the innermost function of an update, made to run out of memory with more than `n_patches` patches."""
    original = _solvers._by_gram

    def by_gram(blocks: list[torch.Tensor], out: torch.Tensor, decompose: Any) -> None:
        if len(out) > n_patches:
            out.fill_(torch.nan)  # half-finished work
            raise torch.OutOfMemoryError("CUDA out of memory") if message is None else RuntimeError(message)
        original(blocks, out, decompose)

    return by_gram


@pytest.mark.parametrize("message", [None, "CUDA error: CUSOLVER_STATUS_ALLOC_FAILED when calling ..."])
def test_patches_that_do_not_fit_are_taken_in_smaller_chunks(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, message: str | None
) -> None:
    X = torch.randn(40, 37, 6, generator=torch.Generator().manual_seed(0)).to(device)
    expected = PatchGaussianDetector(3, step_size=8, solver="gram_svd").fit(X)
    monkeypatch.setattr(_solvers, "_by_gram", by_gram_on_a_device_for(5, message))
    with pytest.warns(UserWarning, match=r"has no memory left for \d+ patches at once") as caught:
        detector = PatchGaussianDetector(3, step_size=8, solver="gram_svd").fit(X)
    assert len([warning for warning in caught if "no memory" in str(warning.message)]) == 1
    torch.testing.assert_close(detector.score_samples(X), expected.score_samples(X), rtol=1e-5, atol=1e-5)
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-5)


def test_one_patch_that_does_not_fit_raises_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(40, 37, 6))
    pca = BatchedIncrementalPCA(3, step_size=8).fit(X)
    before, seen = pca.transform(X), pca.n_samples_seen_
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patched.setattr(_solvers, "_by_gram", by_gram_on_a_device_for(0))
        with pytest.raises(torch.OutOfMemoryError):
            pca.partial_fit(X)
    np.testing.assert_array_equal(pca.transform(X), before)
    assert pca.n_samples_seen_ == seen


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    tried = []

    def task(chunk: slice) -> None:
        tried.append(chunk)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        _execution.for_each_chunk(task, 10, 1, torch.device("cpu"))
    assert len(tried) == 1


def test_later_chunks_on_a_gpu_are_small_at_once() -> None:
    gpu = torch.device("cuda", 0)
    sizes: list[int] = []

    def task(chunk: slice) -> None:
        sizes.append(chunk.stop - chunk.start)
        if sizes[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="no memory left"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "empty_cache", lambda: None)
        _execution.for_each_chunk(task, 64, 1000, gpu, group=4)
        assert sizes == [64, 32, 16, 16, 32, 16, 16]
        sizes.clear()
        _execution.for_each_chunk(task, 64, 1000, gpu, group=4)
    assert sizes == [16] * 4

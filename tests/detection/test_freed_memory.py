"""What a fit has used is free when it ends."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from ipca_sklearn import PatchGaussianDetector


@pytest.mark.parametrize("n_images", [40, 80])  # few images take another way
def test_no_cycle_keeps_the_tensors_of_a_fit(n_images):
    """A cycle would keep them until the collector runs, which counts objects and not bytes: 16 GB in one case."""
    X = np.random.default_rng(0).normal(size=(n_images, 6, 4)).astype("float32")
    PatchGaussianDetector(2).fit(X)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        PatchGaussianDetector(2).fit(X).merge(PatchGaussianDetector(2).fit(X)).partial_fit(X).score_samples(X)
        gc.collect()
        kept = [thing for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept

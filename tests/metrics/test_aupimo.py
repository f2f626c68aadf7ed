"""AUPIMO against its definition: one point of the curve for each threshold, integrated on a fine grid of rates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.metrics import aupimo_score, pimo_curves

BOUNDS = (1e-2, 1e-1)


def scored(seed=0, n_levels=None, shape=(6, 20, 20), strength=2.0):
    """Three normal and three anomalous images; with few levels there are many ties."""
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, bool)
    masks[3, 2:9, 3:7] = masks[4, 0, 0] = masks[5, 10:, :4] = masks[5, 0, 8:] = True
    maps = rng.standard_normal(shape) + strength * masks
    return masks, maps if n_levels is None else np.floor(maps * n_levels)


def aupimo_on_a_grid(masks, maps, bounds, n_rates=20001):
    """The paper's integral of each image: curves of all thresholds, linear between their points, the mid-point rule."""
    normal = maps[~masks.any((1, 2))]
    thresholds = np.unique(maps)[::-1]
    # At a rate with several thresholds the curve is vertical: the grid never meets it exactly.
    rates = np.array([0] + [np.mean([np.mean(image >= t) for image in normal]) for t in thresholds])
    edges = np.geomspace(*bounds, n_rates)
    middle = np.sqrt(edges[1:] * edges[:-1])
    after = np.searchsorted(rates, middle, side="left")
    share = (middle - rates[after - 1]) / (rates[after] - rates[after - 1])
    areas = np.full(len(masks), np.nan)
    for index in np.flatnonzero(masks.any((1, 2))):
        found = maps[index][masks[index]]
        tpr = np.array([0] + [np.mean(found >= t) for t in thresholds])
        areas[index] = np.mean(tpr[after - 1] + share * (tpr[after] - tpr[after - 1]))
    return areas


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([None, 1, 4, 30]), st.floats(-1, 6))
def test_areas_are_those_of_the_curves_over_all_thresholds(seed, n_levels, strength):
    masks, maps = scored(seed, n_levels, strength=strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        areas = pimo_curves(masks, maps, fpr_bounds=BOUNDS).aupimo
        assert aupimo_score(masks, maps, fpr_bounds=BOUNDS) == pytest.approx(np.nanmean(areas), abs=1e-12)
    np.testing.assert_allclose(areas, aupimo_on_a_grid(masks, maps, BOUNDS), atol=2e-3)


def test_curves_are_the_shares_that_reach_each_threshold():
    masks, maps = scored()
    curves = pimo_curves(masks, maps, fpr_bounds=BOUNDS, n_thresholds=50)
    assert len(curves.thresholds) <= 50 and (np.diff(curves.thresholds) < 0).all()
    for index, threshold in enumerate(curves.thresholds):
        assert curves.shared_fpr[index] == np.mean(maps[:3] >= threshold)
        for image in (3, 4, 5):
            assert curves.tpr[image, index] == pytest.approx(np.mean(maps[image][masks[image]] >= threshold))
    assert curves.shared_fpr[-1] == 1 and np.isnan(curves.tpr[:3]).all() and curves.fpr_bounds == BOUNDS


def test_number_of_thresholds_does_not_change_the_areas():
    masks, maps = scored()
    few, many = (pimo_curves(masks, maps, fpr_bounds=BOUNDS, n_thresholds=n).aupimo for n in (2, 1000))
    np.testing.assert_array_equal(few, many)


def test_false_alarms_on_anomalous_images_do_not_count():
    masks, maps = scored()
    worse = maps + 9 * (~masks & masks.any((1, 2))[:, None, None])
    assert aupimo_score(masks, worse, fpr_bounds=BOUNDS) == aupimo_score(masks, maps, fpr_bounds=BOUNDS)


def test_perfect_maps_score_one_and_blind_ones_zero():
    masks, maps = scored()
    assert aupimo_score(masks, maps + 99 * masks, fpr_bounds=BOUNDS) == 1
    assert aupimo_score(masks, maps - 99 * masks, fpr_bounds=BOUNDS) == 0


def test_increasing_transforms_order_and_kind_do_not_matter():
    masks, maps = scored()
    expected = aupimo_score(masks, maps, fpr_bounds=BOUNDS)
    order = np.random.default_rng(1).permutation(len(masks))
    assert aupimo_score(masks, np.exp(maps), fpr_bounds=BOUNDS) == expected
    assert aupimo_score(masks[order], maps[order], fpr_bounds=BOUNDS) == pytest.approx(expected, abs=1e-12)
    assert aupimo_score(torch.from_numpy(masks), torch.from_numpy(maps), fpr_bounds=BOUNDS) == expected


def test_an_image_with_its_defect_outside_of_the_region_is_neither_normal_nor_anomalous():
    masks, maps = scored()
    region = np.zeros((20, 20), bool)
    region[1:] = True  # the defect of image 4 lies outside
    areas = pimo_curves(masks, maps, fpr_bounds=BOUNDS, region=region).aupimo
    np.testing.assert_array_equal(np.isnan(areas), [True, True, True, False, True, False])
    without = [0, 1, 2, 3, 5]
    cut = pimo_curves(masks[without][:, 1:], maps[without][:, 1:], fpr_bounds=BOUNDS).aupimo
    np.testing.assert_array_equal(areas[without], cut)


@pytest.mark.parametrize("bounds", [(0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.5, 1.1), (0.1, np.nan), 0.1, (0.1, 0.2, 0.3)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="0 < lower < upper <= 1"):
        aupimo_score(*scored(), fpr_bounds=bounds)


def test_too_few_normal_pixels_are_an_error_that_says_how_many_images_it_takes():
    masks, maps = scored()
    with pytest.raises(ValueError, match=r"3 normal images .* of 400 pixels .*100000 pixels, so 250 normal images"):
        aupimo_score(masks, maps)
    assert 0 < aupimo_score(masks, maps, fpr_bounds=(1 / 1200, 0.1)) < 1  # as many as it takes
    with pytest.raises(ValueError, match=r"fpr_bounds\[0\]=0.00083:"):
        aupimo_score(masks, maps, fpr_bounds=(0.00083, 0.1))
    with pytest.raises(ValueError, match="0 normal images"):
        aupimo_score(masks[3:], maps[3:], fpr_bounds=BOUNDS)
    with pytest.raises(ValueError, match="no anomalous pixel"):
        aupimo_score(masks[:3], maps[:3], fpr_bounds=BOUNDS)
    with pytest.raises(ValueError, match="n_thresholds=1 must be at least 2"):
        pimo_curves(masks, maps, n_thresholds=1)


def test_few_scores_between_the_bounds_give_a_warning():
    masks, maps = scored(n_levels=1)
    with pytest.warns(FewImagesWarning, match=r"only \d different scores .* AUPIMO is coarse"):
        aupimo_score(masks, maps, fpr_bounds=BOUNDS)

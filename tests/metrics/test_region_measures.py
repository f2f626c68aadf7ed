"""Measures of defects at the threshold of a model: against sets of pixels, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ipca_sklearn._utils._shares import clopper_pearson
from ipca_sklearn.metrics import (
    aupro_score,
    confidence_interval,
    evaluation_report,
    found_by_size,
    pixel_f1_score,
    pro_score,
    region_f1_score,
)

pairs = hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))


def parts(mask):
    """Return the sets of pixels that hang together by edges or corners."""
    left, found = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        part, border = set(), [left.pop()]
        while border:
            row, column = border.pop()
            part.add((row, column))
            near = {at for at in left if max(abs(at[0] - row), abs(at[1] - column)) == 1}
            left -= near
            border += near
        found.append(part)
    return found


def by_sets(masks, marked, min_overlap):
    """Return F1, PRO and the defects with a marked pixel, from their definitions."""
    n_true = n_missed = n_false = 0
    shares, areas = [], []
    for mask, called in zip(masks, marked, strict=True):
        defects, regions = parts(mask), parts(called)
        everything = set().union(*defects)
        for defect in defects:
            touching = set().union(*(region for region in regions if region & defect))
            union = (touching | defect) - (everything - defect)
            is_found = len(touching & defect) / len(union) > min_overlap
            n_true, n_missed = n_true + is_found, n_missed + (not is_found)
            shares.append(len(touching & defect) / len(defect))
            areas.append(len(defect))
        n_false += sum(len(region & everything) / len(region) <= min_overlap for region in regions)
    return 2 * n_true / (2 * n_true + n_missed + n_false), np.mean(shares), np.array(shares) > 0, np.array(areas)


@given(pairs, st.sampled_from([0, 0.25, 0.5, 0.9]))
def test_the_measures_follow_their_definitions(pair, min_overlap):
    masks, marked = pair
    assume(masks.any())
    f1, pro, touched, areas = by_sets(masks, marked, min_overlap)
    np.testing.assert_allclose(region_f1_score(masks, marked, min_overlap=min_overlap), f1)
    np.testing.assert_allclose(pro_score(masks, marked), pro)
    rows = found_by_size(masks, marked, sides=[1.5, 3])
    classes = np.digitize(areas, [1.5**2, 9])
    assert [(row["from"], row["to"]) for row in rows] == [(0, 1.5), (1.5, 3), (3, None)]
    for number, row in enumerate(rows):
        of_class = touched[classes == number]
        assert (row["n_defects"], row["n_found"]) == (len(of_class), of_class.sum())
        assert row["interval"] == (clopper_pearson(of_class, 0.95) if len(of_class) else None)
    for turned in (pair[:, :, ::-1], pair[:, :, :, ::-1], pair.swapaxes(2, 3), pair[:, ::-1]):
        np.testing.assert_allclose(region_f1_score(*turned, min_overlap=min_overlap), f1)
        np.testing.assert_allclose(pro_score(*turned), pro)


@given(pairs)
def test_the_measures_of_a_perfect_model_are_1(pair):
    masks = pair[0]
    assume(masks.any())
    assert region_f1_score(masks, masks) == pro_score(masks, masks) == 1
    assert all(row["found"] in (None, 1) for row in found_by_size(masks, masks))
    nothing = np.zeros_like(masks)
    assert region_f1_score(masks, nothing) == pro_score(masks, nothing) == 0
    everything = np.ones_like(masks)
    assert pro_score(masks, everything) == 1


def test_a_region_of_which_just_the_limit_lies_on_a_defect_is_false_and_finds_nothing():
    masks, marked = np.zeros((2, 1, 12, 12), bool)
    masks[0, 0, :2] = marked[0, 0, :8] = True  # 2 of 8 pixels
    masks[0, 6, :4] = marked[0, 6, :4] = True
    assert region_f1_score(masks, marked, min_overlap=0.25) == 2 / (2 + 1 + 1)
    assert region_f1_score(masks, marked, min_overlap=0.24) == 1


def test_pro_is_a_point_of_the_curve_under_which_aupro_is(global_random_seed):
    rng = np.random.default_rng(global_random_seed)
    masks = rng.random((3, 20, 20)) < 0.05
    maps = rng.random((3, 20, 20)) + masks
    # One threshold, up to a rate that it just reaches: a triangle under the straight line to its point.
    marked = maps > 0.8
    rate = marked[~masks].mean()
    np.testing.assert_allclose(aupro_score(masks, marked.astype(float), max_fpr=rate), pro_score(masks, marked) / 2)


def test_patches_are_enlarged_and_what_is_outside_of_the_region_does_not_count():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = True
    marked = np.zeros((2, 4, 4), bool)
    marked[0, :2, :2] = marked[1, 3, 3] = True
    inside = np.ones((4, 4), bool)
    inside[3, 3] = False
    assert region_f1_score(masks, marked) == 2 / 3
    assert region_f1_score(masks, marked, region=inside) == pro_score(masks, marked, region=inside) == 1
    assert region_f1_score(255 * masks.astype(np.uint8), marked.astype(int), region=inside) == 1


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (region_f1_score, {"min_overlap": 1}, "min_overlap=1 must lie in"),
        (region_f1_score, {"connectivity": 4}, "connectivity=4 must be 1"),
        (found_by_size, {"sides": [4, 4]}, r"sides=\[4, 4\] must be positive and ascend"),
        (found_by_size, {"sides": [0]}, "must be positive"),
    ],
)
def test_what_is_wrong_is_named(measure, options, message):
    masks = np.eye(4, dtype=bool)[None]
    with pytest.raises(ValueError, match=message):
        measure(masks, masks, **options)
    for measure_of_defects in (region_f1_score, pro_score, found_by_size):
        with pytest.raises(ValueError, match="no anomalous pixel"):
            measure_of_defects(~masks & False, masks)


def test_a_report_has_the_figures_of_the_functions_for_each_type(global_random_seed):
    rng = np.random.default_rng(global_random_seed)
    labels = np.repeat([1, -1], 40)
    types = np.where(labels == 1, "good", np.where(np.arange(80) % 2, "hole", "cut"))
    masks = np.zeros((80, 32, 32), bool)
    for index in range(40, 80):
        top, left, side = *rng.integers(0, 16, 2), 4 if index % 2 else 12
        masks[index, top : top + side, left : left + side] = True
    marked = (rng.random((80, 16, 16)) < 0.01) | (masks[:, ::2, ::2] & (rng.random((80, 1, 1)) < 0.7))
    report = evaluation_report(
        labels, rng.random(80), masks, rng.random((80, 16, 16)), marked=marked, defect_types=types, n_resamples=200
    )
    assert [row["defects"] for row in report["defects"]] == ["all", "cut", "hole"]
    for row in report["defects"]:
        chosen = (labels == 1) | (types == row["defects"]) | (row["defects"] == "all")
        given_masks, given_marks = masks[chosen], marked[chosen]
        assert row["pixel_f1"] == pixel_f1_score(given_masks, given_marks)
        assert row["found_by_size"] == found_by_size(given_masks, given_marks)
        for name, measure in (("pro", pro_score), ("region_f1", region_f1_score)):
            assert row[name] == measure(given_masks, given_marks)
            np.testing.assert_allclose(
                row["intervals"][name], confidence_interval(measure, given_masks, given_marks, n_resamples=200)
            )
    without = evaluation_report(labels, rng.random(80), masks, rng.random((80, 16, 16)), n_resamples=2)["defects"][0]
    assert without["pro"] is without["region_f1"] is without["found_by_size"] is None

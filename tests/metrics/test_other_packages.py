"""The measures of one generated set, as anomalib gives them.

Recorded with anomalib 2.7.0 and torch 2.15.0, in an environment of its own:

    anomalib/bin/python tests/metrics/record_anomalib.py

anomalib integrates AUPIMO from the first and to the last threshold whose rate is near the bounds, and divides by the
whole range: of 4 x 65,536 normal pixels from 3 of them in place of 2.6, which makes all areas 3.3 to 5 % smaller.
Between higher bounds the difference goes.
"""

from __future__ import annotations

import numpy as np
import pytest
from record_anomalib import reference_set

from ipca_sklearn.metrics import (
    aupimo_score,
    aupro_score,
    image_average_precision_score,
    image_f1_max_score,
    image_roc_auc_score,
    pimo_curves,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_roc_auc_score,
)

LABELS, SCORES, MASKS, MAPS = reference_set()
AUPIMO = {
    (1e-5, 1e-4): [0.043323, 0.086564, 0.152671, 0.26479, 0.344875, 0.486035],
    (1e-3, 1e-2): [0.344822, 0.478322, 0.617742, 0.727966, 0.824274, 0.895],
}


@pytest.mark.parametrize(
    ("metric", "recorded"),
    [(image_roc_auc_score, 0.916667), (image_average_precision_score, 0.948413), (image_f1_max_score, 0.923077)],
)
def test_measures_of_images_agree_with_anomalib(metric, recorded):
    assert metric(LABELS, SCORES) == pytest.approx(recorded, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "options", "recorded"),
    [
        (pixel_roc_auc_score, {}, 0.982606),
        (pixel_average_precision_score, {}, 0.722983),
        (pixel_f1_max_score, {}, 0.677019),
        (aupro_score, {"max_fpr": 0.3}, 0.937055),
        (aupro_score, {"max_fpr": 0.05}, 0.804429),
    ],
)
def test_measures_of_pixels_agree_with_anomalib(metric, options, recorded):
    assert metric(MASKS, MAPS, **options) == pytest.approx(recorded, abs=2e-6)


@pytest.mark.parametrize(("bounds", "tolerance"), [((1e-5, 1e-4), 0.051), ((1e-3, 1e-2), 2e-4)])
def test_aupimo_agrees_with_anomalib_up_to_its_bounds(bounds, tolerance):
    areas = pimo_curves(MASKS, MAPS, fpr_bounds=bounds).aupimo
    np.testing.assert_array_equal(np.isnan(areas), LABELS == 1)
    np.testing.assert_allclose(areas[LABELS == -1], AUPIMO[bounds], rtol=tolerance)
    assert aupimo_score(MASKS, MAPS, fpr_bounds=bounds) == pytest.approx(np.nanmean(areas), abs=1e-12)


def test_what_anomalib_loses_is_the_range_below_its_first_rate():
    rates = np.arange(1, 27) / (4 * 65536)  # that the curve has, up to the upper bound
    low, high = rates[rates >= 1e-5][0], rates[-1]
    mine = pimo_curves(MASKS, MAPS, fpr_bounds=(low, high)).aupimo[4:] * np.log(high / low) / np.log(10)
    np.testing.assert_allclose(mine, AUPIMO[1e-5, 1e-4], rtol=0.02)

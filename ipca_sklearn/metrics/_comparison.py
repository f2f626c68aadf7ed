"""Differences of all measures of two models on the same images, with intervals and p-values."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import norm, rankdata
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.metrics._inputs import Bools, Floats, Reals
from ipca_sklearn.metrics._intervals import check_resampling
from ipca_sklearn.metrics._report import kinds
from ipca_sklearn.metrics._resampling import percentile_interval
from ipca_sklearn.metrics._sample import TestedImages

Pair: TypeAlias = "tuple[ArrayLike, ArrayLike] | None"


@own_surroundings()
def compare_scores(
    y_true: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    masks: ArrayLike | None = None,
    maps: Pair = None,
    *,
    marked: Pair = None,
    offsets: tuple[float, float] | None = None,
    defect_types: ArrayLike | None = None,
    has_mask: ArrayLike | None = None,
    region: ArrayLike | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state: int | None = 0,
) -> dict[str, Any]:
    """Differences between two models on the same images, of all measures of :func:`evaluation_report`.

    Parameters
    ----------
    y_true : array-like of shape (n_images,)
        Outlier labels: +1 for a normal image, -1 for an anomalous one.
    scores_a, scores_b : array-like of shape (n_images,)
        `score_samples` of both models.
    masks : array-like of shape (n_images, height, width), default=None
        As in :func:`pixel_roc_auc_score`.
    maps, marked : pair of array-like, default=None
        Of model a and of model b, as in :func:`evaluation_report`. Their sizes may differ: both are brought to that of
        the masks.
    offsets : (float, float), default=None
        `offset_` of both, for the shares of images that score below it.
    defect_types, has_mask, region
        As in :func:`evaluation_report`.
    n_resamples, confidence_level, random_state
        As in :func:`confidence_interval`.

    Returns
    -------
    dict
        `"defects"` is a list of dicts, for `"all"` and for each type: `"defects"` (its name), `"n_images"`, and
        `"measures"`, a list of rows. A row has `"measure"`, the figures `"a"` and `"b"`, `"difference"` (b - a), its
        `"interval"` (low, high), `"p_value"` (two-sided, of no difference) and `"method"`: "DeLong" for the ROCAUC of
        images, if there are at least two of each kind, and "bootstrap" for the others. `"n_normal"`, `"n_resamples"`
        and `"confidence_level"` are of all.

    Raises
    ------
    ValueError, TypeError
        As :func:`evaluation_report`.

    Warns
    -----
    FewImagesWarning, MaskWarning, AspectRatioWarning
        As :func:`evaluation_report`.

    See Also
    --------
    evaluation_report : The figures of one model.

    Notes
    -----
    The same images are hard for both models: their difference is known better than either figure. DeLong, DeLong and
    Clarke-Pearson [1]_ give the variance of a difference of two areas under ROC curves from the ranks of the images,
    here in O(n log n) [2]_. In the paired bootstrap both models are measured on the same resamples, drawn from the
    normal and from the anomalous images apart; the interval holds the middle share of the differences. Its p-value is
    twice the share of resamples whose difference has the other sign, or is 0, and at least 2 / (1 + n_resamples).

    Choose the measure before you look: of many measures of two equal models some differ by chance. The images of the
    test alone vary here; another training set would change both models too. If there is no difference in any resample,
    both models rank all images alike, and the interval is (0, 0): the images say too little. Cost: twice that of
    :func:`evaluation_report`.

    References
    ----------
    .. [1] E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, "Comparing the areas under two or more correlated
       receiver operating characteristic curves: a nonparametric approach", Biometrics 44, 837-845, 1988.
    .. [2] X. Sun and W. Xu, "Fast implementation of DeLong's algorithm for comparing the areas under correlated
       receiver operating characteristic curves", IEEE Signal Processing Letters 21, 1389-1393, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.metrics import compare_scores
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([1, -1], 50)
    >>> b = labels + rng.normal(size=100)
    >>> a = b + rng.normal(size=100)                                      # the same with more noise
    >>> row = compare_scores(labels, a, b)["defects"][0]["measures"][0]
    >>> row["measure"], row["method"], round(row["difference"], 2), [round(end, 2) for end in row["interval"]]
    ('image_roc_auc', 'DeLong', 0.07, [0.02, 0.13])
    """
    check_resampling(n_resamples, confidence_level)
    check_consistent_length(y_true, defect_types)
    (maps_a, maps_b), (marked_a, marked_b) = maps or (None, None), marked or (None, None)
    offset_a, offset_b = offsets or (None, None)
    models = (
        TestedImages.of(y_true, scores_a, masks, maps_a, marked_a, offset_a, has_mask, region),
        TestedImages.of(y_true, scores_b, masks, maps_b, marked_b, offset_b, has_mask, region),
    )
    is_normal = models[0].is_normal
    rows = []
    for name, chosen in kinds(is_normal, defect_types, confidence_level):
        (a, of_a), (b, of_b) = (model.measures(chosen, n_resamples, random_state) for model in models)
        measures: list[dict[str, Any]] = []
        for key in a:
            row: dict[str, Any] = {"measure": key, "a": a[key], "b": b[key], "difference": b[key] - a[key]}
            numbers = np.bincount(is_normal[chosen], minlength=2)
            if key == "image_roc_auc" and numbers.min() >= 2:
                error = delong_error(is_normal[chosen], *(model.scores[chosen] for model in models))
                tested = _normal(row["difference"], error, confidence_level)
            else:
                tested = _resampled(of_b[key] - of_a[key], confidence_level)
            measures.append(row | tested)
        rows.append({"defects": name, "n_images": int(np.sum(chosen & ~is_normal)), "measures": measures})
    return {
        "defects": rows,
        "n_normal": int(is_normal.sum()),
        "n_resamples": n_resamples,
        "confidence_level": confidence_level,
    }


def delong_error(is_normal: Bools, scores_a: Reals, scores_b: Reals) -> float:
    """Return the standard error of the difference of two areas under ROC curves of the same images.

    The variances of the shares of images of the other kind below each image, divided by the numbers of images, add up.
    """
    variance = 0.0
    for kind in (is_normal, ~is_normal):
        shares = [
            (rankdata(scores)[kind] - rankdata(scores[kind])) / np.count_nonzero(~kind)
            for scores in (scores_a, scores_b)
        ]
        variance += float(np.var(shares[1] - shares[0], ddof=1)) / np.count_nonzero(kind)
    return math.sqrt(variance)


def _normal(difference: float, error: float, confidence_level: float) -> dict[str, Any]:
    """Return interval and p-value of a difference with a normal distribution."""
    half = error * float(norm.isf((1 - confidence_level) / 2))
    in_errors = abs(difference) / error if error else math.inf if difference else 0.0
    p_value = 2 * float(norm.sf(in_errors))
    return {"interval": (difference - half, difference + half), "p_value": p_value, "method": "DeLong"}


def _resampled(differences: Floats, confidence_level: float) -> dict[str, Any]:
    """Return interval and p-value from the differences of resamples."""
    other_side = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return {
        "interval": percentile_interval(differences, confidence_level),
        "p_value": min(1.0, 2 * (1 + other_side) / (1 + len(differences))),
        "method": "bootstrap",
    }

"""Two models on the same images: DeLong beside a plain version, permutations and resamples; coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from ipca_sklearn.exceptions import FewImagesWarning
from ipca_sklearn.metrics import compare_scores, confidence_interval, evaluation_report, image_roc_auc_score

pytestmark = pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")


def two_models(rng, n=(40, 30), common=1.0, signal=(1.2, 1.2), n_levels=None):
    """Labels, and scores of two models that find the same images hard."""
    labels = np.repeat([1, -1], n)
    hard = common * rng.normal(size=len(labels))
    scores = [strength * labels / 2 + hard + rng.normal(size=len(labels)) for strength in signal]
    return labels, *(score if n_levels is None else np.round(score * n_levels) for score in scores)


def measures(*arguments, **options):
    return {row["measure"]: row for row in compare_scores(*arguments, **options)["defects"][0]["measures"]}


def area(labels, scores):
    """The area under the ROC curve from ranks: quick, for thousands of resamples."""
    n_normal, n_anomalous = np.sum(labels == 1), np.sum(labels == -1)
    return (rankdata(scores)[labels == 1].sum() / n_normal - (n_normal + 1) / 2) / n_anomalous


def plain_delong(labels, *scores):
    """The covariance matrix of the areas as the paper writes it, with a kernel for each pair of images."""
    kernels = []
    for score in scores:
        x, y = score[labels == 1][:, None], score[labels == -1][None]
        kernels.append((x > y) + 0.5 * (x == y))
    areas = np.array([kernel.mean() for kernel in kernels])
    of_normal = np.cov([kernel.mean(axis=1) for kernel in kernels])
    of_anomalous = np.cov([kernel.mean(axis=0) for kernel in kernels])
    covariance = of_normal / kernels[0].shape[0] + of_anomalous / kernels[0].shape[1]
    return areas[1] - areas[0], np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


@pytest.mark.parametrize("n_levels", [None, 1])
def test_delong_is_what_the_paper_writes(global_random_seed, n_levels):
    labels, a, b = two_models(np.random.default_rng(global_random_seed), n_levels=n_levels)
    difference, error = plain_delong(labels, a, b)
    row = measures(labels, a, b, confidence_level=0.9)["image_roc_auc"]
    assert row["method"] == "DeLong"
    assert row["difference"] == pytest.approx(difference)
    np.testing.assert_allclose(row["interval"], difference + 1.644854 * error * np.array([-1, 1]), rtol=1e-5)


def test_delong_and_the_paired_bootstrap_agree():
    labels, a, b = two_models(np.random.default_rng(0), n=(150, 120), signal=(1.0, 1.6))
    delong = measures(labels, a, b)["image_roc_auc"]
    weights = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate(
            [weights.choice(np.flatnonzero(labels == kind), np.sum(labels == kind)) for kind in (1, -1)]
        )
        drawn.append(area(labels[rows], b[rows]) - area(labels[rows], a[rows]))
    np.testing.assert_allclose(delong["interval"], np.quantile(drawn, [0.025, 0.975]), atol=0.006)


@pytest.mark.parametrize("seed", [1, 4])
def test_the_p_value_is_about_that_of_permutations(seed):
    """Under no difference the two scores of an image may change places, once both are ranks."""
    labels, a, b = two_models(np.random.default_rng(seed), n=(60, 60), signal=(1.0, 1.35))
    a, b = (np.argsort(np.argsort(score)) for score in (a, b))
    row = measures(labels, a, b)["image_roc_auc"]
    rng = np.random.default_rng(0)
    others = []
    for _ in range(2000):
        swapped = rng.random(len(labels)) < 0.5
        first, second = np.where(swapped, b, a), np.where(swapped, a, b)
        others.append(area(labels, second) - area(labels, first))
    p_value = np.mean(np.abs(others) >= abs(row["difference"]))
    assert row["p_value"] == pytest.approx(p_value, abs=0.03)


def test_both_models_are_measured_on_the_same_resamples():
    """The shares found of a model and of itself with one more image found differ by that image alone."""
    labels = np.repeat([1, -1], 20)
    a, b = labels.astype(float), labels.astype(float)
    a[-1] = 0.5
    row = measures(labels, a, b, offsets=(0, 0), n_resamples=4000)["found"]
    assert (row["a"], row["b"]) == (0.95, 1.0)
    assert row["interval"] == (0.0, pytest.approx(0.15, abs=0.051))
    assert row["p_value"] == pytest.approx(2 * (1 - 1 / 20) ** 20, abs=0.05)


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    """The true difference is that of very many images."""
    rng = np.random.default_rng(0)
    held = {"image_roc_auc": [], "image_average_precision": []}
    many = two_models(np.random.default_rng(1), n=(20_000, 20_000), signal=(1.0, 1.6))
    truth = {key: row["difference"] for key, row in measures(*many, n_resamples=1).items()}
    for _ in range(200):
        found = measures(*two_models(rng, n=(60, 60), signal=(1.0, 1.6)), n_resamples=200)
        for key, of_measure in held.items():
            low, high = found[key]["interval"]
            of_measure.append(low <= truth[key] <= high)
    assert all(0.88 <= np.mean(of_measure) <= 0.99 for of_measure in held.values())


def test_equal_models_differ_as_seldom_as_the_p_value_says():
    rng = np.random.default_rng(3)
    p_values = [measures(*two_models(rng, n=(50, 50)), n_resamples=1)["image_roc_auc"]["p_value"] for _ in range(150)]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.1


def test_the_difference_is_known_better_than_the_figures():
    labels, a, b = two_models(np.random.default_rng(0), common=3)
    low, high = measures(labels, a, b)["image_roc_auc"]["interval"]
    alone = confidence_interval(image_roc_auc_score, labels, b)
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_a_model_and_itself_have_no_difference():
    labels, a, _ = two_models(np.random.default_rng(0))
    for row in measures(labels, a, a, offsets=(0, 0)).values():
        assert (row["difference"], row["interval"], row["p_value"]) == (0, (0, 0), 1)


def test_a_p_value_of_resamples_is_never_zero_however_far_two_models_are_apart():
    labels = np.repeat([1, -1], 40)
    rows = measures(labels, np.zeros(80) + (labels == 1), np.arange(80) % 2, offsets=(0.5, 0.5), n_resamples=99)
    assert rows["image_f1_max"]["p_value"] == pytest.approx(2 / 100)


def test_models_in_the_other_order_have_the_opposite_differences():
    labels, a, b = two_models(np.random.default_rng(0))
    there, back = measures(labels, a, b), measures(labels, b, a)
    for key, row in there.items():
        assert row["difference"] == -back[key]["difference"]
        assert row["p_value"] == pytest.approx(back[key]["p_value"])
        np.testing.assert_allclose(row["interval"], np.negative(back[key]["interval"])[::-1], atol=1e-12)


def pixel_set():
    rng = np.random.default_rng(0)
    masks = np.zeros((12, 16, 16), bool)
    masks[6:, 4:8, 4:8] = True
    weak, strong = (rng.normal(size=masks.shape) + strength * masks for strength in (1.0, 2.5))
    return np.repeat([1, -1], 6), masks, (weak, strong)


def test_all_measures_of_the_report_are_compared_and_have_its_figures():
    labels, masks, maps = pixel_set()
    scores, marked = [-values.max(axis=(1, 2)) for values in maps], [values > 2 for values in maps]
    types = np.array(["good"] * 6 + ["a", "b"] * 3)
    options = {"has_mask": np.arange(12) != 7, "defect_types": types, "n_resamples": 250}
    compared = compare_scores(labels, *scores, masks, maps, marked=marked, offsets=(-3, -4), **options)
    reports = [
        evaluation_report(labels, scores[i], masks, maps[i], marked=marked[i], offset=(-3, -4)[i], **options)
        for i in range(2)
    ]
    for number, kind in enumerate(compared["defects"]):
        rows = [
            report["defects"][number] | {"false_positive_rate": report["false_positive_rate"]} for report in reports
        ]
        assert kind["defects"] == rows[0]["defects"] and kind["n_images"] == rows[0]["n_images"]
        figures = {row["measure"]: (row["a"], row["b"]) for row in kind["measures"]}
        assert set(figures) == {key for key, value in rows[0].items() if isinstance(value, float)}
        assert all(figures[key] == (rows[0][key], rows[1][key]) for key in figures)
    row = next(row for row in compared["defects"][0]["measures"] if row["measure"] == "pixel_roc_auc")
    assert row["interval"][0] > 0 and row["p_value"] < 0.01


def test_maps_of_different_sizes_are_compared_on_the_pixels_of_the_masks():
    labels, masks, (fine, _) = pixel_set()
    coarse = fine.reshape(12, 8, 2, 8, 2).mean(axis=(2, 4))
    rows = measures(labels, labels, labels, masks, (fine, coarse))
    assert rows["pixel_roc_auc"]["difference"] > 0.05  # averages of four pixels have half of the noise


def test_one_image_of_a_kind_has_no_variance_by_delong():
    row = measures([1, 1, 1, -1], [3, 2, 1, 0], [3, 0, 1, 2])["image_roc_auc"]
    assert row["method"] == "bootstrap"


def test_what_does_not_belong_together_is_refused():
    labels, a, b = two_models(np.random.default_rng(0))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        compare_scores(labels, a, b[:-1])
    with pytest.raises(ValueError, match="n_resamples=0"):
        compare_scores(labels, a, b, n_resamples=0)
    with pytest.raises(ValueError, match="give both masks and maps"):
        compare_scores(labels, a, b, np.zeros((70, 4, 4), bool))
    with pytest.warns(FewImagesWarning, match="fewer than 30 images"):
        compare_scores(labels[20:], a[20:], b[20:])

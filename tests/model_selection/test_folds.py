"""Searches over parameters from paths: splits of data in which only normal samples are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import get_scorer, make_scorer, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.exceptions import SkippedImagesWarning
from ipca_sklearn.model_selection import OneClassKFold, ReadableScorer, RepeatedOneClassKFold

labels = st.lists(st.sampled_from([1, -1]), min_size=2, max_size=40).map(np.array)


def count(y: np.ndarray, label: int) -> int:
    return int(np.sum(y == label))


@given(labels, st.integers(2, 5), st.booleans())
def test_normal_samples_are_learnt_and_tested_and_anomalous_ones_only_tested(
    y: np.ndarray, n_splits: int, shuffle: bool
) -> None:
    cv = OneClassKFold(n_splits, shuffle=shuffle, random_state=0 if shuffle else None)
    if count(y, 1) < n_splits:
        with pytest.raises(ValueError, match="lower it"):
            list(cv.split(y, y))
        return
    folds = list(cv.split(np.zeros(len(y)), y))
    assert len(folds) == cv.get_n_splits() == n_splits
    for train, test in folds:
        assert set(y[train]) == {1}
        assert set(train).isdisjoint(test)
        assert set(train) | set(test) == set(range(len(y)))
        assert set(np.flatnonzero(y == -1)) <= set(test)
    tested = np.concatenate([test[y[test] == 1] for _, test in folds])
    np.testing.assert_array_equal(np.sort(tested), np.flatnonzero(y == 1))


@given(st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(0, 6)), min_size=4, max_size=40), st.booleans())
def test_no_group_is_on_both_sides(samples: list[tuple[int, int]], shuffle: bool) -> None:
    y, groups = np.array(samples).T
    cv = OneClassKFold(2, shuffle=shuffle, random_state=0 if shuffle else None)
    if len(set(groups[y == 1])) < 2:
        with pytest.raises(ValueError, match="groups of normal samples"):
            list(cv.split(y, y, groups))
        return
    folds = list(cv.split(y, y, groups))
    for train, test in folds:
        assert set(y[train]) == {1}
        assert set(groups[train]).isdisjoint(groups[test])
    assert set(np.concatenate([test for _, test in folds])) == set(range(len(y)))  # every sample is tested


def test_without_labels_all_samples_are_normal() -> None:
    assert [(list(train), list(test)) for train, test in OneClassKFold(2).split(range(4))] == [
        ([2, 3], [0, 1]),
        ([0, 1], [2, 3]),
    ]


def test_other_labels_are_refused_with_a_way_to_mend_them() -> None:
    with pytest.raises(ValueError, match=r"labels \[0\].*np\.where"):
        list(OneClassKFold(2).split(range(4), [0, 0, 1, 1]))
    with pytest.raises(ValueError, match="at least 2"):
        list(OneClassKFold(1).split(range(4)))
    with pytest.raises(ValueError, match="n_repeats=0: an integer of at least 1"):
        list(RepeatedOneClassKFold(2, n_repeats=0).split(range(4)))


def test_repetitions_differ_and_are_the_same_again() -> None:
    cv = RepeatedOneClassKFold(3, n_repeats=4, random_state=0)
    first, second = ([tuple(test) for _, test in cv.split(range(12))] for _ in range(2))
    assert first == second
    assert len(first) == cv.get_n_splits() == 12
    assert len(set(first)) > 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    """18 dark normal images and 4 with a bright square."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths, y = [folder / f"{number:02d}.png" for number in range(22)], np.array([1] * 18 + [-1] * 4)
    for path, label in zip(paths, y, strict=True):
        pixels = rng.integers(90, 110, (32, 32, 3), dtype=np.uint8)
        if label == -1:
            pixels[8:16, 8:16] = 255
        Image.fromarray(pixels).save(path)
    return paths, y


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def make_pipeline(cache: Any = None, **parameters: Any) -> Pipeline:
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, random_state=0, image_size=32, crop_size=32, grid_size=4,
        batch_size=4, cache=cache,
    )  # fmt: skip
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2, step_size=4))])
    return pipe.set_params(**parameters)


def test_selection_without_defects_by_held_out_likelihood(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache
) -> None:
    paths, y = images
    normal = [path for path, label in zip(paths, y, strict=True) if label == 1]
    search = GridSearchCV(make_pipeline(cache), {"detector__n_components": [1, 2]}, cv=OneClassKFold(3)).fit(normal)
    train, test = next(iter(OneClassKFold(3).split(normal)))
    best = make_pipeline(cache, **search.best_params_).fit([normal[i] for i in train])
    assert search.cv_results_["split0_test_score"][search.best_index_] == pytest.approx(
        best.score([normal[i] for i in test])
    )


def test_halving_search_and_cross_validation(images: tuple[list[Path], np.ndarray], cache: FeatureCache) -> None:
    paths, y = images
    cv = OneClassKFold(2, shuffle=True, random_state=0)
    search = HalvingGridSearchCV(
        make_pipeline(cache), {"detector__n_components": [1, 2]}, scoring="roc_auc", cv=cv, random_state=0,
        min_resources=11, return_train_score=False,
    ).fit(paths, y)  # fmt: skip
    assert search.best_params_["detector__n_components"] in (1, 2)
    assert cross_val_score(make_pipeline(cache), paths, y, cv=cv, scoring="roc_auc").tolist() == [1, 1]
    scored = cross_validate(make_pipeline(cache), paths, y, cv=cv, scoring=["roc_auc", "average_precision"])
    assert scored["test_average_precision"].shape == (2,)


def test_groups_reach_the_splitter_with_and_without_metadata_routing(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache
) -> None:
    paths, y = images
    groups = np.arange(22) // 3
    cv = OneClassKFold(2)
    expected = [test for _, test in cv.split(paths, y, groups)]
    seen = []

    class Spy(OneClassKFold):
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
            for train, test in super().split(X, y, groups):
                seen.append(test)
                yield train, test

    grid = {"detector__n_components": [1]}
    GridSearchCV(make_pipeline(cache), grid, scoring="roc_auc", cv=Spy(2)).fit(paths, y, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        GridSearchCV(make_pipeline(cache), grid, scoring="roc_auc", cv=Spy(2)).fit(paths, y, groups=groups)
    for got, want in zip(seen, expected * 2, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_callbacks_of_scikit_learn_follow_a_search(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache
) -> None:
    pytest.importorskip("sklearn.callback", reason="this scikit-learn has no callbacks", exc_type=ImportError)
    paths, y = images

    class Counter:
        """What scikit-learn's FitCallback protocol asks for."""

        def __init__(self) -> None:
            self.tasks: list[str] = []

        def setup(self, estimator: Any, context: Any) -> None:
            self.tasks.append("setup")

        def on_fit_task_begin(self, estimator: Any, context: Any, **_: Any) -> None:
            self.tasks.append(context.task_name)

        def on_fit_task_end(self, estimator: Any, context: Any, **_: Any) -> None:
            pass

        def teardown(self, estimator: Any, context: Any) -> None:
            self.tasks.append("teardown")

    counter = Counter()
    search = GridSearchCV(
        make_pipeline(cache), {"detector__n_components": [1, 2]}, scoring="roc_auc", cv=OneClassKFold(2)
    )
    search.set_callbacks(counter).fit(paths, y)
    assert counter.tasks[0] == "setup"
    assert counter.tasks[-1] == "teardown"
    assert len(counter.tasks) >= 2 + 2 * 2  # a task for each candidate and fold


@pytest.fixture(scope="module")
def damaged(images: tuple[list[Path], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same images, but of a normal and of an anomalous one only the beginning is there."""
    folder, paths = tmp_path_factory.mktemp("damaged"), list(images[0])
    for index in (4, 20):
        path = folder / paths[index].name
        path.write_bytes(paths[index].read_bytes()[:60])
        paths[index] = path
    return paths


SEARCHES: dict[str, Any] = {
    "grid": GridSearchCV,
    "random": lambda *args, **kwargs: RandomizedSearchCV(*args, n_iter=2, **kwargs),
    "halving": lambda *args, **kwargs: HalvingGridSearchCV(
        *args, min_resources=11, return_train_score=False, random_state=0, **kwargs
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "scoring"),
    [
        *(("grid", scoring) for scoring in ("roc_auc", "average_precision", "f1", None, ReadableScorer())),
        ("random", "roc_auc"),
        ("halving", None),
    ],
    ids=str,
)
def test_unreadable_images_do_not_make_a_search_blind(
    images: tuple[list[Path], np.ndarray], damaged: list[Path], cache: FeatureCache, make: str, scoring: Any
) -> None:
    pipe = make_pipeline(cache, features__on_error="skip", detector__false_positive_rate=0.2)
    cv = OneClassKFold(2, shuffle=True, random_state=0)
    search = SEARCHES[make](pipe, {"detector__n_components": [1, 2]}, scoring=scoring, cv=cv)
    search.fit(damaged, images[1])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(damaged)[4] == search.predict(damaged)[20] == -1


def test_an_unreadable_image_decides_as_predict_does_and_its_score_stays_unknown(
    images: tuple[list[Path], np.ndarray], damaged: list[Path]
) -> None:
    pipe = make_pipeline(features__on_error="skip").fit(images[0][:18])
    with pytest.warns(SkippedImagesWarning):
        decision, scores, labels = pipe.decision_function(damaged), pipe.score_samples(damaged), pipe.predict(damaged)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [4, 20]
    assert (decision[[4, 20]] == np.finfo(decision.dtype).min).all()
    np.testing.assert_array_equal(decision < 0, labels == -1)
    readable = np.delete(np.arange(22), [4, 20])
    np.testing.assert_allclose(decision[readable], scores[readable] - pipe[-1].offset_, rtol=1e-6)


@pytest.mark.parametrize("scoring", ["roc_auc", "f1", make_scorer(roc_auc_score, response_method="decision_function")])
def test_a_readable_scorer_gives_the_score_of_the_other_images(
    images: tuple[list[Path], np.ndarray], damaged: list[Path], scoring: Any
) -> None:
    paths, y = images
    y = np.roll(y, 3)  # so that there is something to get wrong
    pipe = make_pipeline(features__on_error="skip").fit(paths[:18])
    readable = np.delete(np.arange(22), [4, 20])
    with pytest.warns(SkippedImagesWarning, match="2 of 22 images could not be read and are left out of"):
        score = ReadableScorer(scoring)(pipe, damaged, y)
    kept = [paths[index] for index in readable]
    assert score == pytest.approx(get_scorer(scoring)(pipe, kept, y[readable]))
    assert score == ReadableScorer(scoring)(pipe, kept, y[readable])
    with pytest.warns(SkippedImagesWarning), pytest.raises(ValueError, match="none of the 2 images"):
        ReadableScorer(scoring)(pipe, [damaged[4], damaged[20]], y[[4, 20]])

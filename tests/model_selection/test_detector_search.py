"""DetectorGridSearchCV gives what GridSearchCV gives, and learns each fold once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from joblib import parallel_config
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchFeatures, PatchGaussianDetector, linalg
from ipca_sklearn.model_selection import DetectorGridSearchCV, OneClassKFold, ReadableScorer

pytestmark = [
    pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning"),
    pytest.mark.filterwarnings("ignore:.*have the label -1.*:UserWarning"),
]

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def data() -> Data:
    """150 normal samples of 6 x 6 patches, and 20 with a patch that is off."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(170, 6, 6, 10)) * np.linspace(3, 0.5, 10)).astype(np.float32)
    X[150:, 2, 1] += 1.5
    return X, np.repeat([1, -1], [150, 20])


def detector(**parameters: Any) -> PatchGaussianDetector:
    return PatchGaussianDetector(**{"n_gaussians": 9, **parameters})


def worst(results: dict[str, Any]) -> int:
    return int(np.argmin(results["mean_test_score"]))


def exactly(values: Any) -> str:
    """Return text that is the same for the same numbers (NaN is), estimators and masks."""
    return str(values.tolist() if isinstance(values, np.ndarray) else values)


def assert_same_search(ours: Any, theirs: Any) -> None:
    """Compare all that a search has learnt, but for times and what is fitted."""
    assert ours.cv_results_.keys() == theirs.cv_results_.keys()
    for name, values in theirs.cv_results_.items():
        if not name.endswith("_time"):
            assert exactly(ours.cv_results_[name]) == exactly(values), name
    for name in ("best_index_", "best_score_", "best_params_", "n_splits_", "multimetric_"):
        assert exactly(getattr(ours, name, None)) == exactly(getattr(theirs, name, None)), name
    assert str(ours.scorer_) == str(theirs.scorer_)
    assert {name for name in vars(theirs) if not name.startswith("_")} <= set(vars(ours))


GRID: Any = [
    {"n_components": [1, 5], "distance": ["residual", "factor_analysis"]},
    {"n_components": np.arange(3, 5), "smoothing": [1.0], "image_score": ["max"], "step_size": [8, 16]},
]


@pytest.mark.parametrize(
    "parameters",
    [
        {"scoring": "roc_auc"},
        {"scoring": "f1"},  # of labels: thresholds are the same
        {},
        {"scoring": ["average_precision", "f1"], "refit": "f1", "return_train_score": True},
        {"scoring": lambda estimator, X, y: {"a": estimator.offset_, "b": estimator.map_threshold_}, "refit": "b"},
        {"scoring": ReadableScorer(), "refit": worst, "cv": 3},
        {"scoring": ["roc_auc", "f1"], "refit": False},
    ],
    ids=["score", "labels", "likelihood", "several", "callable", "worst", "no refit"],
)
def test_results_are_those_of_scikit_learn(data: Data, parameters: dict[str, Any]) -> None:
    X, y = data
    if parameters.get("cv") == 3:  # folds that hold both kinds
        order = np.random.default_rng(0).permutation(len(y))
        X, y = X[order], y[order]
    parameters = {"cv": OneClassKFold(2), **parameters}
    theirs = GridSearchCV(detector(), GRID, **parameters).fit(X, y)
    ours = DetectorGridSearchCV(detector(), GRID, **parameters).fit(X, y)
    assert_same_search(ours, theirs)
    assert ours.n_fits_ == 2 * ours.n_splits_  # of 8 candidates: two sizes of a step
    if parameters.get("refit", True):
        np.testing.assert_array_equal(ours.decision_function(X), theirs.decision_function(X))


@pytest.mark.parametrize("error_score", [np.nan, 0.25, "raise"])
def test_candidates_that_fail_are_those_of_scikit_learn(data: Data, error_score: Any) -> None:
    grid = {"n_components": [11, 2, 3], "image_score": ["max", "least"]}
    searches = [
        kind(detector(), grid, scoring="roc_auc", cv=OneClassKFold(2), error_score=error_score)
        for kind in (DetectorGridSearchCV, GridSearchCV)
    ]
    if error_score == "raise":
        for search in searches:
            with pytest.raises(ValueError, match="n_components=11 is larger"):
                search.fit(*data)
        return
    with pytest.warns(FitFailedWarning, match="8 fits failed out of a total of 12"):
        ours, theirs = (search.fit(*data) for search in searches)
    assert_same_search(ours, theirs)
    assert ours.n_fits_ == 2 + 8
    for kind in (DetectorGridSearchCV, GridSearchCV):
        with pytest.raises(ValueError, match="All the 2 fits failed"):
            kind(detector(), {"n_components": [11]}, cv=OneClassKFold(2)).fit(*data)


def test_earlier_steps_of_a_pipeline_are_searched_too(data: Data) -> None:
    pipe = Pipeline([("scale", FunctionTransformer()), ("detector", detector())])
    grid = {
        "scale__func": [None, np.abs],
        "detector__n_components": [2, 4],
        "detector": [detector(step_size=8), PatchGaussianDetector(n_gaussians=4)],
    }
    theirs, ours = (
        kind(pipe, grid, scoring="roc_auc", cv=OneClassKFold(2)).fit(*data)
        for kind in (GridSearchCV, DetectorGridSearchCV)
    )
    assert_same_search(ours, theirs)
    assert ours.n_fits_ == 2 * 2 * 2


def test_other_estimators_are_fitted_one_by_one(data: Data) -> None:
    X, y = data[0].reshape(len(data[0]), -1), data[1]
    theirs, ours = (
        kind(IsolationForest(random_state=0), {"n_estimators": [5, 10]}, scoring="roc_auc", cv=OneClassKFold(2)).fit(
            X, y
        )
        for kind in (GridSearchCV, DetectorGridSearchCV)
    )
    assert_same_search(ours, theirs)
    assert ours.n_fits_ == 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    """18 dark normal images and 4 with a bright square."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths, y = [folder / f"{number:02d}.png" for number in range(22)], np.array([1] * 18 + [-1] * 4)
    for path, label in zip(paths, y, strict=True):
        pixels = rng.integers(90, 110, (32, 32, 3), dtype=np.uint8)
        if label == -1:
            pixels[8:16, 8:16] = 120
        Image.fromarray(pixels).save(path)
    return paths, y


def pipeline(cache: Any) -> Pipeline:
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, random_state=0, image_size=32, crop_size=32, grid_size=4,
        batch_size=4, cache=cache,
    )  # fmt: skip
    of_few_patches = PatchGaussianDetector(n_gaussians=4, step_size=4, solver="covariance")
    return Pipeline([("features", extractor), ("detector", of_few_patches)])


def test_images_from_disk_with_groups_in_several_threads(images: tuple[list[Path], np.ndarray], tmp_path: Path) -> None:
    grid = {"detector__n_components": [1, 8], "features__layers": [["layer1"], ["layer2"]]}
    pipe = pipeline(FeatureCache(tmp_path))
    theirs, ours = (
        kind(pipe, grid, scoring="average_precision", cv=OneClassKFold(2), n_jobs=n_jobs, refit=False)
        for kind, n_jobs in ((GridSearchCV, None), (DetectorGridSearchCV, 2))
    )
    groups = np.arange(22) // 3
    theirs.fit(*images, groups=groups)
    with parallel_config("threading"), sklearn.config_context(enable_metadata_routing=True):
        ours.fit(*images, groups=groups)
    assert_same_search(ours, theirs)
    assert ours.n_fits_ == 4


def test_a_search_in_several_processes(data: Data) -> None:
    grid = {"n_components": [1, 2]}
    ours = DetectorGridSearchCV(detector(), grid, scoring="roc_auc", cv=OneClassKFold(2), n_jobs=2).fit(*data)
    assert_same_search(ours, GridSearchCV(detector(), grid, scoring="roc_auc", cv=OneClassKFold(2)).fit(*data))
    assert ours.n_fits_ == 2


def test_features_of_a_fold_are_read_once_to_learn(
    images: tuple[list[Path], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read: list[int] = []
    read = PatchFeatures.read

    def counted(self: PatchFeatures, size: int, **how: Any) -> Any:
        n_read.append(len(self))
        return read(self, size, **how)

    monkeypatch.setattr(PatchFeatures, "read", counted)
    n_updates: list[int] = []
    update = linalg.update_scatter
    monkeypatch.setattr(linalg, "update_scatter", lambda *a, **how: n_updates.append(1) or update(*a, **how))
    normal = images[0][:18]
    work = []
    for kind in (DetectorGridSearchCV, GridSearchCV):
        for k in ([2], [1, 2, 3]):
            n_read.clear(), n_updates.clear()
            search = kind(pipeline(None), {"detector__n_components": k}, cv=OneClassKFold(2), refit=False)
            work.append((search.fit(normal) and sorted(n_read), len(n_updates)))
    (one, n_one), (three, n_three), (_, n_theirs), (_, n_theirs_three) = work
    assert one == [9] * 4  # to learn and to score
    assert three == [9] * (2 + 2 * 3)
    assert n_one == n_three == n_theirs
    assert n_theirs_three == 3 * n_one


def test_a_search_says_what_it_does_not_take(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    search = DetectorGridSearchCV(detector(), {"n_components": [1, 2]}, cv=OneClassKFold(2), verbose=1)
    with pytest.raises(TypeError, match="got weights: use GridSearchCV"):
        search.fit(*data, weights=np.ones(170))
    assert not hasattr(search, "cv_results_")
    assert clone(search).fit(data[0]).n_fits_ == 2
    assert "2 folds for each of 2 candidates" in capsys.readouterr().out


def test_the_callbacks_of_scikit_learn_follow_a_search(data: Data) -> None:
    pytest.importorskip("sklearn.callback", reason="this scikit-learn has no callbacks", exc_type=ImportError)

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
    grid = {"n_components": [1, 2], "step_size": [8, 16]}
    DetectorGridSearchCV(detector(), grid, cv=OneClassKFold(2)).set_callbacks(counter).fit(data[0])
    assert (counter.tasks[0], counter.tasks[-1]) == ("setup", "teardown")
    assert counter.tasks.count("step") == 2  # a fold each

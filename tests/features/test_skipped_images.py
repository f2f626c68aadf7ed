"""on_error="skip": images that cannot be read are left out of learning and told, never scored as if they were read."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import ImageReadError, PatchFeatureExtractor, PatchGaussianDetector, SkippedImagesWarning
from ipca_sklearn.persistence import fit_resumable, load, save

BROKEN = (3, 4, 17)


def make_pipeline(**parameters: Any) -> Pipeline:
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, random_state=0, image_size=32, crop_size=32, grid_size=4,
        batch_size=4, on_error="skip",
    )  # fmt: skip
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4, step_size=4))])
    return pipe.set_params(**parameters)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """24 images, of which one is missing, one is text and one is cut off."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02d}.png" for number in range(24)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    paths[3].unlink()
    paths[4].write_text("no image")
    paths[17].write_bytes(paths[17].read_bytes()[:200])
    return paths


@pytest.fixture
def good(paths: list[Path]) -> list[Path]:
    return [path for number, path in enumerate(paths) if number not in BROKEN]


def test_a_fit_goes_on_without_them_and_one_warning_names_them(paths: list[Path]) -> None:
    with pytest.warns(SkippedImagesWarning, match=r"3 of 24 images could not be read.*03\.png") as caught:
        pipe = make_pipeline().fit(paths)
    assert len(caught) == 1
    assert pipe[-1].n_samples_seen_ == 21
    assert sorted(pipe[0].skipped_) == list(BROKEN)
    assert "04.png is not an image" in pipe[0].skipped_[4]


def test_what_is_learnt_is_what_the_others_teach(paths: list[Path], good: list[Path]) -> None:
    everything = {
        "detector__n_components": 64,
        "detector__distance": "mahalanobis",
    }  # nothing truncated: steps do not matter
    with pytest.warns(SkippedImagesWarning):
        pipe = make_pipeline(**everything).fit(paths)
    expected = make_pipeline(**everything).fit(good)
    np.testing.assert_allclose(pipe[-1].pca_.mean_, expected[-1].pca_.mean_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        pipe[-1].pca_.explained_variance_, expected[-1].pca_.explained_variance_, rtol=1e-3, atol=1e-4
    )


def test_scores_keep_their_positions(paths: list[Path], good: list[Path]) -> None:
    pipe = make_pipeline().fit(good)
    readable = np.setdiff1d(np.arange(24), BROKEN)
    with pytest.warns(SkippedImagesWarning):
        scores = pipe.score_samples(paths)
    np.testing.assert_allclose(scores[readable], pipe.score_samples(good), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        missing = list(BROKEN)
        assert np.isnan(scores[missing]).all()
        assert (pipe.predict(paths)[missing] == -1).all()
        assert np.isnan(pipe.transform(paths)[missing]).all()
        assert np.isfinite(pipe.transform(paths)[readable]).all()
        assert np.isnan(pipe[-1].p_values(scores=scores)[missing]).all()
        assert pipe.score(paths) == pytest.approx(pipe.score(good), rel=1e-4)
        assert np.isnan(np.asarray(pipe[0].transform(paths))[missing]).all()


def test_scoring_does_not_change_the_report_of_the_fit(paths: list[Path], good: list[Path]) -> None:
    pipe = make_pipeline().fit(good)
    with pytest.warns(SkippedImagesWarning):
        pipe.predict(paths)
    assert pipe[0].skipped_ == {}


def test_nothing_readable_is_an_error_and_leaves_a_model_as_it_was(paths: list[Path], good: list[Path]) -> None:
    broken = [paths[number] for number in BROKEN]
    with pytest.warns(SkippedImagesWarning), pytest.raises(ImageReadError, match=r"none of the 3 images.*03\.png"):
        make_pipeline().fit(broken)
    pipe = make_pipeline().fit(good)
    with pytest.warns(SkippedImagesWarning):
        pipe[-1].partial_fit(pipe[0].transform(broken))
    assert pipe[-1].n_samples_seen_ == len(good)


@pytest.mark.parametrize("every", [4, 8])
def test_a_fit_in_blocks_has_the_same_bits(paths: list[Path], tmp_path: Path, every: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        expected = make_pipeline().fit(paths)
        pipe = fit_resumable(make_pipeline(), paths, tmp_path / "checkpoint", every=every)
    np.testing.assert_array_equal(pipe[-1].pca_.components_, expected[-1].pca_.components_)
    assert pipe[-1].offset_ == expected[-1].offset_
    assert pipe[-1].map_threshold_ == expected[-1].map_threshold_


@pytest.mark.parametrize("calibration", ["prequential", 0.25])
def test_held_out_images_may_be_unreadable_too(paths: list[Path], calibration: Any) -> None:
    paths = paths[:18]  # the last one is broken
    with pytest.warns(SkippedImagesWarning):
        pipe = make_pipeline(detector__calibration=calibration).fit(paths)
    assert np.isfinite(pipe[-1].offset_)
    assert len(pipe[-1].calibration_scores_) == (3 if calibration == 0.25 else 15)


def test_images_in_one_array_are_skipped_one_by_one(device: torch.device) -> None:
    images = torch.rand(9, 3, 40, 40, generator=torch.Generator().manual_seed(0)).to(device)
    images[5, 0, 0, 0] = torch.nan
    images[7] *= 255
    with pytest.warns(SkippedImagesWarning, match="2 of 9") as caught:
        pipe = make_pipeline().fit(images)
    assert "X[5]" in str(caught[0].message)
    assert pipe[-1].n_samples_seen_ == 7


def test_a_file_that_was_mended_is_read(paths: list[Path], good: list[Path]) -> None:
    features = make_pipeline()[0].fit(paths).transform(paths)
    with pytest.warns(SkippedImagesWarning):
        np.asarray(features)
    for number in BROKEN:
        paths[number].write_bytes(good[0].read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(np.asarray(features)).all()
    assert features.skipped == {}


def test_raise_is_the_default(paths: list[Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"03\.png"):
        make_pipeline(features__on_error="raise").fit(paths)


def test_the_report_is_saved_with_the_model(paths: list[Path], tmp_path: Path) -> None:
    with pytest.warns(SkippedImagesWarning):
        pipe = make_pipeline().fit(paths)
    save(pipe, tmp_path / "model.joblib")
    assert load(tmp_path / "model.joblib")[0].skipped_ == pipe[0].skipped_
    features = pickle.loads(pickle.dumps(pipe[0].transform(paths)))
    with pytest.warns(SkippedImagesWarning):
        assert np.isnan(np.asarray(features)).any()


def test_what_is_skipped_belongs_to_a_pass_and_not_to_the_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02d}.png" for number in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    paths[36].write_text("no image")
    features = make_pipeline()[0].fit(paths).transform(paths)
    first, second = features.read(4), None
    found: dict[str, list[Any]] = {"first": [], "second": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        for number, step in enumerate(first):
            found["first"].append(step)
            if number >= 5:  # the second reader starts in the middle of the first and goes on beside it
                second = second or features.read(4)
                found["second"].append(next(second))
        assert sorted(features.skipped) == [36]
        assert second is not None
        found["second"] += list(second)
    for steps in found.values():
        assert [sorted(skipped) for _, skipped in steps] == [[]] * 9 + [[0]]
        assert "36.png is not an image" in steps[9][1][0]
        marked = torch.cat([batch for batch, _ in steps]).isnan().flatten(1)
        np.testing.assert_array_equal(marked.all(1).nonzero()[:, 0], [36])
        np.testing.assert_array_equal(marked.any(1).nonzero()[:, 0], [36])


def test_only_a_complete_pass_changes_what_is_known_and_only_of_its_images(paths: list[Path], good: list[Path]) -> None:
    features = make_pipeline()[0].fit(paths).transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)
        reader = features.read(4)
        next(reader), next(reader)
        assert features.skipped == {}  # the pass is not over
        reader.close()
        assert features.skipped == {}
        np.asarray(features[:10])
        assert sorted(features.skipped) == sorted(features[5:].skipped) == [3, 4]
        np.asarray(features)
        assert sorted(features.skipped) == list(BROKEN)
        paths[3].write_bytes(good[0].read_bytes())
        paths[17].write_bytes(good[0].read_bytes())
        np.asarray(features[2:6])
    assert sorted(features.skipped) == [4, 17]  # 17 was not read again


def test_an_image_asked_for_twice_is_counted_twice(paths: list[Path]) -> None:
    features = make_pipeline()[0].fit(paths).transform(paths)
    with pytest.warns(SkippedImagesWarning, match="2 of 3 images"):
        np.asarray(features[[3, 0, 3]])
    assert sorted(features.skipped) == [3]

"""Records of the images that a model has learnt: kept by what goes on learning, forgotten by a new fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import ipca_sklearn
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.persistence import digest_images, load, load_skops, record_training, save, save_skops

IMAGES = np.random.default_rng(1).integers(0, 255, (30, 40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted() -> Pipeline:
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4, n_gaussians=8))]).fit(IMAGES[:20])


@pytest.fixture
def pipe(fitted: Pipeline) -> Any:
    return pickle.loads(pickle.dumps(fitted))


def test_a_record_says_how_many_of_which_when_and_with_what(pipe: Pipeline) -> None:
    record = record_training(pipe, IMAGES[:20], source=["left", "right"])
    assert (record["n_images"], record["n_learnt"], record["sources"]) == (20, 20, ["left", "right"])
    assert record["digest"] == digest_images(IMAGES[:20])
    assert record["ipca_sklearn"] == record["versions"]["ipca_sklearn"] == ipca_sklearn.__version__
    assert record["versions"]["numpy"] == np.__version__ and record["date"].endswith("+00:00")
    assert pipe[-1].learnt_from_ == [record] and len(pipe[-1].learnt_images_) == 20


def test_a_digest_is_of_the_pixels_whatever_their_order_names_and_form(tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES[:4]):
        Image.fromarray(image).save(tmp_path / f"{9 - number}.png")
    files = sorted(tmp_path.glob("*.png"))
    expected = digest_images(files)
    assert digest_images(IMAGES[:4]) == digest_images([*files, files[0]]) == expected
    assert digest_images([Image.fromarray(image) for image in IMAGES[[3, 1, 0, 2]]]) == expected
    Image.open(files[0]).save(tmp_path / "a.tif")
    assert digest_images([tmp_path / "a.tif", *files[1:]]) == expected
    other = IMAGES[:4].copy()
    other[2, 0, 0, 0] ^= 1
    assert len({expected, digest_images(other), digest_images(IMAGES[:3])}) == 3
    with pytest.raises(FileNotFoundError, match=r"gone\.png cannot be read"):
        digest_images([tmp_path / "gone.png"])


def test_records_change_no_score_and_survive_every_file(pipe: Pipeline, tmp_path: Path) -> None:
    before = pipe.score_samples(IMAGES)
    record = record_training(pipe, IMAGES[:20])
    save(pipe, tmp_path / "model.joblib")
    loaded = [load(tmp_path / "model.joblib")]
    if pytest.importorskip("skops", reason="skops is not installed: the extra skops"):
        save_skops(pipe, tmp_path / "model.skops")
        loaded.append(load_skops(tmp_path / "model.skops"))
    for one in loaded:
        assert one[-1].learnt_from_ == [record]
        np.testing.assert_array_equal(one[-1].learnt_images_, pipe[-1].learnt_images_)
        np.testing.assert_array_equal(one.score_samples(IMAGES), before)


def test_what_goes_on_learning_keeps_records_and_a_new_fit_has_none(pipe: Pipeline) -> None:
    first = record_training(pipe, IMAGES[:20], source="first")
    pipe[-1].partial_fit(pipe[0].transform(IMAGES[20:25]))
    assert pipe[-1].learnt_from_ == [first]
    second = record_training(pipe, IMAGES[20:25], source="second")
    assert (second["n_images"], second["n_learnt"]) == (5, 5)
    other = clone(pipe[-1]).fit(pipe[0].transform(IMAGES[25:]))
    third = record_training(Pipeline([("features", pipe[0]), ("detector", other)]), IMAGES[25:])
    pipe[-1].merge(other)
    assert pipe[-1].learnt_from_ == [first, second, third] and len(pipe[-1].learnt_images_) == 30
    assert other.learnt_from_ == [third]
    pipe[-1].calibrate(pipe[0].transform(IMAGES[:10]))
    assert [record["n_learnt"] for record in pipe[-1].learnt_from_] == [20, 5, 5]
    pipe.fit(IMAGES[:20])
    assert not hasattr(pipe[-1], "learnt_from_") and not hasattr(pipe[-1], "learnt_images_")


def test_two_fits_of_the_same_images_are_equal_without_records(pipe: Pipeline) -> None:
    again = pickle.loads(pickle.dumps(pipe)).fit(IMAGES[:20])
    assert pickle.dumps(again[-1]) == pickle.dumps(pickle.loads(pickle.dumps(again)).fit(IMAGES[:20])[-1])


def test_images_in_memory_and_files_are_recorded_together(pipe: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    mixed = [tmp_path / "a.png", Image.fromarray(IMAGES[1]), *IMAGES[2:20]]
    assert record_training(pipe, mixed)["digest"] == digest_images(IMAGES[:20])
    assert len(pipe[-1].learnt_images_) == 21  # the bytes of the file, too


def test_images_that_were_held_out_are_of_the_record_and_not_learnt(fitted: Pipeline) -> None:
    detector = clone(fitted[-1]).set_params(calibration=0.25).fit(fitted[0].transform(IMAGES[:20]))
    record = record_training(Pipeline([("features", fitted[0]), ("detector", detector)]), IMAGES[:20])
    assert (record["n_images"], record["n_learnt"]) == (20, 15)


def test_a_record_of_more_than_was_learnt_is_refused_and_changes_nothing(pipe: Pipeline) -> None:
    record_training(pipe, IMAGES[:20])
    before = pickle.dumps(pipe[-1])
    with pytest.raises(ValueError, match="has learnt 20 images, and its records are of as many"):
        record_training(pipe, IMAGES[20:])
    with pytest.raises(ValueError, match="product='bolt': the model is of one product"):
        record_training(pipe, IMAGES, product="bolt")
    with pytest.raises(TypeError, match="StandardScaler keeps no records"):
        record_training(StandardScaler(), IMAGES)
    assert pickle.dumps(pipe[-1]) == before

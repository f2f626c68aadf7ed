"""FeatureCache: each image passes through the network once, and stored features are those of the network."""

from __future__ import annotations

import copy
import io
import os
import pickle
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.features import _lazy as _lazy_features
from ipca_sklearn.model_selection import OneClassKFold
from ipca_sklearn.persistence import load, save


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
        "squeezenet1_1", layers=["features.3"], weights=None, random_state=0, image_size=32, crop_size=32, grid_size=4,
        batch_size=4, cache=cache,
    )  # fmt: skip
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2, step_size=4))])
    return pipe.set_params(**parameters)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Images that pass through the network, counted batch by batch."""
    seen: list[int] = []
    original = _lazy_features._run_network

    def run(images: Any, *arguments: Any) -> None:
        seen.append(len(images))
        original(images, *arguments)

    monkeypatch.setattr(_lazy_features, "_run_network", run)
    yield seen


GRID = {"detector__n_components": [1, 2, 3], "detector__step_size": [4, 8]}


def test_a_grid_search_from_paths_runs_the_network_once_per_image(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, network: list[int]
) -> None:
    paths, y = images
    plain = GridSearchCV(make_pipeline(), GRID, scoring="roc_auc", cv=OneClassKFold(3), refit=False).fit(paths, y)
    assert sum(network) == 6 * sum(len(train) + len(test) for train, test in OneClassKFold(3).split(paths, y))
    network.clear()
    search = GridSearchCV(make_pipeline(cache), GRID, scoring="roc_auc", cv=OneClassKFold(3)).fit(paths, y)
    assert sum(network) == len(paths) == cache.n_images
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    assert search.best_score_ == 1
    normal = [path for path, label in zip(paths, y, strict=True) if label == 1]  # a refit learns no defects
    refitted = make_pipeline(**search.best_params_).fit(normal)
    np.testing.assert_allclose(search.score_samples(paths), refitted.score_samples(paths), rtol=1e-4)


def test_two_processes_share_the_cache(images: tuple[list[Path], np.ndarray], cache: FeatureCache) -> None:
    paths, y = images
    searches = [
        GridSearchCV(make_pipeline(cache), GRID, scoring="roc_auc", cv=OneClassKFold(2), n_jobs=n_jobs).fit(paths, y)
        for n_jobs in (2, 1)
    ]
    assert cache.n_images == len(paths)
    results = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(*results)


def test_cached_features_are_those_of_the_network(images: tuple[list[Path], np.ndarray], cache: FeatureCache) -> None:
    paths, _ = images
    plain = make_pipeline().fit(paths[:18])
    for _ in range(2):  # written, then read
        cached = make_pipeline(cache).fit(paths[:18])
        np.testing.assert_allclose(
            np.asarray(cached[0].transform(paths)), np.asarray(plain[0].transform(paths)), rtol=1e-5, atol=1e-6
        )
    first, second = (make_pipeline(cache).fit(paths[:18]).transform(paths) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_other_settings_and_changed_files_are_not_taken_for_the_same(tmp_path: Path, cache: FeatureCache) -> None:
    path, rng = tmp_path / "image.png", np.random.default_rng(0)
    pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    other_pixels = 255 - pixels
    variants: list[tuple[Any, dict[str, Any]]] = [
        (path, {}),
        (path, {"features__pooling_size": 1}),
        (path, {"features__crop_size": 16}),
        (path, {"features__random_state": 1}),  # other weights
        (path, {"features__normalization": (0.5, 0.5)}),
        (path.read_bytes(), {}),
        (pixels, {}),
        (other_pixels, {}),
        (Image.fromarray(other_pixels).convert("L"), {}),
    ]
    for number, (image, parameters) in enumerate(variants, start=1):
        extractor = make_pipeline(cache, **parameters).fit([image] * 2)[0]
        found, expected = (np.asarray(e.transform([image])) for e in (extractor, copy.deepcopy(extractor)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert cache.n_images == number
    Image.fromarray(other_pixels).save(path)
    make_pipeline(cache).fit([path] * 2)
    assert cache.n_images == len(variants) + 1


def test_features_that_were_kept_before_pixels_changed_are_not_read(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, network: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = make_pipeline(cache)[0].fit(images[0])
    for version, n_seen in ((None, 4), (None, 4), (0, 8), (0, 8)):
        if version is not None:
            monkeypatch.setattr("ipca_sklearn.features._settings.PIXELS_VERSION", version)
        np.asarray(extractor.transform(images[0][:4]))
        assert sum(network) == n_seen


def test_a_full_cache_says_so_once_per_reading_and_goes_on(
    images: tuple[list[Path], np.ndarray], tmp_path: Path
) -> None:
    paths, _ = images
    n_bytes = 4 * 4 * 4 * 128 + 128 + 4
    cache = FeatureCache(tmp_path, max_bytes=5 * n_bytes)
    with pytest.warns(UserWarning, match=r"is full: 5 images of 0.0 MB") as caught:
        pipe = make_pipeline(cache).fit(paths[:18])
    assert sum("is full" in str(one.message) for one in caught) == 1
    assert cache.n_bytes == 5 * n_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(
            pipe.score_samples(paths), make_pipeline().fit(paths[:18]).score_samples(paths), rtol=1e-4
        )
    cache.clear()
    assert cache.n_images == cache.n_bytes == 0


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGES = {
    "other": lambda file: file.write_bytes(b"x"),
    "empty": lambda file: file.write_bytes(b""),
    "one bit": flip_a_bit,
    "checksum": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "without checksum": lambda file: file.write_bytes(file.read_bytes()[:-4]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_or_vanished_files_are_computed_and_written_anew(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, network: list[int], damage: str
) -> None:
    paths, _ = images
    pipe = make_pipeline(cache).fit(paths[:18])
    expected = pipe.score_samples(paths)
    file = next(Path(cache.location).glob("*/*/*.npy"))
    whole = file.read_bytes()
    DAMAGES[damage](file)
    network.clear()
    np.testing.assert_allclose(pipe.score_samples(paths), expected, rtol=1e-4)
    assert sum(network) == 1
    assert len(file.read_bytes()) == len(whole)
    np.testing.assert_allclose(np.load(file), np.load(io.BytesIO(whole)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pipe.score_samples(paths), expected, rtol=1e-4)
    assert sum(network) == 1


@pytest.mark.parametrize("disk", ["full", "not writable"])
def test_a_disk_that_cannot_be_written_means_no_cache_and_one_warning(
    images: tuple[list[Path], np.ndarray], tmp_path: Path, disk: str
) -> None:
    paths, _ = images
    expected = make_pipeline().fit(paths[:18]).score_samples(paths)
    folder = tmp_path / "cache"
    if disk == "not writable":
        folder.write_text("a file where the folder should be")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if disk == "full" else limits[0], limits[1]))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe = make_pipeline(str(folder)).fit(paths[:18])  # a folder's name: each pass has a cache of its own
            for start in range(0, 22, 4):
                pipe.transform(paths[start : start + 4])
            np.testing.assert_allclose(pipe.score_samples(paths), expected, rtol=1e-4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    told = [str(one.message) for one in caught if "cannot be written" in str(one.message)]
    assert len(told) == 1 and str(folder) in told[0] and "Free space" in told[0]
    assert not [file for file in folder.rglob("*") if file.is_file()]


def test_names_that_are_not_utf_8_are_stored(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, network: list[int], tmp_path: Path
) -> None:
    paths, _ = images
    named = [Path(shutil.copy(path, tmp_path / os.fsdecode(path.stem.encode() + b"\xe9.png"))) for path in paths]
    pipe = make_pipeline(cache).fit(named[:18])
    pipe.score_samples(named)
    assert sum(network) == cache.n_images == len(named)


def test_unreadable_images_are_not_stored(images: tuple[list[Path], np.ndarray], cache: FeatureCache) -> None:
    paths = [*images[0][:8], Path("missing.png")]
    pipe = make_pipeline(cache, features__on_error="skip")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 9 images could not be read"):
            pipe.fit(paths)
    assert pipe[-1].n_samples_seen_ == cache.n_images == 8


def test_augmented_features_are_not_stored_and_a_warning_says_so(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache
) -> None:
    pipe = make_pipeline(cache, features__augment="random_crop", features__crop_size=24)
    with pytest.warns(UserWarning, match="augmented images are not kept"):
        pipe.fit(images[0][:8])
    assert cache.n_images == 0


def test_a_saved_model_leaves_the_cache_behind(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, tmp_path: Path
) -> None:
    paths, _ = images
    pipe = make_pipeline(cache).fit(paths[:8])
    save(pipe, tmp_path / "model.joblib")
    loaded = load(tmp_path / "model.joblib")
    np.testing.assert_allclose(loaded.score_samples(paths), pipe.score_samples(paths[:22]), rtol=1e-4)
    assert loaded[0].cache is None
    assert pipe[0].cache is cache
    assert copy.deepcopy(pipe[0]).cache is None


def test_a_cache_survives_clone_and_copy(cache: FeatureCache) -> None:
    cloned = clone(make_pipeline(cache))[0].cache
    assert (cloned.location, cloned.max_bytes) == (cache.location, cache.max_bytes)
    assert copy.deepcopy(cache).location == cache.location
    assert "max_bytes=20000000000" in repr(cache)


@pytest.mark.parametrize("form", [str, Path, FeatureCache])
def test_a_folder_or_a_cache_is_kept_by_clones_and_by_what_is_sent_to_processes(form: Any, tmp_path: Path) -> None:
    extractor = make_pipeline(form(tmp_path))[0]
    for copied in (clone(extractor), pickle.loads(pickle.dumps(extractor)), copy.deepcopy(extractor)):
        assert repr(copied.cache) == repr(extractor.cache)
        assert repr(copied.get_params()["cache"]) in repr(copied)
    assert clone(extractor.fit([np.zeros((8, 8, 3), np.uint8)])).cache is not None
    assert pickle.loads(pickle.dumps(extractor)).cache is None


@pytest.mark.parametrize("form", [str, Path])
def test_a_folder_is_as_good_as_a_cache(
    images: tuple[list[Path], np.ndarray], tmp_path: Path, network: list[int], form: Any
) -> None:
    paths, _ = images
    pipe = make_pipeline(form(tmp_path / "cache")).fit(paths[:18])
    pipe.score_samples(paths)
    assert sum(network) == FeatureCache(tmp_path / "cache").n_images == len(paths)


def test_another_cache_takes_effect_with_the_next_transform(
    images: tuple[list[Path], np.ndarray], tmp_path: Path, network: list[int]
) -> None:
    paths, _ = images
    first, second = FeatureCache(tmp_path / "first"), FeatureCache(tmp_path / "second")
    extractor = make_pipeline(first)[0].fit(paths)
    before = extractor.transform(paths[:3])
    extractor.set_params(cache=second)
    np.asarray(before)
    assert (first.n_images, second.n_images) == (3, 0)
    np.asarray(extractor.transform(paths[:5]))
    assert (first.n_images, second.n_images) == (3, 5)
    np.asarray(extractor.set_params(cache=None).transform(paths))
    assert (first.n_images, second.n_images) == (3, 5)
    assert sum(network) == 3 + 5 + len(paths)


def test_some_files_are_read_and_the_rest_computed_in_one_pass(
    images: tuple[list[Path], np.ndarray], cache: FeatureCache, network: list[int]
) -> None:
    paths, _ = images
    extractor = make_pipeline(cache)[0].fit(paths)
    expected = np.asarray(make_pipeline()[0].fit(paths).transform(paths))
    network.clear()
    np.asarray(extractor.transform(paths[1::3]))
    np.testing.assert_allclose(np.asarray(extractor.transform(paths)), expected, rtol=1e-5, atol=1e-6)
    assert sum(network) == len(paths)

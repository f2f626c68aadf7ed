"""Engines give torch's features, are compiled once, and leave program, models and other users alone."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from ipca_sklearn import FeatureCache, PatchFeatureExtractor
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.features.engines import _choice, _store

openvino = pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def empty_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No engine is known, in this process or on disk."""
    folder = tmp_path / "engines"
    monkeypatch.setenv(_store.VARIABLE, str(folder))
    monkeypatch.delenv(_choice.VARIABLE, raising=False)
    _choice._recent.clear()
    _choice._compiled.clear()
    return folder


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from ipca_sklearn.features.engines import _openvino

    made: list[str] = []
    make = _openvino.make
    monkeypatch.setattr(_openvino, "make", lambda *args: made.append("made") or make(*args))
    return made


def pictures(n: int = 3, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


def small(backbone: Any = "resnet18", **options: Any) -> PatchFeatureExtractor:
    options = {"weights": None, "layers": ["layer1", "layer2"], "image_size": 64, "random_state": 0, **options}
    return PatchFeatureExtractor(backbone, **options)


def read(extractor: PatchFeatureExtractor, images: Any = None) -> np.ndarray:
    return np.asarray(extractor.transform(pictures() if images is None else images))


def assert_agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("engine", _choice.ENGINES)
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mobilenet_v3_small", "vit_b_16"])
def test_an_engine_has_the_features_of_torch(engine: str, backbone: str) -> None:
    pytest.importorskip("onnxscript")
    layers = ["encoder.layers.encoder_layer_0"] if backbone.startswith("vit") else None
    extractor = small(backbone, layers=layers, image_size=64, engine=engine).fit(pictures())
    found = read(extractor)
    assert extractor.engine_.startswith(engine)
    extractor.set_params(engine="torch")
    assert extractor.engine_ == "torch"
    assert_agree(found, read(extractor))


@pytest.mark.parametrize(
    "options",
    [
        {"pooling_size": 1, "map_interpolation": "nearest", "margin": 0},
        {"grid_size": (5, 3), "normalization": (0.5, 0.1)},
        {"region": np.triu(np.ones((64, 64), bool))},
        {"image_size": 80, "crop_size": 64},
    ],
    ids=["paper", "grid", "region", "crop"],
)
def test_the_grid_in_the_engine_is_that_of_torch(options: dict[str, Any]) -> None:
    extractor = small(engine="openvino", **options).fit(pictures())
    found = np.nan_to_num(read(extractor))
    assert_agree(found, np.nan_to_num(read(extractor.set_params(engine="torch"))))


@pytest.mark.parametrize("told_apart", [True, False])
def test_tiles_and_images_of_one_size_with_a_margin_have_engines_of_their_own(
    told_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(1, 128)
    if not told_apart:  # as by an earlier version: what is on disk has maps of another size
        monkeypatch.setattr(_choice, "_digest", lambda *_: "0" * 40)
    whole = {"image_size": 64, "margin": 16}
    tiles = {"tile_size": 64, "tile_overlap": 32}  # of which 16 pixels are seen, and not added, at each edge
    for options in (whole, tiles, whole):
        if not told_apart:
            _choice._compiled.clear()
            _choice._recent.clear()
        extractor = small(engine="openvino", **options).fit(images)
        found = read(extractor, images)
        assert extractor.engine_.startswith("openvino")
        assert_agree(found, read(extractor.set_params(engine="torch"), images))


def test_the_features_of_an_image_have_the_same_bits_in_any_batch() -> None:
    extractor = small().fit(pictures())
    together = read(extractor)
    alone = np.concatenate([read(extractor, pictures()[[index]]) for index in range(3)])
    np.testing.assert_array_equal(alone, together)


def test_copies_clones_and_later_fits_do_not_compile_again(compilations: list[str]) -> None:
    extractor = small().fit(pictures())
    expected = read(extractor)
    for other in (clone(extractor).fit(pictures()), copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        np.testing.assert_array_equal(read(other), expected)
    extractor.set_params(normalization="imagenet").fit(pictures())
    read(extractor)
    assert len(compilations) == 1
    read(clone(extractor).set_params(pooling_size=1, grid_size=5).fit(pictures()))  # the grid comes afterwards
    assert len(compilations) == 1
    read(clone(extractor).set_params(margin=0).fit(pictures()))  # another graph
    assert len(compilations) == 2


def test_copies_and_pickles_hold_no_engine() -> None:
    extractor = small().fit(pictures())
    size = len(pickle.dumps(extractor))
    read(extractor)
    assert extractor.engine_.startswith("openvino")
    assert len(pickle.dumps(extractor)) < size + 1000  # an engine takes megabytes
    assert settings_of(copy.deepcopy(extractor)).backbone.engines == {}
    assert settings_of(extractor).backbone.engines != {}


def test_another_process_finds_the_compiled_network_on_disk(compilations: list[str], empty_cache_folder: Path) -> None:
    expected = read(small().fit(pictures()))
    assert len(list(empty_cache_folder.iterdir())) == 1
    _choice._recent.clear()
    _choice._compiled.clear()
    np.testing.assert_array_equal(read(small().fit(pictures())), expected)
    assert len(compilations) == 1


def test_damaged_and_foreign_files_are_not_used(
    empty_cache_folder: Path, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other: what is compiled anew takes the place of a damaged file, but not of a folder or a pipe."""
    expected = read(small().fit(pictures()))
    (file,) = empty_cache_folder.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    _store.write("0" * 40, b"engine")
    of_another = (empty_cache_folder / f"{'0' * 40}.engine").read_bytes()  # whole
    damages: dict[str, Callable[[], Any]] = {
        "cut": lambda: file.write_bytes(content[:-1]),
        "a bit": lambda: file.write_bytes(changed),
        "text": lambda: file.write_bytes(b"hello"),
        "empty": lambda: file.write_bytes(b""),
        "of another network": lambda: file.write_bytes(of_another),
        "a pipe": lambda: (file.unlink(), os.mkfifo(file)),
        "a folder": lambda: (file.unlink(), file.mkdir()),
    }
    for number, (damage, make) in enumerate(damages.items()):
        make()
        _choice._recent.clear()
        _choice._compiled.clear()
        with caplog.at_level(logging.INFO):
            np.testing.assert_array_equal(read(small().fit(pictures())), expected, damage)
        assert len(compilations) == 2 + number, damage
    assert not [record for record in caplog.records if record.name.startswith("ipca_sklearn")]


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv(_store.VARIABLE, str(tmp_path / "file" / "engines"))
    assert small().fit(pictures()).engine_.startswith("openvino")
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setenv(_store.VARIABLE, "")
    assert _store.cache_folder() is None


def test_the_oldest_files_give_way(monkeypatch: pytest.MonkeyPatch, empty_cache_folder: Path) -> None:
    for number, key in enumerate("abc"):
        _store.write(key, bytes(1000))
        os.utime(empty_cache_folder / f"{key}.engine", (number, number))
    assert _store.read("a") == bytes(1000)  # used last now
    monkeypatch.setattr(_store, "MAX_BYTES", 2500)
    _store.write("d", bytes(1000))
    assert {file.stem for file in empty_cache_folder.iterdir()} == {"a", "d"}


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.noise = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.first(x), training=True)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return y if y.mean() > 0 else -y


def test_what_an_engine_cannot_do_stays_with_torch_and_says_why() -> None:
    cases: list[tuple[PatchFeatureExtractor, str]] = [
        (small(_Branching(), layers=["first"]), "hooks"),
        (small(_Noisy(), layers=["dropout"]), "differs from torch"),
        (small(compile=True), "compile=True"),
        (small(amp="float16"), "float16"),
    ]
    for extractor, reason in cases:
        label = extractor.fit(pictures()).engine_
        assert label.startswith("torch: ") and reason in label, label
        before = dict(vars(extractor.set_params(engine="openvino")))
        with pytest.raises(ValueError, match="engine='openvino' cannot run backbone"):
            extractor.fit(pictures())
        assert vars(extractor) == before


def test_a_traceable_module_of_the_users_is_compiled() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    extractor = small(module, layers=["1", "2"]).fit(pictures())
    assert extractor.engine_.startswith("openvino")
    assert_agree(read(extractor), read(extractor.set_params(engine="torch")))


def test_without_the_packages_auto_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = small(engine="openvino").fit(pictures())
    expected = read(extractor)
    for name in _choice.ENGINES:
        monkeypatch.setitem(sys.modules, name, None)
    moved = pickle.loads(pickle.dumps(extractor))
    with pytest.warns(UserWarning, match="openvino is not installed"):
        assert_agree(read(moved), expected)
    with pytest.raises(ImportError, match=r"ipca_sklearn\[fast\]"):
        moved.fit(pictures())
    moved.set_params(engine="auto").fit(pictures())
    assert moved.engine_ == "torch: openvino is not installed; onnxruntime is not installed"


def test_the_number_of_threads_is_the_callers_and_is_not_compiled_again(compilations: list[str]) -> None:
    extractor = small().fit(pictures())
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    results, before = [], torch.get_num_threads()
    try:
        for n_threads in (1, 2, 1):
            torch.set_num_threads(n_threads)
            results.append(read(extractor))
    finally:
        torch.set_num_threads(before)
    numbers = {key[2] for key in settings_of(extractor).backbone.engines}
    assert numbers >= {1, 2} and len(compilations) == 1
    for result in results[1:]:
        assert_agree(result, results[0])
    if affinity is not None:
        assert os.sched_getaffinity(0) == affinity


def test_threads_may_share_an_extractor() -> None:
    extractor = small().fit(pictures())
    expected, found = read(extractor), []
    threads = [threading.Thread(target=lambda: found.append(read(extractor))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for features in found:
        np.testing.assert_array_equal(features, expected)


def test_bfloat16_is_taken_only_where_it_is_asked_for() -> None:
    extractor = small(amp="bfloat16").fit(pictures())
    rounded = read(extractor)
    expected = read(extractor.set_params(amp=False))
    difference = np.linalg.norm(rounded - expected) / np.linalg.norm(expected)
    assert 1e-4 < difference < 0.1
    assert_agree(expected, read(extractor.set_params(engine="torch")))


def test_kept_features_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    extractor = small(cache=cache).fit(pictures())
    by_engine = read(extractor)
    np.testing.assert_array_equal(read(extractor.set_params(engine="torch")), by_engine)
    assert cache.n_images == 3
    read(extractor.set_params(engine="auto", amp="bfloat16"))
    assert cache.n_images == 6

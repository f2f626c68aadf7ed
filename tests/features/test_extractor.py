"""PatchFeatureExtractor: lazy, repeatable features that lie where the picture says."""

from __future__ import annotations

import gc
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import joblib
import numpy as np
import pytest
import sklearn
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from torch import nn

from ipca_sklearn import PatchFeatureExtractor, PatchFeatures, PatchGaussianDetector
from ipca_sklearn._utils._devices import resolve_amp
from ipca_sklearn.features import _lazy as _lazy_features
from ipca_sklearn.features import _loader as _image_batches
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.images._decode import ImageReadError
from ipca_sklearn.images._masks import read_mask

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def small_network():
    """Two layers on grids of 8 and 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Conv2d(4, 5, 2, 2))


def small(**params):
    """An extractor whose features can be told from its maps: neither smooth nor averaged."""
    defaults = {"image_size": 72, "crop_size": 64, "map_interpolation": "nearest", "pooling_size": 1}
    return PatchFeatureExtractor(**{"backbone": small_network(), "layers": ["1", "2"], **defaults, **params})


def block_means(**params):
    """An extractor whose features are known: the mean colour of each block of 8 x 8 pixels."""
    return small(backbone=nn.Sequential(nn.AvgPool2d(8)), layers=["0"], **params)


def pictures(n=5, size=72, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lazy():
    return small(batch_size=2).fit(pictures()).transform(pictures())


@pytest.fixture(scope="module")
def whole(lazy):
    return np.asarray(lazy)


@pytest.fixture(scope="module")
def named():
    params = {"layers": ["features.1", "features.3"], "weights": None, "random_state": 0}
    return small(backbone="mobilenet_v3_small", **params).fit(pictures())


@pytest.fixture
def paths(tmp_path):
    for index, image in enumerate(pictures(12)):
        Image.fromarray(image).save(tmp_path / f"{index:02}.png")
    return sorted(tmp_path.glob("*.png"))


def assert_threads_end(before):
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
        assert not thread.is_alive(), thread


def test_features_look_like_an_array(lazy, whole):
    assert isinstance(lazy, PatchFeatures)
    assert lazy.shape == whole.shape == (5, 8, 8, 9)
    assert lazy.dtype == whole.dtype == np.float32
    assert lazy.ndim == whole.ndim == 4 and len(lazy) == 5
    assert repr(lazy) == "PatchFeatures(shape=(5, 8, 8, 9), backbone=Sequential, device='cpu')"


def test_features_are_the_means_of_the_normalised_blocks():
    X = pictures()
    found = np.asarray(block_means().fit(X).transform(X))
    blocks = X[:, 4:68, 4:68].reshape(5, 8, 8, 8, 8, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(found, (blocks - MEAN) / STD, atol=1e-5)


KEYS = {
    "slice": slice(1, 4),
    "step": slice(None, None, -2),
    "nothing": slice(2, 2),
    "list": [3, 0, 3],
    "array": np.array([-1, 1]),
    "mask": np.array([True, False, False, True, True]),
    "all": ...,
    "integer": 2,
    "negative": -1,
    "numpy integer": np.int64(0),
}


@pytest.mark.parametrize("key", KEYS)
def test_indices_choose_images_as_in_an_array(key, lazy, whole):
    chosen = lazy[KEYS[key]]
    assert chosen.shape == whole[KEYS[key]].shape
    assert isinstance(chosen, np.ndarray if np.ndim(whole[KEYS[key]]) == 3 else PatchFeatures)
    np.testing.assert_allclose(np.asarray(chosen), whole[KEYS[key]], atol=1e-5)


def test_a_choice_of_a_choice_is_a_choice(lazy, whole):
    np.testing.assert_allclose(np.asarray(lazy[1:][[2, 0]]), whole[[3, 1]], atol=1e-5)


@pytest.mark.parametrize("key", [9, -6, [7], None, [[0, 1]], (0, 1), "a", 1.0, np.zeros(4, dtype=bool)])
def test_indices_that_choose_no_images_raise(key, lazy):
    with pytest.raises(IndexError):
        lazy[key]


def test_iterating_again_gives_the_very_same(lazy, whole):
    for _ in range(2):
        assert [tuple(batch.shape) for batch in lazy] == [(2, 8, 8, 9), (2, 8, 8, 9), (1, 8, 8, 9)]
        np.testing.assert_array_equal(torch.cat(list(lazy)), whole)
    np.testing.assert_array_equal(np.asarray(lazy), whole)


def test_two_readers_do_not_disturb_each_other(lazy, whole):
    for mine, yours in zip(lazy, lazy, strict=True):
        assert torch.equal(mine, yours) and mine.data_ptr() != yours.data_ptr()
    np.testing.assert_array_equal(np.asarray(lazy), whole)


@given(size=st.integers(1, 7), batch_size=st.integers(1, 7), n_jobs=st.sampled_from([None, 1, 2, -1]))
def test_batches_of_any_size_are_the_whole_in_parts(whole, size, batch_size, n_jobs):
    found = small(batch_size=batch_size, n_jobs=n_jobs).fit(pictures()).transform(pictures())
    batches = list(found.batches(size))
    assert [len(batch) for batch in batches] == [min(size, 5 - start) for start in range(0, 5, size)]
    assert all(batch.dtype == torch.float32 and not batch.requires_grad for batch in batches)
    np.testing.assert_allclose(torch.cat(batches), whole, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_no_images_are_refused(size, lazy):
    with pytest.raises(ValueError, match=f"size={size} images per batch"):
        next(lazy.batches(size))


def test_arrays_have_the_dtype_asked_for_and_are_new(lazy, whole):
    assert np.asarray(lazy, dtype=np.float64).dtype == np.float64
    np.testing.assert_allclose(np.asarray(lazy, dtype=np.float16), whole, atol=1e-2)
    assert np.array(lazy, copy=True).flags.writeable
    with pytest.raises(ValueError, match="copy=False"):
        lazy.__array__(copy=False)


def test_features_pickle_and_give_the_same(lazy, whole):
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(lazy))), whole)
    np.testing.assert_allclose(np.asarray(pickle.loads(pickle.dumps(lazy[3:]))), whole[3:], atol=1e-5)


def test_a_named_backbone_pickles_without_torch_tensors(named):
    found = named.transform(pictures())
    expected = np.asarray(found)
    for stored in (named, found):
        content = pickle.dumps(stored)
        assert b"torch._utils" not in content
        again = pickle.loads(content)
        again = again.transform(pictures()) if isinstance(again, PatchFeatureExtractor) else again
        np.testing.assert_array_equal(np.asarray(again), expected)


def test_a_dumped_extractor_works_in_another_process(named, tmp_path):
    joblib.dump(named, tmp_path / "extractor.joblib")
    np.save(tmp_path / "X.npy", pictures())
    script = (
        "import joblib, numpy, sys; from pathlib import Path; folder = Path(sys.argv[1]); "
        "found = joblib.load(folder / 'extractor.joblib').transform(numpy.load(folder / 'X.npy')); "
        "numpy.save(folder / 'found.npy', numpy.asarray(found))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), np.asarray(named.transform(pictures())), atol=1e-4)


def test_clone_copies_the_parameters_and_not_what_is_fitted(named):
    again = clone(named)
    assert {**again.get_params(), "layers": None} == {**named.get_params(), "layers": None}
    with pytest.raises(NotFittedError, match="PatchFeatureExtractor instance is not fitted yet"):
        again.transform(pictures())
    with pytest.raises(NotFittedError):
        again.get_feature_names_out()
    np.testing.assert_array_equal(np.asarray(again.fit(X := pictures()).transform(X)), np.asarray(named.transform(X)))


def test_set_params_takes_effect_with_the_next_fit():
    extractor = small().fit(pictures())
    assert extractor.set_params(layers=["2"], crop_size=32).fit(pictures()).transform(pictures()).shape == (5, 2, 2, 5)


def test_fit_does_not_change_the_parameters():
    extractor = small()
    before = dict(extractor.get_params())
    extractor.fit(pictures())
    assert all(extractor.get_params()[key] is value for key, value in before.items())


def test_feature_names_are_unique_and_name_the_layers(named):
    names = named.get_feature_names_out()
    assert len(names) == len(set(names)) == named.n_features_out_ == 16 + 24
    assert names[0] == "features.1_0" and names[-1] == "features.3_23"


def test_layers_come_in_the_order_asked_for(whole):
    turned = small(layers=["2", "1"]).fit(pictures())
    assert turned.layers_ == ("2", "1")
    found = np.asarray(turned.transform(pictures()))
    np.testing.assert_allclose(found, np.concatenate([whole[..., 4:], whole[..., :4]], axis=-1), atol=1e-5)
    assert turned.get_feature_names_out()[0] == "2_0"


def test_each_layer_is_spread_over_the_grid_of_the_largest(whole):
    coarse = np.asarray(small(layers=["2"]).fit(pictures()).transform(pictures()))
    assert coarse.shape == (5, 4, 4, 5)
    np.testing.assert_allclose(whole[..., 4:], coarse.repeat(2, axis=1).repeat(2, axis=2), atol=1e-5)


def test_grid_size_repeats_or_leaves_out_patches(whole):
    finer = small(grid_size=16).fit(pictures())
    assert finer.grid_size_ == (16, 16)
    np.testing.assert_allclose(finer.transform(pictures()), whole.repeat(2, axis=1).repeat(2, axis=2), atol=1e-5)
    coarser = np.asarray(small(grid_size=4).fit(pictures()).transform(pictures()))
    np.testing.assert_allclose(coarser[..., 4:], whole[:, ::2, ::2, 4:], atol=1e-5)
    np.testing.assert_allclose(coarser[..., :4], whole[:, 1::2, 1::2, :4], atol=1e-5)  # "nearest-exact"


@pytest.mark.parametrize("pooling_size", [1, 3, 5])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("grid_size", [3, 8, 11])
def test_maps_are_resized_and_averaged_as_torch_does_it(whole, grid_size, interpolation, pooling_size):
    found = small(grid_size=grid_size, map_interpolation=interpolation, pooling_size=pooling_size).fit(pictures())
    maps = torch.from_numpy(whole).permute(0, 3, 1, 2)
    mode = {"mode": "nearest-exact"} if interpolation == "nearest" else {"mode": "bilinear", "align_corners": False}
    resized = [F.interpolate(part, (grid_size, grid_size), **mode) for part in (maps[:, :4], maps[:, 4:, ::2, ::2])]
    averaged = F.avg_pool2d(torch.cat(resized, 1), pooling_size, 1, pooling_size // 2, count_include_pad=False)
    np.testing.assert_allclose(found.transform(pictures()), averaged.permute(0, 2, 3, 1), atol=1e-5)


def test_by_default_maps_are_bilinear_and_averaged_over_three_by_three(whole):
    chosen = small(map_interpolation="bilinear", pooling_size=3).fit(pictures()).transform(pictures())
    extractor = PatchFeatureExtractor(small_network(), layers=["1", "2"], image_size=72, crop_size=64)
    found = np.asarray(extractor.fit(pictures()).transform(pictures()))
    np.testing.assert_array_equal(found, chosen)
    assert not np.allclose(found, whole)


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [("imagenet", MEAN, STD), ((0.5, 0.25), 0.5, 0.25), (([0.1, 0.2, 0.3], 2), [0.1, 0.2, 0.3], 2)],
)
def test_normalization_is_what_is_taken_off_and_divided_by(normalization, mean, std):
    X = pictures()
    raw = np.asarray(block_means(normalization=(0, 1)).fit(X).transform(X))
    found = block_means(normalization=normalization).fit(X).transform(X)
    np.testing.assert_allclose(found, (raw - mean) / std, atol=1e-5)


def test_lite0_is_normalised_as_it_was_trained():
    X = pictures(2)
    options = {"backbone": "efficientnet_lite0", "layers": None, "weights": None, "random_state": 0}
    found = np.asarray(small(**options).fit(X).transform(X))
    half = np.asarray(small(**options, normalization=(0.5, 0.5)).fit(X).transform(X))
    np.testing.assert_array_equal(found, half)


@pytest.mark.parametrize("normalization", [(0.5,), (0.5, 0), (0.5, [1, 2]), (np.nan, 1), ("a", 1), (0.5, -1)])
def test_a_normalization_that_is_none_is_refused(normalization):
    with pytest.raises(ValueError, match=r"normalization=.*(mean, std|above 0)"):
        small(normalization=normalization).fit(pictures())


def test_an_even_neighbourhood_is_refused():
    with pytest.raises(ValueError, match="pooling_size=2 is even"):
        small(pooling_size=2).fit(pictures())


def test_a_bad_image_raises_when_its_turn_comes_and_the_threads_end(paths):
    paths[7].write_bytes(paths[7].read_bytes()[:-2000])
    before = set(threading.enumerate())
    found = small(batch_size=2, n_jobs=2).fit(paths).transform(paths)
    seen = 0
    with pytest.raises(ImageReadError, match=r"07\.png"):
        for batch in found:
            seen += len(batch)
    assert seen == 6
    assert_threads_end(before)
    np.testing.assert_allclose(np.asarray(found[8:]), np.asarray(small().fit(paths).transform(paths[8:])), atol=1e-5)


def test_an_abandoned_reader_ends_its_threads(paths):
    before = set(threading.enumerate())
    reader = iter(small(batch_size=1, n_jobs=2).fit(paths).transform(paths))
    next(reader)
    assert set(threading.enumerate()) - before
    del reader
    assert_threads_end(before)


def test_few_images_wait_however_many_there_are(monkeypatch):
    decoded = []

    class Counted(list):
        def __getitem__(self, index):
            decoded.append(index)
            return super().__getitem__(index)

    found = small(batch_size=2).fit(pictures()).transform(pictures(60))
    monkeypatch.setattr(found, "_images", Counted(pictures(60)))
    next(iter(found))
    assert len(decoded) <= 2 + 2 * 2 + 1


def test_the_readers_thread_keeps_its_number_of_torch_threads(lazy):
    before = torch.get_num_threads()
    np.asarray(lazy)
    assert torch.get_num_threads() == before


def torch_threads_of_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_started_after_a_pass_have_their_number_of_torch_threads(lazy):
    before = torch_threads_of_a_new_thread()
    np.asarray(lazy)
    assert torch_threads_of_a_new_thread() == before


def test_readers_that_overlap_in_many_ways_leave_the_number_of_torch_threads(lazy):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = iter(lazy), iter(small(n_jobs=3).fit(pictures()).transform(pictures()))
        next(first)
        assert torch_threads_of_a_new_thread() == 3  # also while workers are there
        next(second)
        first.close()
        assert torch_threads_of_a_new_thread() == 3
        second.close()
        with ThreadPoolExecutor(4) as pool:
            numbers = list(pool.map(lambda _: (np.asarray(lazy), torch.get_num_threads())[1], range(12)))
        assert numbers == [3] * 12
        assert torch_threads_of_a_new_thread() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_extractors_that_are_made_while_others_read_do_not_disturb_them(lazy, whole):
    # torch.fx traces by replacing the call of all modules, in all threads.
    with ThreadPoolExecutor(3) as pool:
        made = pool.submit(lambda: [small().fit(pictures()) for _ in range(15)])
        while not made.done():
            np.testing.assert_array_equal(np.asarray(lazy), whole)
        assert len(made.result()) == 15


def test_a_thread_of_the_user_keeps_its_own_number_of_torch_threads(lazy):
    def read():
        torch.set_num_threads(1)
        np.asarray(lazy)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(read).result() == 1
    torch.set_num_threads(before)


@pytest.mark.parametrize("params", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 8}, {"n_jobs": 3}])
@pytest.mark.parametrize("kind", ["paths", "list", "array", "tensor"])
def test_features_depend_on_the_pixels_alone(kind, params, paths, device):
    X = pictures(12)[:7]
    images = {"paths": paths[:7], "list": list(X), "array": X, "tensor": torch.from_numpy(X).permute(0, 3, 1, 2)}[kind]
    expected = np.asarray(small(batch_size=7, device=device).fit(X).transform(list(X)))
    images = images.to(device) if kind == "tensor" else images
    found = small(device=device, **params).fit(images).transform(images)
    # TF32 convolutions of a GPU may round differently for batches of other sizes.
    atol = 1e-5 if device.type == "cpu" else 1e-2
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


@contextmanager
def waiting_for_a_gpu_is_an_error(device):
    if device.type == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("kind", ["list", "array", "uint8 tensor", "float tensor"])
def test_no_batch_waits_for_the_device(kind, device):
    X = pictures(12)
    tensor = torch.from_numpy(X).permute(0, 3, 1, 2).to(device)
    images = {"list": list(X), "array": X, "uint8 tensor": tensor, "float tensor": tensor / 255}[kind]
    reader = iter(small(device=device, batch_size=2).fit(images).transform(images))
    batches = [next(reader)]  # what is done once for all batches may wait
    with waiting_for_a_gpu_is_an_error(device):
        batches += list(reader)
    np.testing.assert_allclose(torch.cat(batches).cpu(), small().fit(X).transform(X), atol=1e-2)


def test_joblib_chooses_processes_for_files_and_threads_for_the_rest(paths, monkeypatch):
    X = [*paths[:2], pictures(12)[2], paths[3]]
    expected = np.asarray(small().fit(X).transform(X[:3]))
    paths[3].write_bytes(b"no image")
    with joblib.parallel_config(backend="loky", n_jobs=1):
        found = small(batch_size=3).fit(X).transform(X)

    def never(*arguments):
        raise AssertionError("a file is decoded in this process")

    monkeypatch.setattr(_image_batches, "decode", never)  # here, not in the processes
    reader = iter(found)
    np.testing.assert_allclose(next(reader), expected, atol=1e-5)
    with pytest.raises(ImageReadError, match=r"03\.png is not an image"):
        next(reader)


def test_another_backend_of_joblib_is_not_used_and_a_warning_says_so(whole):
    extractor = small().fit(pictures())
    with (
        joblib.parallel_config(backend="multiprocessing", n_jobs=2),
        pytest.warns(UserWarning, match="decoded by threads: joblib's MultiprocessingBackend is not used"),
    ):
        found = extractor.transform(pictures())
    np.testing.assert_allclose(np.asarray(found), whole, atol=1e-5)


@pytest.fixture
def compiled(monkeypatch):
    """Sizes of the batches that were compiled for; the code that runs is torch's own, so no compiler is needed."""
    sizes = []

    def backend(graph, inputs):
        sizes.extend(value.shape[0] for value in inputs if value.ndim == 4 and value.shape[1:] == (3, 64, 64))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    yield sizes
    torch.compiler.reset()


def test_a_network_is_compiled_once_whatever_the_sizes_of_the_batches(compiled, device, whole):
    extractor = small(compile=True, batch_size=3, device=device).fit(pictures())
    found = extractor.transform(pictures())
    assert compiled == []
    for size in (1, 2, 4, 5):
        np.testing.assert_allclose(torch.cat(list(found.batches(size))).cpu(), whole, atol=1e-2)
    np.testing.assert_allclose(np.asarray(found[[3, 1]]), whole[[3, 1]], atol=1e-2)
    assert compiled == [3]


def test_what_is_compiled_is_neither_pickled_nor_cloned(compiled, whole):
    extractor = small(compile=True).fit(pictures())
    found = extractor.transform(pictures())
    np.testing.assert_allclose(np.asarray(found), whole, atol=1e-5)
    assert clone(extractor).compile
    for again in (pickle.loads(pickle.dumps(extractor)).transform(pictures()), pickle.loads(pickle.dumps(found))):
        np.testing.assert_allclose(np.asarray(again), whole, atol=1e-5)
    assert compiled == [8, 8, 8]


def test_without_a_compiler_the_error_says_to_set_compile_to_false(monkeypatch):
    def no_compiler(graph, inputs):
        raise OSError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    found = small(compile=True).fit(pictures()).transform(pictures())
    message = r"(?s)torch\.compile fails on backbone Sequential .*no C\+\+ compiler found.*set compile=False"
    with pytest.raises(RuntimeError, match=message):
        np.asarray(found)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="no C++ compiler on the PATH")
def test_a_compiled_network_gives_the_same_features(whole, device):
    torch.compiler.reset()
    found = small(compile=True, batch_size=3, device=device).fit(pictures()).transform(pictures())
    np.testing.assert_allclose(np.asarray(found), whole, atol=1e-4 if device.type == "cpu" else 1e-2)


@pytest.fixture
def cropper():
    return block_means(augment="random_crop", random_state=3, image_size=96)


def test_only_fit_transform_augments(cropper):
    X = pictures(size=96)
    plain = np.asarray(block_means(image_size=96).fit(X).transform(X))
    augmented = np.asarray(cropper.fit_transform(X))
    assert np.abs(augmented - plain).max() > 0.1
    np.testing.assert_array_equal(np.asarray(cropper.transform(X)), plain)
    np.testing.assert_array_equal(np.asarray(cropper.fit(X).transform(X)), plain)
    np.testing.assert_array_equal(np.asarray(block_means(image_size=96).fit_transform(X)), plain)


def test_random_crops_are_parts_of_the_resized_image_and_differ(cropper):
    rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
    X = np.repeat(np.stack([rows, columns, rows * 0], axis=-1)[None].astype(np.uint8), 20, axis=0)
    found = np.asarray(cropper.fit_transform(X)) * STD + MEAN
    starts = found[:, 0, 0, :2] * 255 - 3.5
    np.testing.assert_allclose(starts, starts.round(), atol=1e-3)
    assert starts.min() >= -0.01 and starts.max() <= 32.01
    assert len(np.unique(starts.round(), axis=0)) > 10
    np.testing.assert_allclose(found[:, 7, 7, :2] - found[:, 0, 0, :2], 56 / 255, atol=1e-5)


def test_crops_follow_random_state_and_nothing_else(cropper):
    X = pictures(size=96)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    found = cropper.fit_transform(X)
    first = np.asarray(found)
    np.testing.assert_array_equal(np.asarray(found), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    np.testing.assert_array_equal(np.asarray(clone(cropper).fit_transform(X)), first)
    np.testing.assert_allclose(np.asarray(found[2:]), first[2:], atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(clone(cropper).set_params(batch_size=3, n_jobs=2).fit_transform(X)), first, atol=1e-6
    )
    other = np.asarray(clone(cropper).set_params(random_state=4).fit_transform(X))
    assert np.abs(other - first).max() > 0.1
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(found))), first)


def mirror(image):
    assert image.shape == (3, 72, 72)
    return image.flip(-1)


def test_a_callable_augments_the_resized_image():
    X = pictures()
    found = np.asarray(block_means(augment=mirror).fit_transform(X))
    mirrored = np.asarray(block_means().fit(X).transform(X[:, :, ::-1]))
    np.testing.assert_allclose(found, mirrored, atol=1e-5)


def test_random_numbers_of_a_callable_follow_random_state():
    def noisy(image):
        return torch.rand(image.shape)

    first, again, other = (
        np.asarray(block_means(augment=noisy, random_state=seed).fit_transform(pictures())) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first[0] - first[1]).max() > 0.01


@pytest.mark.parametrize("augment", ["random_crop", "callable"])
def test_threads_that_augment_at_the_same_time_have_equal_results(augment):
    def noisy(image):
        time.sleep(0.001)  # others draw in the meantime
        return image.float() / 255 * torch.rand(1)

    chosen = noisy if augment == "callable" else augment
    extractor = block_means(augment=chosen, random_state=0, image_size=96, batch_size=2)

    def fit(_):
        return np.asarray(clone(extractor).fit_transform(pictures(12, size=96)))

    expected = fit(0)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(fit, range(9)):
            np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("params", [{"crop_size": None}, {"crop_size": 72}, {"crop_size": (72, 72)}])
def test_random_crops_of_the_whole_image_are_refused(params):
    extractor = small(augment="random_crop", **params)
    message = r"augment='random_crop' has nothing to choose from: .* 72 x 72 pixels\. Set crop_size to less"
    fitted = small().fit(pictures()).set_params(**extractor.get_params())
    for one in (extractor, clone(extractor), fitted):
        for fit in (one.fit, one.fit_transform, make_pipeline(one, PatchGaussianDetector(2)).fit):
            with pytest.raises(ValueError, match=message):
                fit(pictures())
    assert small(augment="random_crop", crop_size=(72, 64)).fit(pictures()).crop_size_ == (72, 64)
    with pytest.raises(ValueError, match="nothing to choose from"):
        PatchFeatureExtractor("resnet18", weights=None, augment="random_crop").fit(pictures())


def test_a_pipeline_augments_in_fit_alone(cropper):
    X = pictures(8, size=96)
    pipeline = make_pipeline(clone(cropper), PatchGaussianDetector(2)).fit(X)
    expected = PatchGaussianDetector(2).fit(np.asarray(clone(cropper).fit_transform(X)))
    np.testing.assert_allclose(pipeline.score_samples(X), pipeline.score_samples(X[::-1])[::-1], rtol=1e-4)
    np.testing.assert_allclose(
        pipeline.score_samples(X), expected.score_samples(np.asarray(cropper.fit(X).transform(X))), rtol=1e-3
    )


@pytest.mark.parametrize("amp", [True, "bfloat16", "float16"])
def test_mixed_precision_gives_float32_close_to_the_plain_features(amp, whole, device):
    found = small(amp=amp, device=device).fit(pictures()).transform(pictures())
    assert next(iter(found)).dtype == torch.float32
    np.testing.assert_allclose(np.asarray(found), whole, atol=0.03 * np.abs(whole).max())
    assert np.abs(np.asarray(found) - whole).max() > 0


def test_float16_rounds_less_than_bfloat16(whole):
    fine, coarse = (
        np.abs(np.asarray(small(amp=amp).fit(pictures()).transform(pictures())) - whole).mean()
        for amp in ("float16", "bfloat16")
    )
    assert 0 < fine < coarse


def test_mixed_precision_is_bfloat16_where_the_device_has_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextmanager(lambda: (yield))())
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert resolve_amp(True, gpu) == expected
        assert resolve_amp(True, cpu) == torch.bfloat16
        assert resolve_amp("float16", cpu) == resolve_amp("float16", gpu) == torch.float16
        assert resolve_amp("bfloat16", gpu) == torch.bfloat16
        assert resolve_amp(False, gpu) is None


def test_the_result_does_not_depend_on_the_device(device, whole):
    found = small(device=device).fit(pictures()).transform(pictures())
    assert found.device == next(iter(found)).device == device
    np.testing.assert_allclose(np.asarray(found), whole, atol=1e-2)
    on_cpu = small(device="cpu").fit(pictures()).transform(torch.from_numpy(pictures()).permute(0, 3, 1, 2).to(device))
    np.testing.assert_allclose(np.asarray(on_cpu), whole, atol=1e-5)


def test_one_network_serves_features_on_several_devices(device, whole):
    extractor = small().fit(pictures())
    here = extractor.transform(pictures())
    there = extractor.transform(torch.from_numpy(pictures()).permute(0, 3, 1, 2).to(device))
    for found in (there, here, pickle.loads(pickle.dumps(there))):
        np.testing.assert_allclose(np.asarray(found), whole, atol=1e-2)


@pytest.mark.parametrize(("image_size", "crop_size"), [(64, 64), (96, 64), (80, 64), (67, 64), (69, 64)])
@pytest.mark.parametrize("size", [(200, 300), (640, 160)])
def test_the_covered_box_is_what_the_features_see(image_size, crop_size, size):
    extractor = block_means(image_size=image_size, crop_size=crop_size, interpolation="bilinear")
    top, left, height, width = extractor.covered_box(size)
    row, column = 2, 5
    inside = [top + row * height / 8, left + column * width / 8]  # the upper left corner of one patch
    bright = np.zeros((1, *size, 3), dtype=np.float32)
    rows = (np.arange(size[0]) >= inside[0]) & (np.arange(size[0]) < inside[0] + height / 8)
    columns = (np.arange(size[1]) >= inside[1]) & (np.arange(size[1]) < inside[1] + width / 8)
    bright[0, rows[:, None] & columns[None]] = 1
    found = (np.asarray(extractor.fit(bright).transform(bright)) * STD + MEAN)[0, :, :, 0]
    assert found[row, column] > 0.75
    found[row, column] = 0
    assert found.max() < 0.25


def test_the_covered_box_of_the_defaults_leaves_a_sixteenth_out():
    assert PatchFeatureExtractor(image_size=256, crop_size=224).covered_box((256, 512)) == (16, 32, 224, 448)


def test_a_bright_square_is_where_it_was():
    X = np.zeros((1, 72, 72, 3), dtype=np.uint8)
    X[0, 4 + 8 : 4 + 24, 4 + 40 : 4 + 48] = 255
    found = np.asarray(block_means().fit(X).transform(X))[0, :, :, 0]
    expected = np.zeros((8, 8), dtype=bool)
    expected[1:3, 5] = True
    np.testing.assert_array_equal(found > found.mean(), expected)


def test_settings_are_those_of_the_parameters_and_need_no_images(device):
    extractor = small(amp=True, augment="random_crop", normalization=(0.5, 0.25)).fit(pictures())
    settings = settings_of(extractor, device)
    assert settings.images.device == device and settings.images.augment is None
    assert settings_of(extractor).images.device == torch.device("cpu")
    assert settings_of(small(device=device).fit(pictures())).images.device == device
    assert settings.shape == extractor.transform(pictures()).shape[1:] == (8, 8, 9)
    assert (settings.mean, settings.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (settings.images.image_size, settings.images.crop_size) == ((72, 72), (64, 64))
    assert settings.amp_dtype == torch.bfloat16
    with pytest.raises(NotFittedError):
        settings_of(small())


def test_the_digest_of_the_weights_tells_networks_apart(named):
    assert pickle.loads(pickle.dumps(named)).weights_digest() == named.weights_digest()
    assert clone(named).set_params(random_state=1).fit(pictures()).weights_digest() != named.weights_digest()
    with pytest.raises(NotFittedError):
        clone(named).weights_digest()


def square_mask():
    mask = np.zeros((72, 72), dtype=bool)
    mask[12:28, 44:52] = True
    return mask


MASKS = {
    "bool": lambda m: m,
    "0-1": lambda m: m.astype(np.uint8),
    "0-255": lambda m: m.astype(np.uint8) * 255,
    "int64": lambda m: m.astype(np.int64),
    "int64 to 255": lambda m: m.astype(np.int64) * 255,
    "float": lambda m: m.astype(np.float32),
    "uint16": lambda m: m.astype(np.uint16) * 65535,
    "last axis": lambda m: m[..., None],
    "PIL": lambda m: Image.fromarray(m),
    "PIL grey": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "smoothed": lambda m: np.where(m, 200, 100 * binary_dilation(m)).astype(np.uint8),
}


@pytest.mark.parametrize("form", MASKS)
def test_masks_in_any_form_are_cut_as_the_images_are(form):
    found = small().transform_masks([MASKS[form](square_mask()), None])
    assert found.shape == (2, 64, 64) and found.dtype == bool
    np.testing.assert_array_equal(found[0], square_mask()[4:68, 4:68])
    assert not found[1].any()


@pytest.mark.parametrize("form", MASKS)
def test_one_reader_of_masks_says_what_is_marked(form):
    read = read_mask(MASKS[form](square_mask()), "mask")
    assert read.dtype == torch.bool
    np.testing.assert_array_equal(read, square_mask())


def test_a_mask_with_smoothed_edges_is_cut_at_half():
    row = np.array([[0, 1, 127, 128, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(read_mask(row, "mask"), [[False, False, False, True, True]])
    np.testing.assert_array_equal(read_mask(Image.fromarray(row), "mask"), read_mask(row, "mask"))
    np.testing.assert_array_equal(read_mask(row.astype(np.int32) * 2, "mask"), [[False, False, True, True, True]])
    np.testing.assert_array_equal(read_mask(row * 0, "mask"), [[False] * 5])
    np.testing.assert_array_equal(read_mask(row / 255, "mask"), read_mask(row, "mask"))


def test_masks_lie_over_the_images(tmp_path):
    mask = np.zeros((50, 90), dtype=bool)
    mask[20:31, 30:61] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    extractor = block_means(interpolation="nearest")
    image = np.repeat(mask[None, ..., None], 3, axis=-1).astype(np.float32)
    share = np.asarray(extractor.fit(image).transform(image))[0, :, :, 0] * STD[0] + MEAN[0]
    (cut,) = extractor.transform_masks([str(tmp_path / "mask.png")])
    np.testing.assert_allclose(cut.reshape(8, 8, 8, 8).mean((1, 3)), share, atol=1e-5)


def test_a_bad_mask_is_named():
    with pytest.raises(ImageReadError, match=r"masks\[1\] has shape"):
        small().transform_masks([None, np.zeros((4, 4, 2), dtype=np.uint8)])
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        small().transform_masks(["gone.png"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"backbone": 3}, "'backbone' parameter"),
        ({"layers": "layer1"}, "'layers' parameter"),
        ({"layers": []}, "names no layer"),
        ({"weights": 3}, "'weights' parameter"),
        ({"image_size": 0}, "'image_size' parameter"),
        ({"crop_size": 64.0}, "'crop_size' parameter"),
        ({"interpolation": "cubic"}, "'interpolation' parameter"),
        ({"augment": "zoom"}, "'augment' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"grid_size": 0}, "'grid_size' parameter"),
        ({"amp": "yes"}, "'amp' parameter"),
        ({"compile": "inductor"}, "'compile' parameter"),
        ({"cache": 3}, "'cache' parameter"),
        ({"n_jobs": "two"}, "'n_jobs' parameter"),
        ({"random_state": "x"}, "'random_state' parameter"),
        ({"crop_size": 73}, "crop_size=73 is larger than image_size=72"),
        ({"device": "gpu"}, "device='gpu' is not a torch device"),
        ({"n_jobs": 0}, "n_jobs == 0"),
    ],
)
def test_invalid_parameters_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        small(**params).fit_transform(pictures())


@pytest.mark.parametrize("library", ["pandas", "polars", "numpy"])
def test_a_column_of_paths_is_a_list_of_paths(tmp_path, library):
    paths = [str(tmp_path / f"{index}.png") for index in range(len(pictures()))]
    for path, image in zip(paths, pictures(), strict=True):
        Image.fromarray(image).save(path)
    if library == "numpy":
        tables, two = [np.array(paths)[:, None], np.array(paths, dtype=object)[:, None]], np.array([paths, paths]).T
    else:
        module = pytest.importorskip(library)
        table, two = module.DataFrame({"path": paths}), module.DataFrame({"path": paths, "mask": paths})
        tables = [table, table["path"]]
    extractor = small().fit(paths)
    expected = np.asarray(extractor.transform(paths))
    for table in tables:
        np.testing.assert_array_equal(np.asarray(extractor.transform(table)), expected)
        np.testing.assert_array_equal(np.asarray(small().fit_transform(table)), expected)
    with pytest.raises(ValueError, match="X has 2 columns; pass the one with the paths"):
        extractor.transform(two)


def test_features_are_lazy_whatever_output_is_asked_for():
    X = pictures()
    assert isinstance(small().set_output(transform="pandas").fit_transform(X), PatchFeatures)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(small().fit(X).transform(X), PatchFeatures)


def test_a_reader_that_reuses_memory_gets_the_same_features_in_one_memory(device):
    images = np.random.default_rng(0).integers(0, 255, size=(5, 32, 32, 3), dtype=np.uint8)
    settings = {"weights": None, "image_size": 32, "crop_size": 32, "batch_size": 2, "device": device}
    features = PatchFeatureExtractor("resnet18", **settings).fit(images).transform(images)
    expected = torch.cat(list(features.batches(2)))
    addresses = set()
    for start, (batch, skipped) in zip((0, 2, 4), features.read(2, reuse=True), strict=True):
        assert skipped == {}
        assert torch.equal(batch, expected[start : start + 2])
        addresses.add(batch.data_ptr())
    assert len(addresses) == 1


@pytest.mark.parametrize(
    ("batch_size", "size", "expected"), [(8, 2, [8, 3]), (5, 2, [4, 4, 3]), (3, 7, [3, 3, 1, 3, 1])]
)
def test_the_network_takes_whole_batches_however_small_a_step_is(device, monkeypatch, batch_size, size, expected):
    images = np.random.default_rng(0).integers(0, 255, size=(11, 32, 32, 3), dtype=np.uint8)
    settings = {"weights": None, "image_size": 32, "crop_size": 32, "batch_size": batch_size, "device": device}
    features = PatchFeatureExtractor("resnet18", **settings).fit(images).transform(images)
    one_by_one = torch.cat(list(features.batches(1)))
    taken = []
    run = _lazy_features._run_network
    monkeypatch.setattr(_lazy_features, "_run_network", lambda x, *rest: (taken.append(len(x)), run(x, *rest)))
    batches = [batch.clone() for batch, _ in features.read(size, reuse=True)]
    assert taken == expected
    assert [len(batch) for batch in batches] == [min(size, 11 - start) for start in range(0, 11, size)]
    torch.testing.assert_close(torch.cat(batches), one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "compiled", "expected"),
    [(64 * 64 * 2, False, [2, 2, 1]), (64 * 64 - 1, False, [1] * 5), (10**9, False, [4, 1]), (1, True, [4, 4])],
)
def test_on_a_cpu_the_network_takes_as_many_images_as_stay_near_its_cache(monkeypatch, pixels, compiled, expected):
    monkeypatch.setattr("ipca_sklearn.features._settings.CPU_PIXELS", pixels)
    features = small(batch_size=4, compile=compiled).fit(pictures()).transform(pictures())
    whole, backbone, taken = np.asarray(features), type(features._settings.backbone), []
    run = backbone.forward
    monkeypatch.setattr(
        backbone, "forward", lambda self, x, *, compiled: taken.append(len(x)) or run(self, x, compiled=False)
    )
    in_pieces = np.asarray(features)
    assert taken == expected
    np.testing.assert_allclose(in_pieces, whole, rtol=1e-4, atol=1e-5)

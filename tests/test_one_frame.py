"""A frame at a time, as from a camera: nothing is started or set for it that the frame before has had already."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn._utils import _threads
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.linalg import _execution

PATIENCE = 60  # seconds until a test that hangs fails
FRAMES = np.random.default_rng(0).integers(0, 255, (24, 48, 40, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _two_threads_and_many_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(_execution, "CPU_CHUNK_BYTES", 4096)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=32, random_state=0)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(3))]).fit(FRAMES)


def frame_as(kind: str, folder: Path) -> Any:
    if kind == "array":
        return FRAMES[:1]
    if kind == "tensor":
        return torch.from_numpy(FRAMES[:1]).movedim(-1, 1)
    Image.fromarray(FRAMES[0]).save(folder / "frame.png")
    return [folder / "frame.png"]


@pytest.mark.parametrize("kind", ["array", "tensor", "path"])
@pytest.mark.parametrize("method", ["score_samples", "transform", "predict"])
def test_a_warm_frame_starts_no_thread_and_sets_no_number_of_threads(
    pipe: Pipeline, kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_as(kind, tmp_path)
    expected = getattr(pipe, method)(frame)
    begun: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: begun.append(f"set_num_threads({n})"))
    found = getattr(pipe, method)(frame)
    assert begun == []
    assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(found, expected)


def test_inference_mode_of_the_caller_holds_for_the_workers(pipe: Pipeline) -> None:
    expected = pipe.score_samples(FRAMES[:2])
    with torch.inference_mode():
        np.testing.assert_array_equal(pipe.score_samples(FRAMES[:2]), expected)


def test_one_frame_has_the_map_that_it_has_among_others(pipe: Pipeline) -> None:
    together = pipe.transform(FRAMES)  # several batches: prepared by threads
    for number in (0, 23):
        np.testing.assert_allclose(pipe.transform(FRAMES[[number]])[0], together[number], rtol=1e-4, atol=1e-4)


def test_a_frame_that_cannot_be_read_raises_or_is_skipped_as_among_others(pipe: Pipeline, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        pipe.score_samples([broken])
    skipping = PatchFeatureExtractor(**pipe[0].get_params() | {"on_error": "skip"}).fit(FRAMES)
    with pytest.warns(UserWarning, match="1 of 1 images could not be read"):
        scores = pipe[1].score_samples(skipping.transform([broken]))
    assert np.isnan(scores).all()


def test_workers_are_kept_for_the_next_user_but_not_with_another_number_or_after_an_error() -> None:
    def workers_of(n: int) -> set[int]:
        with _threads.kept_workers(n) as pool:
            met = threading.Barrier(n)
            return set(pool.map(lambda _: (met.wait(PATIENCE), threading.get_ident())[1], range(n)))

    first = workers_of(3)
    assert len(first) == 3 and workers_of(3) == first
    with _threads.kept_workers(3) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(9))) == {1}
        assert len(workers_of(3) | first) == 6  # while one is in use, another user has its own
    with _threads.kept_workers(2) as pool:
        pass
    assert [n for n, _ in _threads._kept_pools] == [2]
    with pytest.raises(ZeroDivisionError), _threads.kept_workers(2) as failed:
        assert failed is pool
        raise ZeroDivisionError
    assert _threads._kept_pools == []
    with pytest.raises(RuntimeError, match="shutdown"):
        failed.submit(int)
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as new_thread:
        assert new_thread.submit(torch.get_num_threads).result(PATIENCE) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's, about threads and forks
def test_a_forked_child_starts_workers_of_its_own() -> None:
    with _threads.kept_workers(2) as pool:
        assert pool.submit(int).result(PATIENCE) == 0
    child = multiprocessing.get_context("fork").Process(target=_use_workers, args=(_threads.kept_workers,))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert [n for n, _ in _threads._kept_pools] == [2]


def _use_workers(workers: Callable[[int], Any]) -> None:
    with workers(2) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]

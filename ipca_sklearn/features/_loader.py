"""Batches of images on the device, prepared ahead of the network by threads or processes."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, MutableMapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import LokyBackend, get_active_backend
from torch import Tensor
from torchvision.transforms import v2

from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.features._decode import (
    check_range,
    load_batch,
    resize_and_crop,
    to_device,
    to_rgb,
    value_range,
)
from ipca_sklearn.features._settings import ImageSettings


def decodes_in_processes() -> bool:
    """Whether the user asked for processes, by :func:`joblib.parallel_config`; threads are the default."""
    backend = get_active_backend(prefer="threads")[0]
    if not isinstance(backend, LokyBackend) and not getattr(backend, "uses_threads", False):
        warnings.warn(
            f"images are decoded by threads: joblib's {type(backend).__name__} is not used here, only "
            "'threading' and 'loky'",
            UserWarning,
            stacklevel=4,
        )
    return isinstance(backend, LokyBackend)


def read_batches(
    images: Any, groups: Sequence[np.ndarray], settings: ImageSettings, skipped: MutableMapping[int, str]
) -> Generator[Tensor]:
    """Yield the images of each group of indices as (b, 3, crop_size, crop_size) float32 in [0, 1] on the device.

    `n_jobs` workers decode, resize and crop, and one more thread puts batches together and moves them, while the
    reader is busy with earlier ones; `2 * batch_size` images wait at most. For a GPU all of it happens in a stream
    beside the network's, and the host waits for neither.

    Parameters
    ----------
    images : list, ndarray (n, H, W, C) or Tensor (n, C, H, W)
        Checked by `check_images`. Of an array or tensor a group is one piece of work, of a list each image.
    groups : sequence of ndarray of int
        Indices of the images of each batch.
    settings : ImageSettings
        How images are read.
    skipped : dict of str
        With `on_error="skip"`: gets the index of each image that cannot be read, before its batch is yielded with
        black in its place, and the reason.

    Raises
    ------
    FileNotFoundError, ImageReadError
        With `on_error="raise"`: when the turn of the image comes; for floats on a GPU, which are checked all at once,
        before the first.
    """
    device = settings.device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # which may still be making the images
    if settings.on_error == "skip" and _may_fail(images):
        images = list(images)  # one by one, so that one failure does not take its neighbours with it
    elif groups and isinstance(images, Tensor) and images.is_cuda and images.is_floating_point():
        ranges = torch.cat([value_range(_take(images, group)) for group in groups], dim=1)
        check_range(ranges.cpu(), [f"X[{index}]" for group in groups for index in group])
    n_threads = torch.get_num_threads()
    waiting: deque[tuple[int, list[Future[Any]], Callable[[], Any]]] = deque()
    alone: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ExitStack() as stack:
        decoders = stack.enter_context(ThreadPoolExecutor(settings.n_jobs, **alone))
        stager = stack.enter_context(ThreadPoolExecutor(1, **alone))
        processes = stack.enter_context(ProcessPoolExecutor(settings.n_jobs, **alone)) if settings.processes else None
        # What a thread sets is what later threads of the whole program start with.
        stack.callback(torch.set_num_threads, n_threads)
        try:
            for group in groups:
                parts = _submit(images, group, settings, stream, decoders, processes)
                stage = partial(_stage, parts, group, settings, stream, skipped)
                # The random numbers of torch belong to the whole program, so augmentation is the reader's own work.
                ready = stage if settings.augment is not None else stager.submit(stage).result
                waiting.append((len(group), parts, ready))
                while sum(size for size, *_ in waiting) - waiting[0][0] >= 2 * settings.batch_size:
                    yield _received(waiting.popleft()[2]())
            while waiting:
                yield _received(waiting.popleft()[2]())
        finally:
            for _, parts, _ in waiting:
                for part in parts:
                    part.cancel()


def _may_fail(images: Any) -> bool:
    """Whether images in one array or tensor can be wrong: integers cannot, floats may leave [0, 1]."""
    if isinstance(images, Tensor):
        return images.is_floating_point()
    return isinstance(images, np.ndarray) and images.dtype.kind == "f"


def _submit(
    images: Any,
    group: np.ndarray,
    settings: ImageSettings,
    stream: torch.cuda.Stream | None,
    decoders: Executor,
    processes: Executor | None,
) -> list[Future[Any]]:
    """Give the decoders the images of a group; processes take files, what is in memory stays with the threads."""
    part = settings.crop_size if settings.augment is None else settings.image_size
    geometry = (settings.image_size, part, settings.interpolation)
    if not isinstance(images, list):
        return [decoders.submit(_prepare_group, images, group, geometry, stream)]
    parts: list[Future[Any]] = []
    for index in group:
        image, name = images[index], f"X[{index}]"
        if processes is not None and isinstance(image, (str, os.PathLike)):
            parts.append(processes.submit(_prepare_file, image, name, geometry))
        else:
            parts.append(decoders.submit(_prepare, image, name, geometry, stream))
    return parts


def _prepare(image: Any, name: str, geometry: tuple[int, int, str], stream: torch.cuda.Stream | None) -> Tensor:
    with torch.cuda.stream(stream):
        return resize_and_crop(to_rgb(image, name), *geometry)


def _prepare_file(path: str | os.PathLike, name: str, geometry: tuple[int, int, str]) -> np.ndarray:
    return resize_and_crop(to_rgb(path, name), *geometry).numpy()


def _prepare_group(
    images: np.ndarray | Tensor, group: np.ndarray, geometry: tuple[int, int, str], stream: torch.cuda.Stream | None
) -> Tensor:
    with torch.cuda.stream(stream):
        names = [f"X[{index}]" for index in group]
        chosen = to_rgb(_take(images, group), names, in_range=isinstance(images, Tensor) and images.is_cuda)
        return resize_and_crop(chosen, *geometry)


def _take(images: Any, group: np.ndarray) -> Any:
    first, last = int(group[0]), int(group[-1]) + 1
    if np.array_equal(group, np.arange(first, last)):
        return images[first:last]
    if isinstance(images, np.ndarray):
        return images[group]
    rows = to_device(torch.from_numpy(np.ascontiguousarray(group)), images.device)
    if images.dtype == torch.uint16:  # few operations of torch know it, indexing not in all versions
        return images.view(torch.int16)[rows].view(torch.uint16)
    return images[rows]


def _stage(
    parts: list[Future[Any]],
    group: np.ndarray,
    settings: ImageSettings,
    stream: torch.cuda.Stream | None,
    skipped: MutableMapping[int, str],
) -> tuple[Tensor, torch.cuda.Event | None]:
    """Put the parts of a batch together, on the device; the event says when they are there."""
    images: Any = []
    for number, part in enumerate(parts):
        try:
            images.append(torch.as_tensor(part.result()))
        except (FileNotFoundError, ImageReadError) as error:
            if settings.on_error == "raise":
                raise
            skipped[int(group[number])] = str(error)
            side = settings.crop_size if settings.augment is None else settings.image_size
            images.append(torch.zeros(3, side, side, dtype=torch.uint8))
    with torch.cuda.stream(stream):
        if images[0].ndim == 4:  # the whole group is one piece
            (images,) = images
        if settings.augment is not None:
            images = [_augmented(image, int(index), settings) for image, index in zip(images, group, strict=True)]
        batch = load_batch(images, settings.device)
        return batch, None if stream is None else stream.record_event()


def _augmented(image: Tensor, index: int, settings: ImageSettings) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash((settings.seed, index)) % 2**63)
        return v2.functional.center_crop(settings.augment(image), [settings.crop_size, settings.crop_size])


def _received(staged: tuple[Tensor, torch.cuda.Event | None]) -> Tensor:
    """Let the reader's stream wait for a batch, and the memory of the batch for the reader's stream."""
    batch, ready = staged
    if ready is not None:
        reader = torch.cuda.current_stream(batch.device)
        reader.wait_event(ready)
        batch.record_stream(reader)
    return batch

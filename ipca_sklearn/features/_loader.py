"""Batches of images on the device, prepared ahead of the network by threads or processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn._utils._messages import name_of
from ipca_sklearn._utils._proportions import is_stretched
from ipca_sklearn._utils._sklearn_compat import ProcessPoolExecutor
from ipca_sklearn._utils._threads import single_threaded_workers
from ipca_sklearn._utils._typing import Image, Size
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.features._alignment import Placement, moved_back
from ipca_sklearn.features._augment import augmented
from ipca_sklearn.features._settings import ImageSettings
from ipca_sklearn.images._decode import (
    center_crop,
    check_range,
    decode,
    load_batch,
    size_of,
    to_device,
    to_rgb,
    value_range,
)
from ipca_sklearn.images._resize import resize

_Stream: TypeAlias = torch.cuda.Stream | None


class Batch(NamedTuple):
    """A batch of images on the device, and by their positions in X what is to be said of some."""

    images: Tensor  # (b, 3, *crop_size), float32 in [0, 1]
    skipped: dict[int, str]  # by rows: why images could not be read, which are black
    pages: dict[int, str]  # names of files of several pages or frames, of which the first is there
    stretched: dict[int, str]  # names and sizes of images of another aspect ratio
    placements: dict[int, Placement]  # with an aligner, of all images that could be read
    unaligned: dict[int, str]  # names of images in which it has not found the part
    ready: torch.cuda.Event | None  # after which the images are on the GPU


class _Prepared(NamedTuple):
    """An image, or a whole batch, resized, aligned and cropped; its number of pages, its own height and width."""

    pixels: Tensor | np.ndarray  # an array from another process
    n_pages: int
    size: Size
    placements: list[Placement]


def read_batches(images: Any, batches: Sequence[np.ndarray], settings: ImageSettings) -> Generator[Batch]:
    """Yield each batch of images on the device; `batches` are the indices of its images, copies one after the other.

    `n_jobs` workers decode, resize and crop: in a list each image, of an array or a tensor a batch. One more thread
    puts batches together and moves them, for a GPU in a stream of its own. At most `2 * batch_size` images wait. An
    image that cannot be read is an error when the reader comes to it; floats on a GPU are checked together.
    """
    device = settings.device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # it may still be computing the images
    is_float = isinstance(images, Tensor) and images.is_floating_point()  # others cannot leave [0, 1]
    is_float = is_float or (isinstance(images, np.ndarray) and images.dtype.kind == "f")
    if is_float and settings.on_error == "skip":
        images = list(images)  # one by one, so that one that cannot be read does not fail its batch
    elif batches and is_float and isinstance(images, Tensor) and images.is_cuda:
        ranges = torch.cat([value_range(_take(images, batch)) for batch in batches], dim=1)
        check_range(ranges.cpu(), [f"X[{index}]" for batch in batches for index in batch])
    # What is augmented is cut afterwards, and by this process: another one need not know the function.
    kept = settings.crop_size if settings.augment is None else settings.image_size
    decoding = replace(settings, crop_size=kept, augment=None)
    waiting: deque[tuple[int, list[Future[Any]], Callable[[], Batch]]] = deque()
    with ExitStack() as stack:
        decoders: Executor = _SameThreadExecutor()
        stager: Executor = decoders
        if not _is_one_piece(images, batches, settings):
            decoders = stack.enter_context(single_threaded_workers(settings.n_jobs))
            stager = stack.enter_context(single_threaded_workers(1))
        processes: Executor | None = None
        if settings.processes:
            pool = ProcessPoolExecutor(settings.n_jobs, initializer=torch.set_num_threads, initargs=(1,))
            processes = stack.enter_context(pool)
        position = 0
        try:
            for batch in batches:
                parts = _submit(images, batch, decoding, stream, decoders, processes)
                stage = partial(_stage, images, parts, batch, settings, kept, stream, position)
                position += len(batch)
                # In the reader's own thread, as a callable of the user may need it (its device, its context).
                staged = stage if settings.augment is not None else stager.submit(stage).result
                waiting.append((len(batch), parts, staged))
                while sum(size for size, *_ in waiting) - waiting[0][0] >= 2 * settings.batch_size:
                    yield _receive(waiting.popleft()[2]())
            while waiting:
                yield _receive(waiting.popleft()[2]())
        finally:
            for _, parts, _ in waiting:
                for part in parts:
                    part.cancel()


class _SameThreadExecutor(Executor):
    """Does what is submitted at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def _is_one_piece(images: Any, batches: Sequence[np.ndarray], settings: ImageSettings) -> bool:
    """Whether there is so little to prepare that starting threads takes longer."""
    n_images = sum(map(len, batches))
    if n_images > settings.batch_size or settings.processes:
        return False
    return settings.n_jobs == 1 or not isinstance(images, list) or n_images <= 1


def _submit(
    images: Any,
    batch: np.ndarray,
    settings: ImageSettings,
    stream: _Stream,
    decoders: Executor,
    processes: Executor | None,
) -> list[Future[Any]]:
    """Give the images of a batch to the decoders. Processes take files; threads take images in memory."""
    if not isinstance(images, list):
        return [decoders.submit(_prepare_batch, images, batch, settings, stream)]
    parts: list[Future[Any]] = []
    for row, index in enumerate(batch):
        image, name = images[index], f"X[{index}]"
        if row and index == batch[row - 1]:  # another copy of it
            parts.append(parts[-1])
        elif processes is not None and isinstance(image, (str, os.PathLike)):
            parts.append(processes.submit(_prepare, image, name, settings, None, as_array=True))
        else:
            parts.append(decoders.submit(_prepare, image, name, settings, stream))
    return parts


def _prepare(image: Image, name: str, settings: ImageSettings, stream: _Stream, *, as_array: bool = False) -> _Prepared:
    n_pages = 1
    with torch.cuda.stream(stream):
        if isinstance(image, (np.ndarray, Tensor)):
            pixels = to_rgb(image, name)
        else:
            pixels, n_pages = decode(image, name, settings.max_pixels)
        prepared = _prepared(pixels, settings, n_pages)
    return prepared._replace(pixels=np.asarray(prepared.pixels)) if as_array else prepared


def _prepare_batch(
    images: np.ndarray | Tensor, batch: np.ndarray, settings: ImageSettings, stream: _Stream
) -> _Prepared:
    with torch.cuda.stream(stream):
        names = [f"X[{index}]" for index in batch]
        chosen = to_rgb(_take(images, batch), names, in_range=isinstance(images, Tensor) and images.is_cuda)
        return _prepared(chosen, settings, 1)


def _prepared(pixels: Tensor, settings: ImageSettings, n_pages: int) -> _Prepared:
    """Resize, align and crop an image (3, H, W) or several (n, 3, H, W)."""
    resized, placements = resize(pixels, settings.image_size, settings.interpolation), []
    if settings.aligner is not None:
        images = resized if resized.ndim == 4 else resized[None]
        placements = [settings.aligner.place(image) for image in images]
        moved = [moved_back(image, placement.pose) for image, placement in zip(images, placements, strict=True)]
        resized = torch.stack(moved) if resized.ndim == 4 else moved[0]
    return _Prepared(center_crop(resized, settings.crop_size), n_pages, size_of(pixels), placements)


def _take(images: Any, batch: np.ndarray) -> Any:
    first, last = int(batch[0]), int(batch[-1]) + 1
    if np.array_equal(batch, np.arange(first, last)):
        return images[first:last]
    if isinstance(images, np.ndarray):
        return images[batch]
    rows = to_device(torch.from_numpy(np.ascontiguousarray(batch)), images.device)
    if images.dtype == torch.uint16:  # not every version of torch can index it
        return images.view(torch.int16)[rows].view(torch.uint16)
    return images[rows]


def _stage(
    source: Any,
    parts: list[Future[Any]],
    batch: np.ndarray,
    settings: ImageSettings,
    kept: Size,
    stream: _Stream,
    position: int,
) -> Batch:
    """Put the parts of a batch together, on the device. `position` of its first image tells copies apart."""
    images: Any = []
    skipped: dict[int, str] = {}
    pages: dict[int, str] = {}
    stretched: dict[int, str] = {}
    placements: dict[int, Placement] = {}
    for row, part in enumerate(parts):
        try:
            pixels, n_pages, size, placed = part.result()
        except ImageReadError as error:
            if settings.on_error == "raise":
                raise
            skipped[row] = str(error)
            images.append(torch.zeros(3, *kept, dtype=torch.uint8, device="cpu"))
            continue
        images.append(pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels))
        indices = batch.tolist() if images[0].ndim == 4 else [int(batch[row])]  # the whole batch may be one part
        placements |= dict(zip(indices, placed, strict=False))  # without `align` none is placed
        if n_pages > 1:
            pages[indices[0]] = f"{_name(source, indices[0])} ({n_pages} pages or frames)"
        if is_stretched(size, settings.aspect_ratio):
            stretched |= {index: f"{_name(source, index)} ({size[0]} x {size[1]})" for index in indices}
    with torch.cuda.stream(stream):
        if images[0].ndim == 4:  # the whole batch is one part
            (images,) = images
        if settings.augment is not None:
            copies = (position + np.arange(len(batch))) % max(settings.n_augmented, 1)
            each = zip(images, batch.tolist(), copies.tolist(), strict=True)
            images = [augmented(image, settings, index, copy) for image, index, copy in each]
            images = [center_crop(image, settings.crop_size) for image in images]
        on_device = load_batch(images, settings.device)
        unaligned = {index: _name(source, index) for index, placement in placements.items() if not placement.aligned}
        ready = None if stream is None else stream.record_event()
        return Batch(on_device, skipped, pages, stretched, placements, unaligned, ready)


def _name(images: Any, index: int) -> str:
    return name_of(images[index] if isinstance(images, list) else None, f"X[{index}]")


def _receive(batch: Batch) -> Batch:
    """Make the current stream wait for the batch, and record the batch so that its memory is not reused early."""
    if batch.ready is not None:
        current = torch.cuda.current_stream(batch.images.device)
        current.wait_event(batch.ready)
        batch.images.record_stream(current)
    return batch

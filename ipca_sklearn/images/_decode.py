"""Paths, content of files, PIL images, arrays and tensors: checked, decoded to RGB, resized and cropped.

The geometry is the same for every kind of input: the whole image is resized to `image_size`, whatever its shape, and
the centre of `crop_size` is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipca_sklearn._utils._arrays import as_tensor
from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._typing import Image as ImageLike
from ipca_sklearn._utils._typing import Images, PathLike, Size
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.images._deep import as_stored, read_deep
from ipca_sklearn.images._formats import (
    MAX_PIXELS,
    check_opened,
    count_pages,
    open_image,
    orientation,
    undecodable,
    upright,
)
from ipca_sklearn.images._resize import resize, to_unit_floats

_listeners: list[Callable[[PathLike, Tensor], None]] = []


@contextmanager
def reporting_decoded(listener: Callable[[PathLike, Tensor], None]) -> Iterator[None]:
    """Call a listener with the path and the pixels of each file that the threads of this process decode."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def check_images(X: Images) -> Any:
    """Return X as a list, an array or a tensor of images, grey ones with channels; check what needs no decoding."""
    X = _single_column(X)
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)):
        raise TypeError(
            f"X is a single {type(X).__name__}; pass a list of images, for a folder "
            "sorted(pathlib.Path(folder).glob('*.png'))"
        )
    if isinstance(X, Tensor) or (isinstance(X, np.ndarray) and X.ndim > 1):
        X = _check_batch(X)
    else:
        try:
            X = [item.item() if isinstance(item, np.ndarray) and item.ndim == 0 else item for item in X]
        except TypeError as error:
            raise TypeError(
                f"X of type {type(X).__name__} holds no images; pass a list of paths or an array"
            ) from error
        for index, item in enumerate(X):
            if not isinstance(item, (str, bytes, os.PathLike, Image.Image, np.ndarray, Tensor)):
                raise ValueError(
                    f"X[{index}] is a {type(item).__name__}; an image is a path, the bytes of a file, a PIL image, an "
                    "array (H, W, C) or a tensor (C, H, W). Reshape your data if these are rows of numbers"
                )
    if len(X) == 0:
        raise ValueError(
            "X holds no images (0 samples); pass at least one. Does the pattern for the paths match files?"
        )
    return X


def _single_column(X: Any) -> Any:
    """Return the only column of a table of paths, and anything else as it is. Iterating a data frame gives names."""
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):  # of pandas or polars
        table = X.to_numpy()
    elif isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OSU":
        table = X
    else:
        return X
    if table.shape[1] != 1:
        raise ValueError(f"X has {table.shape[1]} columns; pass the one with the paths of the images alone")
    return table[:, 0]


def _check_batch(X: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if isinstance(X, np.ndarray) and X.dtype == object:
        raise ValueError(
            f"X is an object array of shape {X.shape}: images of mixed sizes cannot be in one array; pass a list of "
            "images, each is resized on its own"
        )
    channel_axis = 1 if isinstance(X, Tensor) else 3
    batch = _with_channels(X) if X.ndim == 3 else X
    if batch.ndim != 4 or 0 in batch.shape[1:] or batch.shape[channel_axis] not in (1, 3, 4):
        expected = "(n, C, H, W)" if isinstance(X, Tensor) else "(n, H, W, C)"
        raise ValueError(
            f"X of shape {tuple(X.shape)} is no batch of images: expected {expected} with C = 1, 3 or 4, or (n, H, W) "
            "for grey images. Reshape your data"
        )
    _check_dtype(X.dtype, "X")
    return batch


def _with_channels(X: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Return grey images (n, H, W) with a channel axis, unless X looks like one image: that would be a guess."""
    if isinstance(X, Tensor):
        is_one, one, many = X.shape[0] in (3, 4), "(C, H, W)", "X[:, None]"
    else:
        is_one, one, many = X.shape[2] in (1, 3, 4), "(H, W, C)", "X[..., None]"
    if is_one:
        raise ValueError(
            f"X of shape {tuple(X.shape)} is one image {one}: pass X[None]; or, if these are {X.shape[0]} grey images "
            f"(n, H, W), pass {many}"
        )
    return X[:, None] if isinstance(X, Tensor) else X[..., None]


def _check_dtype(dtype: Any, name: str) -> None:
    if isinstance(dtype, np.dtype):
        known = f"{dtype.kind}{dtype.itemsize}" in ("u1", "u2", "f2", "f4", "f8")
    else:
        known = dtype.is_floating_point or dtype in (torch.uint8, torch.uint16)
    if not known:
        raise ImageReadError(f"{name} has dtype {dtype}; expected uint8, uint16 or floats in [0, 1]")


def to_rgb(
    image: ImageLike, name: str | Sequence[str], *, in_range: bool = False, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Return an image as a (3, H, W) tensor: uint8, or float32 in [0, 1] if it is transparent or has more than 8 bits.

    Several arrays or tensors of one size become (n, 3, H, W); `name`, for messages, has then one for each. `in_range`
    skips the check of floats, which makes the host wait for a GPU. `max_pixels` is for files.
    """
    if isinstance(image, (Tensor, np.ndarray)):
        return _from_values(image, name, in_range)
    return decode(image, str(name), max_pixels)[0]


def decode(image: PathLike | bytes | Image.Image, name: str, max_pixels: int) -> tuple[Tensor, int]:
    """Return a file or a PIL image like `to_rgb`, and its number of pages or frames, of which it is the first."""
    if isinstance(image, bytes):
        with open_image(image, max_pixels, name) as opened:
            return _from_pil(opened, name), count_pages(opened)
    if not isinstance(image, Image.Image):
        with open_image(image, max_pixels) as opened:
            pixels = _from_pil(opened, printable(image))
            for listener in _listeners:
                listener(image, pixels)
            return pixels, count_pages(opened)
    check_opened(image, name, max_pixels)
    return _from_pil(image, name), count_pages(image)


def _from_pil(image: Image.Image, name: str) -> Tensor:
    try:
        values = read_deep(image, name)
        if values is None:
            image.load()
            image = upright(image)
            values = _pixels(image, name)
    except ImageReadError:
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, MemoryError, ... on corrupt files
        raise undecodable(name, error) from error
    return _from_values(values, name, in_range=False)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """Return the pixels (H, W, C) of a PIL image that is decoded and upright."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)[..., None]
        if image.mode == "I":
            if values.size and not 0 <= values.min() <= values.max() <= 65535:
                raise ImageReadError(f"{name} has 32-bit values outside 0 .. 65535; scale it to 8 or 16 bits first")
            values = values.astype(np.uint16)
        return as_stored(values, image)
    if image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image)[..., None]
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _from_values(image: np.ndarray | Tensor, name: str | Sequence[str], in_range: bool) -> Tensor:
    _check_dtype(image.dtype, str(name))
    tensor = image.detach() if isinstance(image, Tensor) else _from_array(image)
    ndim = 3 if isinstance(name, str) else 4
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != ndim or 0 in tensor.shape or tensor.shape[-3] not in (1, 3, 4):
        raise ImageReadError(
            f"{name} has shape {tuple(image.shape)}, expected 1, 3 or 4 channels and at least one pixel"
        )
    in_range = in_range or not tensor.is_floating_point()
    if tensor.dtype != torch.uint8:
        tensor = tensor.float().div_(65535) if tensor.dtype == torch.uint16 else tensor.float()
    if not in_range:
        check_range(value_range(tensor).cpu(), name)
    if tensor.shape[-3] == 4:
        colour, alpha = tensor[..., :3, :, :], tensor[..., 3:, :, :]
        # A GPU would have to be waited for. Not rounded to 8 bits again: the same picture in floats is not.
        is_opaque = tensor.dtype == torch.uint8 and not tensor.is_cuda and bool((alpha == 255).all())
        tensor = colour if is_opaque else to_unit_floats(colour) * to_unit_floats(alpha)
    return tensor.expand(*tensor.shape[:-3], 3, -1, -1)


def value_range(tensor: Tensor) -> Tensor:
    """Return the smallest and the largest value (2, n) of each of n images (..., C, H, W), on their device."""
    return torch.stack([tensor.amin((-3, -2, -1)), tensor.amax((-3, -2, -1))]).float().reshape(2, -1)


def check_range(values: Tensor, name: str | Sequence[str]) -> None:
    """Raise an ImageReadError that names the first image whose `value_range` is not within [0, 1], or has NaN."""
    low, high = values
    outside = ~((low >= 0) & (high <= 1))
    if outside.any():
        first = int(outside.int().argmax())
        raise ImageReadError(
            f"{name if isinstance(name, str) else name[first]} has values from {float(low[first]):g} to "
            f"{float(high[first]):g}; float images are in [0, 1] without NaN. Divide by the largest possible value "
            "(255 for 8 bits). If they were normalised (torchvision's Normalize, ImageNet's mean and standard "
            "deviation), pass the pixels from before, RGB: the extractor normalises them. OpenCV's are BGR: reverse "
            "their channels"
        )


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return as_tensor(np.ascontiguousarray(native)).movedim(-1, max(array.ndim - 3, 0))


def size_of(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Size:
    """Return height and width of an upright image. Of a file only the header is read."""
    if isinstance(image, Image.Image):
        return _upright_size(image)
    if isinstance(image, (np.ndarray, Tensor)):
        height, width = image.shape[-2:] if isinstance(image, Tensor) or image.ndim == 2 else image.shape[-3:-1]
        return int(height), int(width)
    with open_image(image, max_pixels) as opened:
        return _upright_size(opened)


def _upright_size(image: Image.Image) -> Size:
    width, height = image.size
    return (width, height) if orientation(image) >= 5 else (height, width)


def resize_and_crop(image: Tensor, image_size: Size, crop_size: Size, interpolation: str) -> Tensor:
    """Return the (..., C, *crop_size) part of images (..., C, H, W) that the network sees; dtypes as of `resize`."""
    return center_crop(resize(image, image_size, interpolation), crop_size)


def center_crop(image: Any, size: Size) -> Any:
    """Return the centre (..., *size) of images or masks (..., H, W) that are no smaller, as torchvision's crop."""
    top, left = (round((side - kept) / 2) for side, kept in zip(image.shape[-2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. A GPU copies from pinned memory while the host goes on."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def load_batch(images: Sequence[Tensor] | Tensor, device: torch.device) -> Tensor:
    """Return images (3, S, S), or a tensor of them, as (n, 3, S, S) float32 in [0, 1] on `device`, channels last."""
    if not isinstance(images, Tensor):
        if len({(image.dtype, image.device) for image in images}) > 1:
            images = [to_unit_floats(to_device(image, device)) for image in images]
        images = torch.stack(list(images))
    return to_unit_floats(to_device(images.contiguous(memory_format=torch.channels_last), device))

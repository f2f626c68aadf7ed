"""Pictures of single images: the heat map over the image, the mask of anomalous patches, the box around the hottest."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image
from sklearn.pipeline import Pipeline
from torch import Tensor

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.detection import Defect, find_defects
from ipca_sklearn.images._decode import to_rgb
from ipca_sklearn.images._formats import MAX_PIXELS, open_image


@own_surroundings()
def hottest_box(
    anomaly_map: np.ndarray, threshold: float, covered_box: tuple[float, float, float, float]
) -> tuple[int, int, int, int]:
    """Return the box around the anomalous region that has the largest value of a map.

    Where no value is above the threshold, it is the box of the patch with the largest value.

    Parameters
    ----------
    anomaly_map : ndarray of shape (h, w)
        Larger = more anomalous.
    threshold : float
        Patches with larger values are anomalous: `map_threshold_` of the detector.
    covered_box : (float, float, float, float)
        Where the map lies in its image: `PatchFeatureExtractor.covered_box`.

    Returns
    -------
    (int, int, int, int)
        Top, left, height and width in pixels of the image.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.inspection import hottest_box
    >>> anomaly_map = np.array([[0.0, 1.0, 2.0], [6.0, 7.0, 1.0]])
    >>> hottest_box(anomaly_map, 5.0, (0.0, 0.0, 200.0, 300.0))
    (100, 0, 100, 200)
    """
    defects = _defects(anomaly_map, threshold, covered_box)
    if not defects:
        peak = np.zeros_like(anomaly_map)
        peak.flat[anomaly_map.argmax()] = 1
        defects = _defects(peak, 0, covered_box)
    return defects[0].box


def _defects(
    anomaly_map: np.ndarray, threshold: float, covered_box: tuple[float, float, float, float]
) -> Sequence[Defect]:
    """Return the defects of an image that is at least as large as what its map covers."""
    top, left, height, width = covered_box
    size = max(1, ceil(top + height)), max(1, ceil(left + width))
    (defects,) = find_defects(anomaly_map[None], threshold, image_sizes=size, covered_box=lambda _: covered_box)
    return defects or ()


@own_surroundings()
def overlay(estimator: Pipeline, anomaly_map: np.ndarray, image: Image.Image) -> Image.Image:
    """Draw a heat map over its image, which is shown in grey.

    Black is 0; yellow is twice the threshold for patches, and more. What is not inspected, outside of a crop or of a
    region of interest, stays grey.

    Parameters
    ----------
    estimator : Pipeline
        Fitted; its first step is a `PatchFeatureExtractor`, its last a `PatchGaussianDetector`.
    anomaly_map : ndarray of shape (h, w)
        One map of `estimator.transform`.
    image : PIL image
        The upright image, or a smaller copy of it. Floats are in [0, 1], as everywhere.

    Returns
    -------
    PIL image
        RGB, of the size of `image`.

    Raises
    ------
    ImportError
        Without matplotlib, which has the colours.

    Examples
    --------
    >>> from PIL import Image
    >>> from sklearn.pipeline import make_pipeline
    >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    >>> from ipca_sklearn.datasets import make_textures
    >>> from ipca_sklearn.inspection import overlay
    >>> data = make_textures(8, 2, size=64)
    >>> extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=64, random_state=0)
    >>> pipe = make_pipeline(extractor, PatchGaussianDetector(2)).fit(data.train_images)
    >>> image = Image.fromarray(data.test_images[1])
    >>> overlay(pipe, pipe.transform([image])[0], image).size
    (64, 64)
    """
    from matplotlib import colormaps

    grey = np.asarray(in_8_bits(image).convert("L"), dtype=np.float32)[..., None]
    size = grey.shape[:2]
    limit = estimator[-1].map_threshold_
    limit = 2 * limit if 0 < limit < np.inf else 1
    heat = _laid_over(estimator, anomaly_map, size, Image.Resampling.BILINEAR) / limit
    colours = 255 * colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]
    region = estimator[-1].map_region_
    inspected = np.ones_like(anomaly_map) if region is None else region
    inspected = _laid_over(estimator, inspected, size, Image.Resampling.NEAREST)[..., None]
    return Image.fromarray((grey + 0.6 * inspected * (colours - grey)).astype(np.uint8))


@own_surroundings()
def heat_layer(estimator: Pipeline, anomaly_map: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw a heat map as a layer over its image: transparent up to the threshold for patches, colours from there on.

    Yellow is twice the threshold, and more.

    Parameters
    ----------
    estimator, anomaly_map
        As in `overlay`.
    size : (int, int)
        Height and width of the layer: those of the image, or of a smaller copy of it.

    Returns
    -------
    PIL image
        RGBA.

    Raises
    ------
    ImportError
        Without matplotlib, which has the colours.

    Examples
    --------
    >>> layer = heat_layer(pipe, pipe.transform(["a.png"])[0], (256, 256))  # doctest: +SKIP
    """
    from matplotlib import colormaps

    start = estimator[-1].map_threshold_
    heat = _laid_over(estimator, anomaly_map, size, Image.Resampling.BILINEAR)
    inspected = _laid_over(estimator, np.ones_like(anomaly_map), size, Image.Resampling.NEAREST)
    above = np.clip((heat - start) / (start if 0 < start < np.inf else 1), 0, 1)
    colours = colormaps["inferno"](0.45 + 0.55 * above)
    colours[..., 3] = np.where((heat > start) & (inspected > 0), 0.6 + 0.4 * above, 0)
    return Image.fromarray((255 * colours).astype(np.uint8))


def defect_mask(defects: Sequence[Defect], size: tuple[int, int]) -> Image.Image:
    """Draw defects: white in a black picture.

    Parameters
    ----------
    defects : sequence of Defect
        Of one image: an element of what `find_defects` or `predict_regions` returns.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    PIL image
        Of 8 bits: 255 in a defect, else 0.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.detection import find_defects
    >>> from ipca_sklearn.inspection import defect_mask
    >>> (defects,) = find_defects(np.array([[[0.0, 9.0], [0.0, 0.0]]]), 5.0, image_sizes=(4, 4))
    >>> int(np.count_nonzero(defect_mask(defects, (4, 4))))
    4
    """
    pixels = np.zeros(size, dtype=np.uint8)
    for defect in defects:
        top, left, height, width = defect.box
        pixels[top : top + height, left : left + width][defect.mask] = 255
    return Image.fromarray(pixels)


def map_of_pixels(estimator: Pipeline, anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map in the size of its image: bilinear between the patches, 0 where nothing is inspected.

    Parameters
    ----------
    estimator, anomaly_map
        As in `overlay`.
    size : (int, int)
        Height and width of the image.

    Returns
    -------
    ndarray of shape `size`, float32

    Examples
    --------
    >>> values = map_of_pixels(pipe, pipe.transform(["a.png"])[0], (256, 256))  # doctest: +SKIP
    """
    return _laid_over(estimator, anomaly_map, size, Image.Resampling.BILINEAR)


def _laid_over(
    estimator: Pipeline, values: np.ndarray, size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """Return values of patches as pixels of an image of this size, 0 where the image is not inspected."""
    top, left, height, width = (round(value) for value in estimator[0].covered_box(size))
    pixels = np.zeros(size, dtype=np.float32)
    stretched = Image.fromarray(values.astype(np.float32)).resize((width, height), resample)
    pixels[top : top + height, left : left + width] = np.asarray(stretched)
    return pixels


def open_upright(path: PathLike, side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image as the network sees it: upright, RGB, 8 bits.

    Parameters
    ----------
    path : str or path-like
        File of the image.
    side : int or None, default=None
        Shrink it to fit a square of this side.
    max_pixels : int, default=89_478_485
        As of the extractor.

    Returns
    -------
    PIL image

    Raises
    ------
    ImageReadError
        As scoring does; a MissingImageError if the file has gone since.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from ipca_sklearn.inspection import open_upright
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 20)).save(Path(folder, "a.png"))
    ...     open_upright(Path(folder, "a.png"), side=10).size
    (10, 5)
    """
    with open_image(path, max_pixels) as image:
        if side is not None:
            image.draft("RGB", (side, side))  # JPEG files are decoded at a fraction of their size
        upright = Image.fromarray(_as_bytes(to_rgb(image, printable(path), max_pixels=max_pixels)))
    if side is not None:
        upright.thumbnail((side, side))
    return upright


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return a PIL image of any mode as RGB of 8 bits: Pillow cuts floats and 16 bits off at 255 instead of scaling."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_as_bytes(to_rgb(image, "image")))
    return image.convert("RGB")


def _as_bytes(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) as uint8 (H, W, 3); of 16 bits the upper half is kept."""
    pixels = image.permute(1, 2, 0)
    if pixels.is_floating_point():
        pixels = ((pixels * 65535).round() / 257).byte()
    return pixels.contiguous().numpy()

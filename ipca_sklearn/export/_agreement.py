"""Whether an exported file scores images as the pipeline does that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._messages import name_of
from ipca_sklearn._utils._typing import Image, Size
from ipca_sklearn.images._decode import check_images, load_batch, to_rgb

# How much scores and maps of a file may differ from those of its pipeline, of the largest value of a map.
LARGEST_DIFFERENCE = 1e-4
HINT_OF_16_BITS = "16-bit pictures differ because the file takes 8 bits: export with dtype='float32'"


class Agreement(NamedTuple):
    """How far the results of a file were from those of its pipeline on the images of `check`.

    Attributes
    ----------
    n_images : int
        How many were compared.
    score_difference, map_difference : float
        The largest difference of a score and of a value of a map, each as a share of the largest value of the image's
        map.
    n_other_labels : int
        Images that `offset` calls normal by the file and anomalous by the pipeline, or the other way round.
    """

    n_images: int
    score_difference: float
    map_difference: float
    n_other_labels: int


class Expected(NamedTuple):
    """An image as a file takes it, and what the file must give for it."""

    name: str
    pixels: np.ndarray
    map: np.ndarray
    score: float
    is_normal: bool


def imported(package: str, need: str) -> Any:
    """Import a package that is installed for `need`."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{need} needs {package}; pip install {package}") from error


def pixels_of(images: Any, index: int, dtype: str) -> np.ndarray:
    """Return an image as a file takes it: (1, 3, H, W)."""
    pixels = load_batch([to_rgb(images[index], name_of(images[index], f"check[{index}]"))], torch.device("cpu"))
    if dtype == "uint8":
        pixels = (255 * pixels).round().to(torch.uint8)
    return pixels.contiguous().numpy()


def expected_results(
    pipe: Pipeline, images: Sequence[Image] | None, dtype: str, input_size: Size | None
) -> list[Expected]:
    """Read images, of one size unless it is None, and score them by the pipeline."""
    found: list[Expected] = []
    if images is None:
        return found
    images = check_images(images)
    for index in range(len(images)):
        pixels, name = pixels_of(images, index, dtype), name_of(images[index], f"check[{index}]")
        if input_size is not None and pixels.shape[2:] != tuple(input_size):
            raise ValueError(f"{name} has {pixels.shape[2]} x {pixels.shape[3]} pixels, input_size is {input_size}")
        (features,) = pipe[0].transform(images[index : index + 1]).batches(1)
        maps = pipe[-1].transform(features)
        score = float(pipe[-1].score_maps(maps)[0])
        found.append(Expected(name, pixels, np.asarray(maps[0]), score, score >= pipe[-1].offset_))
    return found


def compare(
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    expected: Sequence[Expected],
    offset: float,
    *,
    largest_difference: float,
    hint: str,
) -> Agreement:
    """Compare the results of a file with those of the pipeline it was made from; too large differences are an error.

    `run` runs the file on pixels (1, 3, H, W): score (1,) and map (1, H', W'). Images with a score lower than `offset`
    are anomalous. `largest_difference` of scores and maps is a share of the largest value of a map.
    """
    differences, n_other_labels = [], 0
    for image in expected:
        (score,), (map_,) = run(image.pixels)
        largest = float(image.map.max())
        found = abs(image.score - float(score)) / largest, float(np.abs(image.map - map_).max()) / largest
        if not np.max(found) <= largest_difference:  # NaN if one is
            raise ValueError(
                f"{image.name}: the exported file differs from the pipeline by {np.max(found):.1e} of the largest "
                f"value of the map, {largest_difference:g} is allowed; nothing was written. {hint}"
            )
        differences.append(found)
        n_other_labels += (float(score) >= offset) != image.is_normal
    score_difference, map_difference = np.max(differences, axis=0).tolist()
    return Agreement(len(expected), score_difference, map_difference, n_other_labels)

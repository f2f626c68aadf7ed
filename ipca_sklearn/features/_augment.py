"""Training images as they could have looked too: other places, angles and sides, by random numbers that repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._threads import seeded_torch
from ipca_sklearn._utils._typing import Size
from ipca_sklearn.features._alignment import moved_back
from ipca_sklearn.features._registration import Pose
from ipca_sklearn.features._settings import Augment, ImageSettings
from ipca_sklearn.images._resize import to_unit_floats

AUGMENTATIONS = ("flip", "random_crop", "rotation")


def check_augment(augment: Augment, n_augmented: int, image_size: Size, crop_size: Size) -> None:
    """Raise a ValueError for unknown names, random crops that would all be the whole image, and copies of nothing."""
    if n_augmented and augment is None:
        raise ValueError(
            f"n_augmented={n_augmented} copies of each training image need an augment that makes them differ: "
            "'rotation', 'flip', 'random_crop', several of them, or a function"
        )
    names = _names(augment)
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown or (not names and not callable(augment) and augment is not None):
        known = ", ".join(map(repr, AUGMENTATIONS))
        raise ValueError(f"augment={augment!r}: name one or several of {known}, or pass one function")
    if "random_crop" in names and crop_size == image_size:
        raise ValueError(
            f"augment={augment!r} has nothing to choose from: the crop is the whole resized image, {image_size[0]} x "
            f"{image_size[1]} pixels. Set crop_size to less than that (None takes all of it), or augment=None"
        )


def _names(augment: Augment) -> tuple[str, ...]:
    if isinstance(augment, str):
        return (augment,)
    return tuple(augment) if isinstance(augment, Sequence) else ()


def augmented(image: Tensor, settings: ImageSettings, index: int, copy: int) -> Tensor:
    """Return a resized image, or a `copy` of it, augmented by the seed, its position `index` in X and the copy."""
    n_copies = settings.n_augmented
    entropy = [settings.seed, index, copy] if n_copies else [settings.seed, index]
    sequence = np.random.SeedSequence(entropy)
    if callable(settings.augment):
        (seed,) = sequence.generate_state(1, np.uint64)
        with seeded_torch(int(seed)), as_in_a_fresh_process(image.device):
            # A copy: a callable may write to it, and the pixels may be the user's own, or one channel three times.
            return settings.augment(to_unit_floats(image).clone(memory_format=torch.contiguous_format))
    random = np.random.default_rng(sequence)  # of its own: other threads draw from torch's
    for name in _names(settings.augment):
        if name == "random_crop":
            height, width = settings.crop_size
            room = np.subtract(image.shape[1:], settings.crop_size) + 1
            top, left = random.integers(0, room)
            image = image[..., top : top + height, left : left + width]
        elif name == "flip":
            sides = (copy + 1) % 4 if n_copies else int(random.integers(4))  # the image itself is learnt beside copies
            image = image.flip([axis for axis in (1, 2) if sides & axis])
        else:
            image = moved_back(image, Pose(2 * math.pi * (copy + random.random()) / max(n_copies, 1)))
    return image

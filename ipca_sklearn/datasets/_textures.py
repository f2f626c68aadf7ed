"""Generated surfaces with generated defects: a data set without a download and with exact masks."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

from ipca_sklearn._utils._sklearn_compat import Interval, validate_params
from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.datasets._defects import DEFECTS, apply_defect
from ipca_sklearn.datasets._folders import NORMAL_TYPE
from ipca_sklearn.datasets._materials import MATERIALS, FloatArray, grid

_TRAIN, _TEST = 0, 1
# Every pixel in a mask differs from the undamaged image by at least this many grey levels, in at least one channel.
_MIN_CHANGE = 4

_DESCR = """\
Generated images of the material "{material}", {size} x {size} pixels, RGB. Training: {n_train} normal images. Test:
{n_normal} normal images and {n_anomalous} with a defect ({defects}), in turn.

Split: no image is in both parts. A mask is exactly where a defect changed the image.
Source: ipca_sklearn.datasets.make_textures, without photographs.
Licence: that of ipca_sklearn; the images are free of other rights.
Citation: none is needed.
"""


@validate_params(
    {
        "n_train": [Interval(Integral, 0, None, closed="left")],
        "n_test": [Interval(Integral, 0, None, closed="left")],
        "material": [str],
        "defects": [str, "array-like"],
        "size": [Interval(Integral, 32, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
@own_surroundings()
def make_textures(
    n_train: int = 64,
    n_test: int = 32,
    *,
    material: str = "fabric",
    defects: str | Sequence[str] = "all",
    size: int = 256,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Generate images of a surface: normal images for training, normal and damaged images for the test.

    Normal images differ from each other by position on the surface, light and camera noise. Defects range from hard to
    see to obvious. Every second test image is damaged, by each of the defects in turn.

    Parameters
    ----------
    n_train : int, default=64
        Number of training images, all normal.
    n_test : int, default=32
        Number of test images; half of them, rounded up, are normal.
    material : {"fabric", "leather", "metal", "part", "stone", "wood"}, default="fabric"
        The surface. "part" is a machined part that has the same position in each image, except for a small jitter, so
        that position matters; the others are surfaces that look alike everywhere.
    defects : "all", str or sequence of str, default="all"
        The kinds of defect: "blob", "crack", "dent", "hole", "scratch", "stain", "thread", "wear".
    size : int, default=256
        Height and width in pixels, at least 32. A smaller image is a smaller crop of the surface ("part" is scaled).
    random_state : int, RandomState instance or None, default=0
        With an int, calls repeat bit by bit, and image i does not depend on the number of images. None gives other
        images at each call.

    Returns
    -------
    sklearn.utils.Bunch
        With the attributes

        - ``train_images`` : uint8 ndarray of shape (n_train, size, size, 3), RGB.
        - ``test_images`` : uint8 ndarray of shape (n_test, size, size, 3), RGB.
        - ``test_labels`` : int ndarray of shape (n_test,), +1 normal, -1 anomalous.
        - ``test_masks`` : bool ndarray of shape (n_test, size, size), True exactly where a defect changed the image.
        - ``defect_types`` : str ndarray of shape (n_test,), "good" for a normal image.
        - ``material`` : str.
        - ``DESCR`` : str, the source, licence and split.

    Raises
    ------
    ValueError
        If the material or a defect is unknown (the message lists the names and suggests the nearest), if `defects` is
        empty, or if a number is out of range.

    See Also
    --------
    load_mvtec_ad, load_magnetic_tile : Photographs of real surfaces.

    Examples
    --------
    >>> from ipca_sklearn.datasets import make_textures
    >>> wood = make_textures(2, 3, material="wood", defects=["scratch", "stain"], size=64)
    >>> wood.train_images.shape
    (2, 64, 64, 3)
    >>> print(*wood.defect_types)
    good scratch good
    >>> wood.test_masks.any(axis=(1, 2))
    array([False,  True, False])
    """
    _check_names([material], MATERIALS, "material")
    kinds = list(DEFECTS) if isinstance(defects, str) and defects == "all" else defects
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    _check_names(kinds, ["all", *DEFECTS] if isinstance(defects, str) else DEFECTS, "defects")
    if not kinds:
        raise ValueError("defects is empty; pass 'all' or at least one of " + ", ".join(DEFECTS) + ".")
    base = int(check_random_state(random_state).randint(2**31 - 1))

    train_images = np.empty((n_train, size, size, 3), dtype=np.uint8)
    for i in range(n_train):
        train_images[i], _ = _draw(material, size, (base, _TRAIN, i), None)
    test_images = np.empty((n_test, size, size, 3), dtype=np.uint8)
    test_masks = np.empty((n_test, size, size), dtype=bool)
    test_kinds = [kinds[i // 2 % len(kinds)] if i % 2 else None for i in range(n_test)]
    for i, kind in enumerate(test_kinds):
        test_images[i], test_masks[i] = _draw(material, size, (base, _TEST, i), kind)
    return Bunch(
        train_images=train_images,
        test_images=test_images,
        test_labels=np.array([1 if kind is None else -1 for kind in test_kinds], dtype=np.int64),
        test_masks=test_masks,
        defect_types=np.array([kind or NORMAL_TYPE for kind in test_kinds], dtype=str),
        material=material,
        DESCR=_DESCR.format(
            material=material,
            size=size,
            n_train=n_train,
            n_normal=n_test - n_test // 2,
            n_anomalous=n_test // 2,
            defects=", ".join(kinds),
        ),
    )


def _check_names(names: Iterable[object], known: Iterable[str], parameter: str) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
            hint = f" did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{parameter}={name!r} is unknown;{hint} the names are {', '.join(known)}.")


def _draw(
    material: str, size: int, entropy: tuple[int, ...], kind: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one image and its mask; the same entropy gives the same image, except for the defect."""
    # The name is mixed in; otherwise all materials would be damaged at the same positions.
    entropy = (*entropy, zlib.crc32(material.encode()))
    surface_rng, camera_rng, defect_rng = (np.random.default_rng([*entropy, stream]) for stream in range(3))
    surface = MATERIALS[material](surface_rng, size)
    light, noise = _camera(camera_rng, size)
    clean = _expose(surface.colour, light, noise)
    if kind is None:
        return clean, np.zeros((size, size), dtype=bool)
    colour, mask = apply_defect(defect_rng, surface, kind)
    return _keep_change_visible(clean, _expose(colour, light, noise), mask), mask


def _camera(rng: np.random.Generator, size: int) -> tuple[FloatArray, FloatArray]:
    """Draw the light (a gain with a slight gradient) and the noise of the sensor."""
    y, x = grid(size)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.08)
    light = rng.normal(1, 0.02) * (1 + slope * ((y * np.sin(angle) + x * np.cos(angle)) / size - 0.5))
    return light[..., None], 0.009 * rng.standard_normal((size, size, 3))


def _expose(colour: FloatArray, light: FloatArray, noise: FloatArray) -> NDArray[np.uint8]:
    # Noise is added after the damage: a filled spot without noise would be easy to detect.
    return np.rint(255 * np.clip(colour * light + noise, 0, 1)).astype(np.uint8)


def _keep_change_visible(
    clean: NDArray[np.uint8], damaged: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Change the pixels in the mask that are (nearly) as before by chance: else the mask would have pinholes."""
    before, after = clean.astype(np.int16), damaged.astype(np.int16)
    weak = mask & (np.abs(after - before).max(axis=-1) < _MIN_CHANGE)
    sign = np.where((after - before).sum(axis=-1, keepdims=True) > 0, 1, -1)
    sign = np.where(before + sign * _MIN_CHANGE > 255, -1, np.where(before + sign * _MIN_CHANGE < 0, 1, sign))
    return np.where(weak[..., None], before + sign * _MIN_CHANGE, after).astype(np.uint8)

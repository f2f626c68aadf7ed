"""How a picture is turned and moved against another one, by phase correlation.

Pictures are grey and small: about 128 pixels on the longer side. The shift is the peak of the correlation of two
spectra of which only the phases count (Kuglin, Hines, 1975). The angle is searched: first among turned references of 64
pixels, in steps of 5 degrees, then around the best one with the picture itself, down to a third of a degree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

# Longer side in pixels of what is searched for the angle, and of a reference.
COARSE, FINE = 64, 128
_STEP = math.radians(5)
_REFINEMENTS = tuple(math.radians(degrees) for degrees in (2.5, 1.25, 0.6, 0.3))
# In cycles per pixel: higher frequencies of two pictures of one part are noise.
_LOW_PASS = 0.15

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its reference at p is the picture at `R(angle) p + (down, right)`, from the middles."""

    angle: float = 0.0  # in radians; positive turns the part from right to down
    down: float = 0.0  # in pixels
    right: float = 0.0  # in pixels

    def applied(self, y: Any, x: Any) -> tuple[Any, Any]:
        """Return where in the picture, from its middle, the points (y, x) of its reference lie."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return sine * x + cosine * y + self.down, cosine * x - sine * y + self.right

    def inverted(self) -> Pose:
        """Return the pose of the reference in the picture."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return Pose(-self.angle, sine * self.right - cosine * self.down, -cosine * self.right - sine * self.down)

    def scaled(self, down: float, right: float) -> Pose:
        """Return the pose with other pixels."""
        return Pose(self.angle, self.down * down, self.right * right)


def moved(picture: Floats, pose: Pose) -> Floats:
    """Return a picture (h, w) brought to the place of its reference; mirrored where it ends."""
    middle = (np.array(picture.shape) - 1) / 2
    cosine, sine = math.cos(pose.angle), math.sin(pose.angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])  # of (row, column)
    offset = middle + np.array([pose.down, pose.right]) - turn @ middle
    return ndimage.affine_transform(picture, turn, offset, order=1, mode="reflect").astype(np.float32, copy=False)


def shrunk(picture: Floats, side: int) -> Floats:
    """Return a picture whose longer side has at most so many pixels, each the mean of those that it replaces."""
    scale = min(1.0, side / max(picture.shape))
    rows, columns = (_means(length, max(1, round(length * scale))) for length in picture.shape)
    return np.asarray(rows @ picture @ columns.T, dtype=np.float32)


@lru_cache(32)
def _means(length: int, new: int) -> Floats:
    edges = np.arange(new + 1) * (length / new)
    starts = np.arange(length)
    shared = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (shared.clip(0) * (new / length)).astype(np.float32)


def correlation(first: Floats, second: Floats) -> float:
    """Return Pearson's correlation of the pixels of two pictures; 0 where one of them is flat."""
    a, b = first - first.mean(dtype=np.float64), second - second.mean(dtype=np.float64)
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 1e-9 else 0.0


class Search:
    """Finds the pose of pictures of one size against a reference; `rigid` searches the angle too."""

    def __init__(self, reference: Floats, rigid: bool) -> None:
        self._fine = _spectrum(reference)
        self._coarse: NDArray[np.complex64] | None = None
        if rigid:
            small = shrunk(reference, COARSE)
            self._angles = np.arange(0, 2 * math.pi - 1e-9, _STEP)
            self._coarse = np.stack([_spectrum(moved(small, Pose(-angle))) for angle in self._angles])

    def pose(self, picture: Floats) -> Pose:
        """Return the pose of a picture (h, w), in its pixels. Costs one transform, or about 85 with the angle."""
        if self._coarse is None:
            return Pose(0.0, *_peak(_correlated(_spectrum(picture), self._fine, picture.shape))[1])
        small = shrunk(picture, COARSE)
        found = _correlated(_spectrum(small), self._coarse, small.shape)
        angle = float(self._angles[found.reshape(len(found), -1).max(1).argmax()])
        peaks: dict[float, tuple[float, tuple[float, float]]] = {}
        for step in _REFINEMENTS:
            for candidate in (angle, angle - step, angle + step):
                if candidate not in peaks:
                    turned = moved(picture, Pose(candidate))
                    peaks[candidate] = _peak(_correlated(_spectrum(turned), self._fine, picture.shape))
            angle = max(peaks, key=lambda tried: peaks[tried][0])
        return Pose(angle, *Pose(angle).applied(*peaks[angle][1]))


def _spectrum(picture: Floats) -> NDArray[np.complex64]:
    """Return the spectrum of a picture that fades to the tone of its edges."""
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return fft.rfft2((picture - np.median(edges)) * _window(*picture.shape))


@lru_cache(32)
def _window(height: int, width: int) -> Floats:
    rows, columns = (np.hanning(side + 2)[1:-1] ** 0.25 for side in (height, width))
    return np.outer(rows, columns).astype(np.float32)


@lru_cache(32)
def _low_pass(height: int, width: int) -> Floats:
    frequencies = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width))
    return np.exp(-((frequencies / _LOW_PASS) ** 2)).astype(np.float32)


def _correlated(first: NDArray[np.complex64], second: NDArray[np.complex64], size: tuple[int, ...]) -> Floats:
    """Return the phase correlation (..., h, w) of spectra: the largest value lies at the shift of the first."""
    product = first * second.conj()
    strength = np.abs(product)
    strength += 1e-3 * strength.mean((-2, -1), keepdims=True) + np.float32(1e-30)
    return fft.irfft2(product / strength * _low_pass(size[0], size[1]), s=size)


def _peak(correlated: Floats) -> tuple[float, tuple[float, float]]:
    """Return the largest value of a phase correlation, and its place between the pixels, by parabolas."""
    place = np.unravel_index(int(correlated.argmax()), correlated.shape)
    shift = []
    for axis, side in enumerate(correlated.shape):
        line = correlated[:, place[1]] if axis == 0 else correlated[place[0]]
        at = int(place[axis])
        before, top, after = (float(line[(at + step) % side]) for step in (-1, 0, 1))
        curvature = before - 2 * top + after
        between = at + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)
        shift.append(between - side if between > side / 2 else between)
    return float(correlated[place]), (shift[0], shift[1])

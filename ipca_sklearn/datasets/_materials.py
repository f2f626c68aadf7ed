"""Undamaged surfaces: one function per material, each drawn from a generator in float.

A material maps ``(rng, size)`` to a `Surface`. Lengths are in pixels and do not depend on the size: a smaller image is
a smaller crop of the same surface. Only the part, which is an object, fills the image at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

FloatArray = NDArray[np.float64]


class Surface(NamedTuple):
    """A surface before light and camera: colours (size, size, 3) in 0..1, and the region where defects are allowed."""

    colour: FloatArray
    foreground: NDArray[np.bool_]


def smooth_noise(rng: np.random.Generator, size: int, scale_y: float, scale_x: float | None = None) -> FloatArray:
    """Draw Gaussian noise of mean 0 and variance 1, blurred by Gaussians of the given scales in pixels.

    The blur is a product in Fourier space: unlike a convolution, its cost does not depend on the scale.
    """
    scale_x = scale_y if scale_x is None else scale_x
    # Single precision halves the time, and its error is far below a grey level.
    spectrum = fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    blur = np.exp(-2 * (np.pi * scale_y * fy) ** 2) * np.exp(-2 * (np.pi * scale_x * fx) ** 2)
    spectrum *= blur.astype(np.float32)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=(size, size)).astype(np.float64)
    return noise / max(float(noise.std()), 1e-12)


def smoothstep(x: FloatArray, low: float, high: float) -> FloatArray:
    """Rise smoothly from 0 at `low` to 1 at `high`; fall if `low` is larger."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def emboss(height: FloatArray, strength: float) -> FloatArray:
    """Return factors of brightness of a height field lit from the upper left, 1 where it is flat."""
    dy, dx = np.gradient(height)
    return 1 + strength * np.tanh(dx + dy)


def grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Return the row and the column of every pixel, (size, size) each."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return y, x


def _surface(colour: FloatArray) -> Surface:
    return Surface(colour, np.ones(colour.shape[:2], dtype=bool))


def _cells(
    rng: np.random.Generator, y: FloatArray, x: FloatArray, period: float
) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """Return the distances to the nearest and second nearest of one random point per square, and the nearest's index.

    These are (nearly always) in the 3 x 3 squares around a pixel. Searching only those is about 10 times faster than a
    tree.
    """
    v, u = y / period, x / period
    row, col = np.floor(v).astype(np.intp), np.floor(u).astype(np.intp)
    row0, col0 = row.min() - 1, col.min() - 1
    n_cols = int(col.max() - col0 + 2)
    n_rows = int(row.max() - row0 + 2)
    point_row, point_col = rng.uniform(0.05, 0.95, size=(2, n_rows, n_cols))
    point_row = (point_row + np.arange(row0, row0 + n_rows)[:, None]).ravel()
    point_col = (point_col + np.arange(col0, col0 + n_cols)).ravel()
    own = (row - row0) * n_cols + (col - col0)
    first, second, nearest = np.full(v.shape, np.inf), np.full(v.shape, np.inf), own
    for step in (drow * n_cols + dcol for drow in (-1, 0, 1) for dcol in (-1, 0, 1)):
        index = own + step
        d = (point_row.take(index) - v) ** 2 + (point_col.take(index) - u) ** 2
        nearest = np.where(d < first, index, nearest)
        second = np.minimum(second, np.maximum(first, d))
        first = np.minimum(first, d)
    return np.sqrt(first), np.sqrt(second), nearest


def _fabric(rng: np.random.Generator, size: int) -> Surface:
    """Draw twill: each thread passes over two and under two, one step further in each row."""
    y, x = grid(size)
    angle = np.deg2rad(rng.normal(0, 1.0))
    u = (x * np.cos(angle) + y * np.sin(angle)) / 7.0 + rng.uniform(0, 4) + 0.10 * smooth_noise(rng, size, 30, 8)
    v = (y * np.cos(angle) - x * np.sin(angle)) / 6.0 + rng.uniform(0, 4) + 0.10 * smooth_noise(rng, size, 8, 30)
    warp_on_top = (np.floor(u) + np.floor(v)) % 4 < 2
    across_warp, across_weft = np.sin(np.pi * (u % 1)), np.sin(np.pi * (v % 1))
    height = np.where(warp_on_top, across_warp * (0.75 + 0.25 * across_weft), across_weft * (0.7 + 0.3 * across_warp))
    fibre = np.where(warp_on_top, smooth_noise(rng, size, 3, 0.7), smooth_noise(rng, size, 0.7, 3))
    slub = np.where(warp_on_top, smooth_noise(rng, size, 40, 3), smooth_noise(rng, size, 3, 40))
    shade = (0.45 + 0.55 * height) * (1 + 0.07 * fibre + 0.05 * slub)
    colour = np.where(warp_on_top[..., None], (0.30, 0.40, 0.58), (0.76, 0.75, 0.70))
    return _surface(colour * shade[..., None])


def _wood(rng: np.random.Generator, size: int) -> Surface:
    """Draw year rings cut lengthwise: each becomes darker and then ends sharply; pores are short dark streaks."""
    _, x = grid(size)
    bend = 14 * smooth_noise(rng, size, 110, 35) + 1.2 * smooth_noise(rng, size, 40, 6)
    ring = (x + bend) / 24 + rng.uniform(0, 50)
    ring += 0.35 * np.sin(ring * 1.7)
    phase = ring % 1
    late = phase**2.2 * smoothstep(phase, 1.0, 0.86)
    fibre = 0.5 * smooth_noise(rng, size, 25, 0.8) + 0.5 * smooth_noise(rng, size, 8, 0.6)
    pores = smoothstep(smooth_noise(rng, size, 6, 0.6) + 0.5 * (1 - phase), 2.1, 2.7)
    shade = (1 + 0.045 * fibre + 0.03 * smooth_noise(rng, size, 60, 30)) * (1 - 0.35 * pores)
    early, dark = np.asarray((0.78, 0.60, 0.40)), np.asarray((0.50, 0.31, 0.17))
    return _surface((early + (0.95 * late)[..., None] * (dark - early)) * shade[..., None])


def _leather(rng: np.random.Generator, size: int) -> Surface:
    """Draw soft raised cells between fine creases, with finer cells in them, lit from the side."""
    y, x = grid(size)
    y, x = y + 2.2 * smooth_noise(rng, size, 5), x + 2.2 * smooth_noise(rng, size, 5)
    shift = rng.uniform(0, 100, size=2)
    first, second, _ = _cells(rng, y + shift[0], 0.85 * x + shift[1], 9.0)
    fine_first, fine_second, _ = _cells(rng, y - shift[1], x + shift[0], 4.2)
    crease = smoothstep(second - first, -0.05, 0.42)
    fine = smoothstep(fine_second - fine_first, -0.1, 0.5)
    height = 1.7 * crease * (1 - 0.4 * first**2) + 0.45 * fine + 0.15 * smooth_noise(rng, size, 1.0)
    folds = emboss(2.5 * smooth_noise(rng, size, 22), 0.25)
    shade = (0.66 + 0.25 * crease + 0.09 * fine) * emboss(height, 0.42) * folds
    sheen = 0.05 * smoothstep(height, 1.6, 2.4) * folds
    return _surface(np.asarray((0.50, 0.29, 0.18)) * shade[..., None] + sheen[..., None])


def _metal(rng: np.random.Generator, size: int) -> Surface:
    """Draw a brushed sheet: streaks of three widths along one direction, under a broad sheen."""
    y, _ = grid(size)
    streaks = 0.6 * smooth_noise(rng, size, 0.5, 60) + 0.5 * smooth_noise(rng, size, 0.4, 14)
    streaks += 0.4 * smooth_noise(rng, size, 2.5, 90)
    sheen = np.cos(2 * np.pi * (y / size * 0.7 + 0.05 * rng.normal()))
    return _surface(np.asarray((0.60, 0.615, 0.63)) * (1 + 0.075 * streaks + 0.07 * sheen)[..., None])


def _stone(rng: np.random.Generator, size: int) -> Surface:
    """Draw granite: grains of four minerals of two sizes, with a fine speckle in each."""
    palette = np.array([(0.74, 0.70, 0.67), (0.56, 0.55, 0.56), (0.66, 0.53, 0.48), (0.20, 0.20, 0.22)])
    colour = np.zeros((size, size, 3))
    for period, weight, odds in ((9.0, 0.65, (0.42, 0.33, 0.13, 0.12)), (4.0, 0.35, (0.40, 0.30, 0.10, 0.20))):
        y, x = grid(size)
        y, x = y + 1.8 * smooth_noise(rng, size, 2.5), x + 1.8 * smooth_noise(rng, size, 2.5)
        _, _, nearest = _cells(rng, y, x, period)
        n_grains = int(nearest.max()) + 1
        grains = palette[rng.choice(4, p=odds, size=n_grains)] * rng.normal(1, 0.06, size=(n_grains, 1))
        colour += weight * grains[nearest]
    return _surface(colour * (1 + 0.05 * smooth_noise(rng, size, 0.7) + 0.02 * smooth_noise(rng, size, 20))[..., None])


def _part(rng: np.random.Generator, size: int) -> Surface:
    """Draw a turned gear with a hub and six bolt holes on a dark table; it moves by a pixel, turns by a degree."""
    y, x = grid(size)
    centre = (size - 1) / 2 + rng.normal(0, size / 256, size=2)
    dy, dx = y - centre[0], x - centre[1]
    radius = np.hypot(dy, dx) / (size / 2)
    direction = np.arctan2(dy, dx)
    angle = direction - np.deg2rad(rng.normal(0, 0.7))
    soft = 2.0 / size  # one pixel in units of the half width: edges are smoothed over two

    def edge(distance: FloatArray) -> FloatArray:
        return smoothstep(distance, -soft, soft)

    tip = 0.80 + 0.055 * np.tanh(4 * np.sin(28 * angle))
    # Folded into one sixth of the circle, the six holes are one.
    folded = (angle + np.pi / 6) % (np.pi / 3) - np.pi / 6
    holes = edge(np.hypot(radius * np.sin(folded), radius * np.cos(folded) - 0.50) - 0.085)
    body = edge(tip - radius) * edge(radius - 0.13) * holes
    hub, rim = edge(0.30 - radius), edge(radius - 0.70)
    # The circular grooves of turned metal reflect light into two opposite fans.
    sheen = 0.16 * np.cos(2 * (direction - 0.7)) * (1 - 0.5 * rim)
    grooves = 0.035 * np.sin(2 * np.pi * radius * size / 2 / 3.1 + rng.uniform(0, 6.28))
    steps = 0.18 * np.exp(-(((radius - 0.30) / 0.012) ** 2)) - 0.22 * np.exp(-(((radius - 0.70) / 0.012) ** 2))
    tone = 0.60 + 0.08 * hub - 0.08 * rim + sheen + grooves + steps + 0.012 * smooth_noise(rng, size, 1.0)
    table = 0.12 * (1 + 0.08 * smooth_noise(rng, size, 1.5))
    shadow = 1 - 0.45 * smoothstep(np.hypot(dy - 0.02 * size, dx - 0.02 * size) / (size / 2), 0.93, 0.80)
    colour = body[..., None] * tone[..., None] * np.asarray((1.0, 0.98, 0.94))
    colour += ((1 - body) * table * shadow)[..., None] * np.asarray((0.95, 1.0, 1.1))
    return Surface(colour, body > 0.5)


MATERIALS: dict[str, Callable[[np.random.Generator, int], Surface]] = {
    "fabric": _fabric,
    "leather": _leather,
    "metal": _metal,
    "part": _part,
    "stone": _stone,
    "wood": _wood,
}

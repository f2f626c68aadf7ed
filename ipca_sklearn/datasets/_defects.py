"""Damage to a surface: one function per kind, each drawn from a generator.

A kind maps ``(rng, colour, centre, strength)`` to the damaged colours and to the share of the damage that each pixel
shows. Its size is proportional to the image's, its contrast to the strength. Both vary widely, from hard to see to
obvious.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ipca_sklearn.datasets._materials import FloatArray, Surface, emboss, grid, smooth_noise, smoothstep

Damage = tuple[FloatArray, FloatArray]
# A pixel is damaged if at least this fraction of the damage shows; otherwise it is not changed at all.
_SHOWS = 0.25
_MIN_AREA_FRACTION = 6e-4
_N_TRIES = 100


def apply_defect(rng: np.random.Generator, surface: Surface, kind: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the colours of a surface damaged by a key of `DEFECTS`, and the mask of the damaged pixels."""
    size = surface.foreground.shape[0]
    # Not at the border, where most of a defect might be outside of the image.
    inner = surface.foreground.copy()
    margin = max(1, size // 10)
    inner[:margin] = inner[-margin:] = inner[:, :margin] = inner[:, -margin:] = False
    centres = np.argwhere(inner)
    for _ in range(_N_TRIES):
        centre = centres[rng.integers(len(centres))].astype(np.float64)
        strength = float(rng.uniform(0.15, 1.0))
        damaged, shown = DEFECTS[kind](rng, surface.colour, centre, strength)
        mask = (shown >= _SHOWS) & surface.foreground
        if mask.sum() >= max(6, _MIN_AREA_FRACTION * size**2):
            return np.where(mask[..., None], damaged, surface.colour), mask
    raise RuntimeError(f"no position for a {kind!r} was found in {_N_TRIES} tries; the foreground is too small.")


def _paint(colour: FloatArray, shown: FloatArray, target: FloatArray) -> FloatArray:
    return colour + shown[..., None] * (target - colour)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _spot(
    rng: np.random.Generator, size: int, centre: FloatArray, radii: tuple[float, float], roughness: float, soft: float
) -> tuple[float, FloatArray, FloatArray]:
    """Draw an irregular, slightly oblong disc: radius, depth (1 at the centre, 0 at the edge), cover of each pixel."""
    radius = size * _log_uniform(rng, *radii)
    y, x = grid(size)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.7)
    dy, dx = y - centre[0], x - centre[1]
    along = (dy * np.cos(angle) + dx * np.sin(angle)) / stretch**0.5
    across = (dx * np.cos(angle) - dy * np.sin(angle)) * stretch**0.5
    depth = 1 - np.hypot(along, across) / radius + roughness * smooth_noise(rng, size, max(1.0, 0.35 * radius))
    # Far from the centre noise alone may exceed the edge; it is cut off there.
    depth = np.where(np.hypot(along, across) < 1.6 * radius, depth, -1.0)
    return radius, depth, smoothstep(depth * radius, -soft, soft)


def _walk(
    rng: np.random.Generator, start: FloatArray, heading: float, length: float, wobble: float, curl: float
) -> FloatArray:
    """Walk by half a pixel a step; the heading drifts by `wobble` a step and turns by `curl` over the whole path."""
    n_steps = max(4, int(2 * length))
    turns = wobble * rng.standard_normal(n_steps) + curl / n_steps
    headings = heading + np.cumsum(turns)
    return start + 0.5 * np.cumsum(np.stack([np.sin(headings), np.cos(headings)], axis=1), axis=0)


def _stroke(size: int, path: FloatArray, half_width: FloatArray | float, soft: float = 0.6) -> FloatArray:
    """Cover a line of the given half width, which may vary along the path."""
    inside = ((path >= 0) & (path <= size - 1)).all(axis=1)
    row, col = np.rint(path[inside]).astype(np.intp).T
    if not row.size:
        return np.zeros((size, size))
    width = np.zeros((size, size))
    width[row, col] = np.broadcast_to(half_width, len(path))[inside]
    distance, nearest = ndimage.distance_transform_edt(width <= 0, return_indices=True)
    return smoothstep(distance - width[tuple(nearest)], soft, -soft)


def _blob(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a half transparent drop with a highlight at its upper left."""
    size = len(colour)
    radius, depth, shown = _spot(rng, size, centre, (0.022, 0.07), 0.12, 1.0)
    height = radius * np.sqrt(np.clip(depth, 0, 1))
    tint = rng.uniform(0.35, 0.9, size=3) * 0.3 + rng.uniform(0.4, 0.85) * 0.7
    drop = _paint(colour, 0.25 + 0.6 * strength * np.ones_like(shown), np.broadcast_to(tint, colour.shape))
    lit = drop * emboss(ndimage.gaussian_filter(height, 1.0), 0.15 + 0.25 * strength)[..., None]
    offset = np.hypot(*(g - c + 0.35 * radius for g, c in zip(grid(size), centre, strict=True)))
    lit += (0.45 * strength * np.exp(-((offset / (0.22 * radius)) ** 2)))[..., None]
    return _paint(colour, shown, lit), shown


def _crack(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a dark line that zigzags, branches once or twice and thins out."""
    size = len(colour)
    length = size * _log_uniform(rng, 0.15, 0.45)
    heading = rng.uniform(0, 2 * np.pi)
    half_width = max(0.55, size / 256 * rng.uniform(0.5, 1.0))
    path = _walk(rng, centre, heading, length, 0.22, 0.0)
    taper = np.linspace(1.0, 0.35, len(path))
    shown = _stroke(size, path, half_width * taper)
    for _ in range(rng.integers(1, 3)):
        k = int(rng.integers(len(path) // 5, 4 * len(path) // 5))
        side = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = _walk(rng, path[k], side, length * rng.uniform(0.15, 0.4), 0.22, 0.0)
        shown = np.maximum(shown, _stroke(size, branch, 0.7 * half_width * np.linspace(1, 0.4, len(branch))))
    return _paint(colour, shown, colour * (0.75 - 0.6 * strength)), shown


def _dent(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a smooth hollow: only the shading changes."""
    radius, depth, shown = _spot(rng, len(colour), centre, (0.035, 0.09), 0.06, 1.5)
    hollow = -radius * smoothstep(depth, 0.0, 0.9)
    shade = emboss(hollow, 0.2 + 0.4 * strength) - 0.10 * strength * smoothstep(depth, 0.0, 0.6)
    return _paint(colour, shown, colour * shade[..., None]), shown


def _hole(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a pit with a dark floor and a rim lit on the far side."""
    _, depth, shown = _spot(rng, len(colour), centre, (0.016, 0.045), 0.15, 0.8)
    pit = smoothstep(depth, 0.0, 0.45)
    floor = colour * (1 - (0.35 + 0.55 * strength) * pit)[..., None]
    return _paint(colour, shown, floor * emboss(-2.0 * ndimage.gaussian_filter(pit, 1.0), 0.5)[..., None]), shown


def _scratch(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw one to three nearly straight parallel lines, bright where the surface is removed, dark along one edge."""
    size = len(colour)
    heading, length = rng.uniform(0, 2 * np.pi), size * _log_uniform(rng, 0.15, 0.50)
    curl = rng.normal(0, 0.25)
    bright = np.zeros((size, size))
    for k in range(rng.integers(1, 4)):
        aside = k * rng.uniform(2.0, 5.0) * size / 256 * np.array([np.cos(heading), -np.sin(heading)])
        start = centre + aside - 0.5 * length * rng.uniform(0.7, 1) * np.array([np.sin(heading), np.cos(heading)])
        path = _walk(rng, start, heading - curl / 2, length * rng.uniform(0.6, 1), 0.006, curl)
        taper = np.sqrt(np.sin(np.linspace(0.1, np.pi - 0.1, len(path))))
        bright = np.maximum(bright, _stroke(size, path, max(0.5, 0.75 * size / 256) * taper))
    dark = ndimage.shift(bright, (1, 1), order=0)
    bare = 0.5 * colour.mean() + 0.5 * colour + 0.10 + 0.35 * strength
    damaged = _paint(colour, dark, colour * (0.85 - 0.35 * strength))
    return _paint(damaged, bright, bare), np.maximum(bright, dark)


def _stain(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a dried liquid: a tint through which the texture shows, darkest along its edge."""
    size = len(colour)
    radius, depth, shown = _spot(rng, size, centre, (0.05, 0.14), 0.22, 2.0)
    ring = np.exp(-((depth * radius / (2.5 * size / 256)) ** 2))
    absorbed = rng.uniform(0.3, 1.0, size=3)
    amount = (0.10 + 0.40 * strength) * (1 + 0.5 * ring + 0.10 * smooth_noise(rng, size, 4))
    return _paint(colour, shown, colour * (1 - amount[..., None] * absorbed)), shown


def _thread(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a loose fibre on the surface, with its shadow."""
    size = len(colour)
    length = size * _log_uniform(rng, 0.18, 0.45)
    path = _walk(rng, centre, rng.uniform(0, 2 * np.pi), length, 0.05, rng.normal(0, 2.0))
    half_width = max(0.5, size / 256 * rng.uniform(0.6, 1.3))
    fibre = _stroke(size, path, half_width)
    shadow = _stroke(size, path + half_width + 1.0, half_width, soft=1.0)
    tone = 0.90 if colour.mean() < 0.5 else 0.18
    tint = np.clip(tone + rng.normal(0, 0.08, size=3), 0, 1)
    damaged = _paint(colour, shadow, colour * (0.9 - 0.35 * strength))
    lying = _paint(colour, np.full((size, size), 0.35 + 0.6 * strength), np.broadcast_to(tint, colour.shape))
    return _paint(damaged, fibre, lying), np.maximum(fibre, shadow)


def _wear(rng: np.random.Generator, colour: FloatArray, centre: FloatArray, strength: float) -> Damage:
    """Draw a rubbed area: its texture is smoothed, and a little paler."""
    _, depth, shown = _spot(rng, len(colour), centre, (0.05, 0.12), 0.25, 2.0)
    rubbed = ndimage.gaussian_filter(colour, (2.5, 2.5, 0))
    paler = rubbed * (1.04 + 0.16 * strength) + 0.02
    amount = (0.55 + 0.40 * strength) * smoothstep(depth, -0.2, 0.3)
    return _paint(colour, shown, _paint(colour, amount, paler)), shown


DEFECTS: dict[str, Callable[[np.random.Generator, FloatArray, FloatArray, float], Damage]] = {
    "blob": _blob,
    "crack": _crack,
    "dent": _dent,
    "hole": _hole,
    "scratch": _scratch,
    "stain": _stain,
    "thread": _thread,
    "wear": _wear,
}

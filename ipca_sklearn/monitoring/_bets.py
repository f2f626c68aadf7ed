"""Conformal p-values of scores as they come, and the payoffs of bets on these (docs/method.md, "Drift of a line")."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

import numpy as np

# Bets that p-values get smaller or larger, from an eighth of a standard deviation of theirs to nearly all at one end.
_TILTS = np.array([0.5, 1, 2, 4, 8, 16])
# Bets that p-values move to both ends, or to the middle: 1 + bend (6 p^2 - 6 p + 1), and their extremes.
_BENDS = np.array([1.8, -0.9])
DIRECTIONS = ("lower",) * len(_TILTS) + ("higher",) * len(_TILTS) + ("more varied", "less varied")

_LARGEST_TILTED, _SMALLEST_TILTED = _TILTS / -np.expm1(-_TILTS), _TILTS / np.expm1(_TILTS)
_LARGEST = np.concatenate([_LARGEST_TILTED, _LARGEST_TILTED, [2.8, 1.45]])
_SMALLEST = np.concatenate([_SMALLEST_TILTED, _SMALLEST_TILTED, [0.1, 0.1]])


def online_p_values(ranked: array, scores: np.ndarray, max_scores: int, rng: np.random.RandomState) -> np.ndarray:
    """Return the smoothed conformal p-value of each score among those before it, and add the score to `ranked`."""
    p_values = np.empty(len(scores))
    chances = rng.random_sample((len(scores), 2)).tolist()
    for row, (score, (tie, drop)) in enumerate(zip(scores.tolist(), chances, strict=True)):
        below, up_to = bisect_left(ranked, score), bisect_right(ranked, score)
        p_values[row] = (below + tie * (up_to - below + 1)) / (len(ranked) + 1)
        ranked.insert(up_to, score)
        if len(ranked) > max_scores:
            del ranked[int(drop * len(ranked))]  # any, the newest included: else p-values would not be independent
    return p_values


def log_payoffs(p_values: np.ndarray, defect_rate: float) -> np.ndarray:
    """Return the logarithms (n, K) of what the bets pay: a mean of at most 1, with up to `defect_rate` defects too."""
    p = p_values[:, None]
    scale = np.log(_LARGEST_TILTED)
    bent = np.log1p(_BENDS * (6 * p**2 - 6 * p + 1))
    payoffs = np.concatenate([scale - _TILTS * p, scale - _TILTS * (1 - p), bent], axis=1)
    return payoffs - np.log1p(defect_rate * (_LARGEST - _SMALLEST))

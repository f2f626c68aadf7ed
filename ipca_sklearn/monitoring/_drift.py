"""Drift of a running line: an alarm whose probability of being false is bounded, however long the line runs."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn._utils._estimators import VersionedMixin, calibrated, set_learnt
from ipca_sklearn._utils._sklearn_compat import Interval, validate_parameters
from ipca_sklearn._utils._turns import in_turn
from ipca_sklearn._utils._typing import ArrayLike

# The share of the capital that is not yet bet after t frames is log(_PATIENCE) / log(_PATIENCE + t): it never ends, and
# the price of a change after t frames is about a factor t.
_PATIENCE = 100
# Bets that p-values get smaller or larger, from an eighth of a standard deviation of theirs to nearly all at one end.
_TILTS = np.array([0.5, 1, 2, 4, 8, 16])
# Bets that p-values move to both ends, or to the middle: 1 + bend (6 p^2 - 6 p + 1), and their extremes.
_BENDS = np.array([1.8, -0.9])
_DIRECTIONS = ("lower",) * len(_TILTS) + ("higher",) * len(_TILTS) + ("more varied", "less varied")

_LARGEST_TILTED, _SMALLEST_TILTED = _TILTS / -np.expm1(-_TILTS), _TILTS / np.expm1(_TILTS)
_LARGEST = np.concatenate([_LARGEST_TILTED, _LARGEST_TILTED, [2.8, 1.45]])
_SMALLEST = np.concatenate([_SMALLEST_TILTED, _SMALLEST_TILTED, [0.1, 0.1]])


class DriftMonitor(VersionedMixin, BaseEstimator):
    """Watch the scores of a line, and raise an alarm when they are no longer what they were.

    The monitor bets that the next score is unlike the earlier ones, at odds that are fair as long as nothing changes.
    `statistic_` is its capital, 1 at the beginning. As long as the order of the scores is random, the probability that
    it *ever* reaches 1 / alpha is at most alpha. A share `defect_rate` of defects is no change.

    There are two ways in. `update_scores` ranks each score among the calibration scores and all earlier ones, and the
    guarantee holds. `update` takes p-values; the guarantee holds only if these are independent and uniform. Those of
    `PatchGaussianDetector.p_values` are not: all frames are compared with the same calibration images, and a long
    stream finds out how these differ from others by chance, and calls it drift.

    Parameters
    ----------
    alpha : float in (0, 1), default=0.01
        Largest probability of a false alarm, ever.
    defect_rate : float in [0, 0.5), default=0.01
        Share of defects among the frames that is not called drift. It costs power: changes that affect fewer frames
        cannot be told from defects.
    max_scores : int, default=10000
        Number of scores that a new one is ranked among. From then on a random one is dropped for each new one, so a
        change that takes many more frames than this is not noticed.
    n_history : int, default=1000
        Most rows of `history_`.
    random_state : int, RandomState instance or None, default=None
        Breaks ties of scores, and chooses the scores that are dropped.

    Attributes
    ----------
    alarm_ : bool
        Whether `statistic_` has ever reached 1 / alpha; stays True until `reset` or `fit`.
    alarm_at_ : int or None
        The frame of the alarm, counted from 1.
    statistic_ : float
        The evidence against "nothing has changed" now; infinity above 1e308.
    log_statistic_ : float
        Its natural logarithm.
    changed_since_ : int or None
        The frame at which the change most likely began, as far as there is one; None before the first frame.
    direction_ : {"lower", "higher", "more varied", "less varied"} or None
        What the scores are since then. Without an alarm it means little.
    history_ : ndarray of shape (n_rows, 2)
        Course of the evidence: number of the last frame, and the largest `log_statistic_`, of 1, 2, 4, ... frames.
    n_seen_ : int
        Number of frames.
    n_skipped_ : int
        Number of values that were NaN (images that could not be read): they are no frames.
    calibration_scores_ : ndarray of shape (n_calibration,)
        What `fit` was given.

    See Also
    --------
    ipca_sklearn.inspection.DriftDisplay : The course as a picture.
    PatchGaussianDetector.p_values : Whether one image is anomalous.

    Notes
    -----
    The smoothed conformal p-value of each score among those before it goes into 14 bets, whose capital is a martingale;
    at each frame a part is put on a change that begins there, so a late change is found nearly as fast as an early one.
    Ville's inequality bounds the probability of an alarm. Payoffs are divided by what defects can win: Huber's robust
    test, one frame at a time. "Drift of a line" in docs/method.md has the equations.

    Cost: about 14 logarithms and a binary search per frame, 8 bytes per kept score.

    References
    ----------
    Vovk, Gammerman, Shafer, "Algorithmic learning in a random world", 2nd edition, 2022, part III. Volkhonskiy,
    Burnaev, Nouretdinov, Gammerman, Vovk, "Inductive conformal martingales for change-point detection", COPA 2017.
    Ville, "Étude critique de la notion de collectif", 1939. Huber, "A robust version of the probability ratio test",
    Annals of Mathematical Statistics 36, 1965.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.monitoring import DriftMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor(alpha=0.01, random_state=0).fit(rng.normal(size=200))
    >>> monitor.update_scores(rng.normal(size=1000)).alarm_
    False
    >>> for score in rng.normal(-2, size=30):     # another light: everything scores lower
    ...     _ = monitor.update_scores(score)
    >>> monitor.alarm_, monitor.direction_
    (True, 'lower')
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "defect_rate": [Interval(Real, 0, 0.5, closed="left")],
        "max_scores": [Interval(Integral, 1, None, closed="left")],
        "n_history": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    calibration_scores_: np.ndarray
    history_: np.ndarray
    alarm_at_: int | None
    log_statistic_: float
    n_seen_: int
    n_skipped_: int
    _ranked: np.ndarray  # ascending: what the next score is ranked among
    _rng: np.random.RandomState
    _wealth: np.ndarray  # (K,) log of f_k(p_1) ... f_k(p_t)
    _stakes: np.ndarray  # (K,) log of the sum over s of w_s / K / (f_k(p_1) ... f_k(p_{s-1}))
    _largest_stake: np.ndarray  # (K,) the largest of these terms
    _largest_at: np.ndarray  # (K,) its s

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        defect_rate: float = 0.01,
        max_scores: int = 10_000,
        n_history: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.defect_rate = defect_rate
        self.max_scores = max_scores
        self.n_history = n_history
        self.random_state = random_state

    @classmethod
    def from_detector(cls, detector: BaseEstimator, **parameters: Any) -> DriftMonitor:
        """Return a monitor for the `score_samples` of a detector, which begins with its calibration scores.

        Parameters
        ----------
        detector : PatchGaussianDetector, or a Pipeline that ends in one
            Fitted. The guarantee needs calibration scores that are exchangeable with those of good frames: those of
            `calibrate`, or of a `fit` with `calibration` a number; those of `"prequential"` are only about so.
            ``DriftMonitor()`` needs none and begins with the first frames.
        **parameters
            As for the class.

        Returns
        -------
        DriftMonitor

        Raises
        ------
        TypeError
            The detector has no calibration scores.
        NotFittedError, ValueError
            It is not fitted; as `fit`.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> from ipca_sklearn.monitoring import DriftMonitor
        >>> X = np.random.default_rng(0).normal(size=(500, 6, 8))
        >>> detector = PatchGaussianDetector(2, calibration=0.5).fit(X[:400])
        >>> monitor = DriftMonitor.from_detector(detector, random_state=0)
        >>> monitor.update_scores(detector.score_samples(X[400:])).alarm_
        False
        >>> monitor.update_scores(detector.score_samples(1.2 * X[400:])).alarm_
        True
        """
        return cls(**parameters).fit(calibrated(detector, "calibration scores").calibration_scores_)

    @in_turn
    def fit(self, X: ArrayLike = (), y: Any = None) -> DriftMonitor:
        """Start, or start anew, with the scores of good images.

        Parameters
        ----------
        X : array-like or tensor of shape (n_calibration,), default=()
            Scores of images that the model had not learnt, one number per image of any kind: of `score_samples`, or
            the median of each map. NaN is left out. Without them the first frames of `update_scores` are what later
            ones are compared with.
        y : None
            Ignored.

        Returns
        -------
        DriftMonitor
            This monitor.

        Raises
        ------
        ValueError
            More than one dimension, infinity, more scores than `max_scores`, a parameter out of its range.
        TypeError
            No real numbers.
        """
        validate_parameters(self)
        calibration = _scores(X)
        calibration = calibration[~np.isnan(calibration)]
        if len(calibration) > self.max_scores:
            raise ValueError(
                f"{len(calibration)} calibration scores are more than max_scores={self.max_scores}: raise it"
            )
        n_bets = len(_DIRECTIONS)
        learnt = {
            "calibration_scores_": calibration,
            "history_": np.empty((0, 2)),
            "alarm_at_": None,
            "log_statistic_": 0.0,
            "n_seen_": 0,
            "n_skipped_": 0,
            "_ranked": np.sort(calibration),
            "_rng": check_random_state(self.random_state),
            "_wealth": np.zeros(n_bets),
            "_stakes": np.full(n_bets, -np.inf),
            "_largest_stake": np.full(n_bets, -np.inf),
            "_largest_at": np.zeros(n_bets, np.int64),
        }
        set_learnt(self, learnt)
        return self

    @in_turn
    def reset(self) -> DriftMonitor:
        """Start anew with the same calibration scores, as if there had been no frame: after the line was mended.

        For a change that is to stay, call `fit` with scores of the line as it is now. The probability of a false alarm
        is at most alpha for each start.

        Returns
        -------
        DriftMonitor
            This monitor.
        """
        return self.fit(getattr(self, "calibration_scores_", ()))

    @in_turn
    def update_scores(self, scores: ArrayLike) -> DriftMonitor:
        """Take the scores of the next frames, in their order.

        Parameters
        ----------
        scores : float, array-like or tensor of shape () or (n,)
            Of the same kind as the calibration scores. NaN, an image that could not be read, is no frame.

        Returns
        -------
        DriftMonitor
            This monitor. One call with n scores equals n calls, bit for bit.

        Raises
        ------
        ValueError, TypeError
            As `fit`. Nothing is changed.
        """
        self._prepare()
        new = _scores(scores)
        seen = ~np.isnan(new)
        ranked = array("d", self._ranked.tobytes())  # a copy: an interrupt changes nothing
        p_values = np.full(len(new), np.nan)
        p_values[seen] = online_p_values(ranked, new[seen], self.max_scores, self._rng)
        return self._bet(p_values, np.array(ranked))

    @in_turn
    def update(self, p_values: ArrayLike) -> DriftMonitor:
        """Take the p-values of the next frames, in their order.

        Parameters
        ----------
        p_values : float, array-like or tensor of shape () or (n,)
            In [0, 1]. The guarantee holds if they are independent and uniform while nothing changes; smoothed conformal
            p-values are, if each frame is ranked among all earlier ones. NaN is no frame.

        Returns
        -------
        DriftMonitor
            This monitor. One call with n p-values equals n calls, bit for bit.

        Raises
        ------
        ValueError, TypeError
            A p-value outside of [0, 1], or as `fit`. Nothing is changed.
        """
        self._prepare()
        new = _numbers(p_values, "p_values")
        outside = (new < 0) | (new > 1)
        if outside.any():
            row = outside.argmax()
            raise ValueError(f"p_values[{row}] = {new[row]} is not in [0, 1]; scores are for update_scores")
        return self._bet(new, self._ranked)

    def _prepare(self) -> None:
        validate_parameters(self)
        if not hasattr(self, "n_seen_"):
            self.fit()

    def _bet(self, p_values: np.ndarray, ranked: np.ndarray) -> DriftMonitor:
        """Settle the bets on p-values and store everything at once."""
        n_values, p_values = len(p_values), p_values[~np.isnan(p_values)]
        if not len(p_values):
            self.n_skipped_ += n_values
            return self
        frames = self.n_seen_ + np.arange(1, len(p_values) + 1)
        waiting = np.log(_PATIENCE) / np.log(_PATIENCE + frames)
        staked = waiting * np.log1p(1 / (_PATIENCE + frames - 1)) / np.log(_PATIENCE + frames - 1)
        # Sums of logarithms from the first frame on, one after the other: the same bits, however the frames are split.
        gains = log_payoffs(p_values, self.defect_rate)
        wealth = np.add.accumulate(np.concatenate([self._wealth[None], gains]))
        stakes = np.log(staked / len(_DIRECTIONS))[:, None] - wealth[:-1]
        sums = np.logaddexp.accumulate(np.concatenate([self._stakes[None], stakes]))[1:]
        running = np.logaddexp.reduce(wealth[1:] + sums, axis=1)
        logs = np.logaddexp(running, np.log(waiting))

        alarms = np.flatnonzero(logs >= -np.log(self.alpha))
        alarm_at = int(frames[alarms[0]]) if self.alarm_at_ is None and len(alarms) else self.alarm_at_
        best = stakes.argmax(0)
        largest = stakes[best, np.arange(len(best))]
        grown = largest > self._largest_stake
        learnt = {
            "calibration_scores_": self.calibration_scores_,
            "history_": _thinned(self.history_, np.column_stack([frames, logs]), self.n_history),
            "alarm_at_": alarm_at,
            "log_statistic_": float(logs[-1]),
            "n_seen_": int(frames[-1]),
            "n_skipped_": self.n_skipped_ + n_values - len(p_values),
            "_ranked": ranked,
            "_wealth": wealth[-1],
            "_stakes": sums[-1],
            "_largest_stake": np.where(grown, largest, self._largest_stake),
            "_largest_at": np.where(grown, frames[best], self._largest_at),
        }
        set_learnt(self, learnt)
        return self

    @property
    def alarm_(self) -> bool:
        """Whether the statistic has ever reached 1 / alpha."""
        check_is_fitted(self, "n_seen_")
        return self.alarm_at_ is not None

    @property
    def statistic_(self) -> float:
        """The capital now."""
        check_is_fitted(self, "n_seen_")
        with np.errstate(over="ignore"):
            return float(np.exp(self.log_statistic_))

    @property
    def changed_since_(self) -> int | None:
        """The frame from which the best of the bets has won most."""
        check_is_fitted(self, "n_seen_")
        return int(self._largest_at[self._best_bet()]) if self.n_seen_ else None

    @property
    def direction_(self) -> str | None:
        """How the scores have changed, by the best of the bets."""
        check_is_fitted(self, "n_seen_")
        return _DIRECTIONS[self._best_bet()] if self.n_seen_ else None

    def _best_bet(self) -> int:
        return int(np.argmax(self._wealth + self._largest_stake))


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


def _thinned(history: np.ndarray, rows: np.ndarray, n_most: int) -> np.ndarray:
    """Return the rows (frame, value) with later ones added; the largest values of 2, 4, ... frames if they are many."""
    rows = np.concatenate([history, rows])
    width = 1
    while -(-rows[-1, 0] // width) > n_most:
        width *= 2
    blocks = (rows[:, 0] - 1) // width
    first = np.flatnonzero(np.diff(blocks, prepend=-1))
    last = np.append(first[1:], len(rows)) - 1
    return np.column_stack([rows[last, 0], np.maximum.reduceat(rows[:, 1], first)])


def _scores(values: ArrayLike) -> np.ndarray:
    scores = _numbers(values, "scores")
    if np.isinf(scores).any():
        raise ValueError(f"scores[{np.isinf(scores).argmax()}] is infinite: scores must be finite, or NaN")
    return scores


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    """Return real numbers as a float64 array of one dimension."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.ndim > 1:
        raise ValueError(f"{name} has shape {values.shape}: pass one number per frame")
    if values.size and values.dtype.kind not in "iuf":
        raise TypeError(f"{name} has dtype {values.dtype}: pass real numbers")
    return np.atleast_1d(values).astype(np.float64)

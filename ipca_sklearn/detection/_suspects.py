"""Training images that may not be normal: scored by models of the others, ranked, and left out of a fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from scipy.stats import false_discovery_control, gumbel_r
from torch import Tensor

from ipca_sklearn import linalg
from ipca_sklearn._utils._devices import resolve_device
from ipca_sklearn.decomposition._base import BasePCA, check_memory
from ipca_sklearn.decomposition._batches import StepReader
from ipca_sklearn.decomposition._fitted import Fitted
from ipca_sklearn.detection._calibration import FEW_IMAGES, LearningCurve, Summaries, leave_out
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._copies import learn_images
from ipca_sklearn.detection._learning import choose_cells
from ipca_sklearn.detection._map_ops import MapScorer, ScoreSettings, check_smoothing
from ipca_sklearn.detection._scoring import on_host
from ipca_sklearn.exceptions import AspectRatioWarning, MultiPageImageWarning, SkippedImagesWarning

# Share of false ones among the images that are called suspects.
FALSE_DISCOVERY_RATE = 0.05

# Rounds after which the images that were left out last count.
_MAX_ROUNDS = 10

# Images from which their scores tell how large one may be.
_FEWEST = 8

# Blocks that are left out in turn. Of many images fewer, as each block takes a decomposition of all Gaussians.
_N_BLOCKS, _N_BLOCKS_OF_MANY = 8, 4

# Models that are held at a time while blocks are left out, besides the one that learns.
HELD_MODELS = 3

# Parts of an image that are compared with the same ones of another, and the cosine between descriptors from which
# images are nearly the same. Measured on leather: at least 0.55 for JPEG of quality 80, 0.64 after a shift by 4 of 256
# pixels, 0.47 by 16, and at most 0.33 for images of other places.
_N_PARTS = 16
_NEARLY_SAME = 0.45

# Features of parts from which images have no such cosine by chance.
_FEWEST_SIGNS = 256

_RECORD = np.dtype(
    [
        ("index", np.int64),
        ("score", np.float64),
        ("p_value", np.float64),
        ("q_value", np.float64),
        ("trimmed", bool),
        ("near_duplicate_of", np.int64),
    ]
)


def refuse_trim(trim: Any, what: str) -> None:
    """Raise a ValueError if images would have to be left out by a method that does not see all of them."""
    if trim:
        raise ValueError(
            f"trim={trim!r} leaves out what is far from all other images, and {what} does not see all of them: fit "
            "them in one call, or set trim=0 to go on from what was learnt"
        )


def without_suspects(
    detector: Any, pca: BasePCA, steps: StepReader, shape: dict[str, Any], rows: np.ndarray | None
) -> tuple[StepReader, np.ndarray, Summaries]:
    """Return the images to learn, a record of all (`rows` of X), and the scores that make the thresholds."""
    trim = detector.trim
    if trim and detector.calibration != "prequential":
        raise ValueError(
            f"trim={trim!r} makes the threshold from scores of all images by models of the others, so that no share "
            f"calibration={detector.calibration} is held out: set calibration='prequential' or trim=0"
        )
    fewest = _FEWEST if trim in ("auto", 0) else max(_FEWEST, ceil(1 / trim))
    if steps.n_samples < fewest:
        raise ValueError(
            f"trim={trim!r} takes at least {fewest} images to tell which of them is far from the others, and X has "
            f"{steps.n_samples}: give more"
        )
    check_smoothing(detector.smoothing, steps.patch_shape)
    taken, cells = steps.take(shape.get("feature_indices_")), Cells.of(shape["cells_"])
    with warnings.catch_warnings(), taken.overflow_named():
        for category in (AspectRatioWarning, MultiPageImageWarning, SkippedImagesWarning):  # the fit tells once
            warnings.simplefilter("ignore", category)
        ranking = _Others(detector, pca, taken, cells).rank()
    records = ranking.records(np.arange(steps.n_samples) if rows is None else rows)
    kept = steps.keep(np.flatnonzero(~ranking.trimmed))
    return kept, records, ranking.normal


@dataclass(frozen=True)
class Ranking:
    """Images in the order of X, scored by models of the others that know all images which are not trimmed."""

    summaries: Summaries  # of all images; NaN for those that could not be read
    scores: np.ndarray  # (n,)
    p_values: np.ndarray  # (n,)
    q_values: np.ndarray  # (n,)
    trimmed: np.ndarray  # (n,), the images that no model has learnt
    descriptors: np.ndarray  # (n, d), of `_Describer`

    @classmethod
    def of(
        cls, summaries: Summaries, weight: float, curve: LearningCurve, trimmed: np.ndarray, descriptors: np.ndarray
    ) -> Ranking:
        """Return the images ranked by scores, brought to a model of this weight."""
        scores, p_values, q_values = np.full((3, len(summaries)), np.nan)
        readable = np.isfinite(summaries.scores)
        scores[readable] = summaries.take(readable).corrected_to(weight, curve).scores
        p_values[readable] = tail_probabilities(-scores[readable])
        q_values[readable] = false_discovery_control(p_values[readable])
        return cls(summaries, scores, p_values, q_values, trimmed, descriptors)

    @property
    def normal(self) -> Summaries:
        """Scores of the images that do not stand out, trimmed or not: normal images can be as far."""
        return self.summaries.take(self.q_values > FALSE_DISCOVERY_RATE)

    def farthest(self, trim: float | str) -> np.ndarray:
        """Return which images the next models shall not learn: a share, or those that stand out and never half."""
        n_readable = int(np.isfinite(self.scores).sum())
        if trim == "auto":
            n_trimmed = min(int((self.q_values <= FALSE_DISCOVERY_RATE).sum()), (n_readable - 1) // 2)
        else:
            n_trimmed = int(float(trim) * n_readable)
        farthest = np.zeros(len(self.scores), bool)
        farthest[np.argsort(self.scores, kind="stable")[:n_trimmed]] = True  # NaN comes last
        return farthest

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Return the images that could be read, the most suspicious first; `rows` are their places in X."""
        found = np.empty(len(rows), _RECORD)
        found["index"], found["trimmed"], found["near_duplicate_of"] = rows, self.trimmed, -1
        for name in ("score", "p_value", "q_value"):
            found[name] = getattr(self, f"{name}s")
        readable = np.flatnonzero(np.isfinite(self.scores))
        firsts = _near_duplicates(self.descriptors[readable])
        found["near_duplicate_of"][readable[firsts >= 0]] = rows[readable[firsts[firsts >= 0]]]
        return found[readable[np.argsort(self.scores[readable], kind="stable")]]


@dataclass(frozen=True)
class _Others:
    """Scores images by models of the others."""

    detector: Any  # says how images are scored
    pca: BasePCA  # says how they are learnt
    steps: StepReader
    cells: Cells | None

    def rank(self) -> Ranking:
        """Leave out what is farthest from models without it, until these images stay the same."""
        # First by one feature at a time: bad images that are alike make directions, along which nothing is far.
        check_memory(self.pca, self.steps, n_gaussians=None if self.cells is None else len(self.cells.slots))
        trim, trimmed = self.detector.trim, np.zeros(self.steps.n_samples, bool)
        if not trim:
            return self._ranking(trimmed)
        trimmed = self._ranking(trimmed, without_directions=True).farthest(trim)
        seen: list[np.ndarray] = []
        while True:
            ranking = self._ranking(trimmed)
            farthest = ranking.farthest(trim)
            seen.append(trimmed)
            if len(seen) == _MAX_ROUNDS or any(np.array_equal(farthest, before) for before in seen):
                return ranking
            trimmed = farthest

    def _ranking(self, trimmed: np.ndarray, *, without_directions: bool = False) -> Ranking:
        """Score each image by a model of the images outside of its block that are not trimmed."""

        def learn(fitted: Fitted | None, rows: Tensor) -> Fitted | None:
            kept = rows.numpy()[~trimmed[rows.numpy()]]
            read = partial(steps.keep(kept).read, copies=True)
            return learn_images(self.pca, fitted, self.cells, steps.n_copies, read) if len(kept) else fitted

        steps, settings = self.steps, ScoreSettings.of(self.detector)
        columns, weights, describe = [], [], None
        n_blocks = _N_BLOCKS if steps.n_samples <= FEW_IMAGES else _N_BLOCKS_OF_MANY
        for fitted, rows in leave_out(learn, None, torch.from_numpy(np.arange(steps.n_samples)), n_blocks):
            if fitted is None or fitted.weight < 2:
                raise steps.unreadable()
            device = resolve_device(self.detector.device, fitted.state.mean.device, required=False)
            operator = _by_feature(fitted) if without_directions else fitted.distance_operator(device, settings)
            scorer = settings.scorer(operator, steps, self.cells)
            describe = describe or _Describer(steps, fitted, self.cells)

            def summarized(step: Tensor, scorer: MapScorer = scorer, describe: _Describer = describe) -> Tensor:
                summaries = scorer.summaries(step)
                return torch.cat([summaries, describe(step).to(summaries)], 1)

            block = steps.keep(rows.numpy())
            columns.append(on_host(block.map_steps(summarized, self.pca.step_size)))
            weights.append(np.full(len(rows), fitted.weight))
        values = np.concatenate(columns)
        summaries = Summaries.of(values[:, : -_Describer.size], np.concatenate(weights), steps.n_patches)
        curve = LearningCurve.of_model(settings.distance, fitted)
        weight = fitted.weight / fitted.count * (len(values) - trimmed.sum())
        descriptors = values[:, -_Describer.size :].astype(np.float64)
        return Ranking.of(summaries, weight, curve, trimmed, descriptors)


def _by_feature(fitted: Fitted) -> linalg.DistanceOperator:
    """Return the operator of distances that are scaled by the deviation of each feature."""
    state, dtype = fitted.state, fitted.dtype
    variance = (state.sum_of_squares / state.degrees_of_freedom).to(dtype)
    precision = variance.clamp(
        min=max(float(variance.mean()) * torch.finfo(dtype).eps, torch.finfo(dtype).tiny)
    ).rsqrt()
    return linalg.DistanceOperator(state.mean.to(dtype), torch.zeros_like(precision)[:, None], None, None, precision)


def tail_probabilities(distances: np.ndarray) -> np.ndarray:
    """Return how often a normal image is as far, if most of these are normal.

    The logarithm of the mean of the largest values of a map has about a Gumbel distribution, fitted to the median and
    the lower decile: they hardly change with up to half of the images far away.
    """
    logs = np.log(np.maximum(distances, np.finfo(distances.dtype).tiny))
    median, decile = np.quantile(logs, [0.5, 0.1])
    of_median, of_decile = (-np.log(-np.log(share)) for share in (0.5, 0.1))  # of the standard distribution
    scale = max((median - decile) / (of_median - of_decile), np.finfo(distances.dtype).eps)
    return gumbel_r.sf(of_median + (logs - median) / scale)


class _Describer:
    """Signs of the features in 16 parts of an image, without what all parts share (JPEG changes it), as 256 numbers."""

    size = 256

    def __init__(self, steps: StepReader, fitted: Fitted, cells: Cells | None) -> None:
        labels = choose_cells(_N_PARTS, steps)
        of_patch = np.arange(steps.n_patches) if labels is None else labels[labels >= 0]
        members = np.equal.outer(np.unique(of_patch), of_patch)
        weights = members / members.sum(1, keepdims=True)
        enough = len(weights) * steps.n_features >= _FEWEST_SIGNS
        self._weights = torch.from_numpy(weights * enough)  # with fewer signs all look alike
        means = fitted.state.mean.cpu().double()
        self._means = self._weights @ (means if cells is None else means[cells.place.cpu() // cells.size])
        directions = np.random.default_rng(0).normal(size=(len(weights) * steps.n_features, self.size))
        self._directions = torch.from_numpy(directions)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the descriptors (b, 256) of a step (b, P, m)."""
        parts = self._weights.to(step) @ step - self._means.to(step)
        own = parts - parts.median(1, keepdim=True).values
        return own.sign().flatten(1) @ self._directions.to(step)


def _near_duplicates(descriptors: np.ndarray) -> np.ndarray:
    """Return for each image the number of the first one that has nearly the same descriptors (n, d); -1 is none."""
    centred = descriptors - descriptors.mean(0)
    firsts = np.full(len(centred), -1)
    lengths = np.linalg.norm(centred, axis=1)
    varied = np.flatnonzero(lengths > 1e-6 * np.linalg.norm(descriptors, axis=1))
    if len(varied) < 2:
        return firsts
    from sklearn.neighbors import NearestNeighbors  # a tenth of a second, which scoring does not need

    search = NearestNeighbors(radius=1 - _NEARLY_SAME, metric="cosine").fit(centred[varied])
    for number, found in enumerate(search.radius_neighbors(return_distance=False)):
        if len(found) and found.min() < number:
            firsts[varied[number]] = varied[found.min()]
    return firsts

"""ThresholdDisplay: where the threshold lies among the scores of normal images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._estimators import calibrated
from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._typing import ArrayLike, Images
from ipca_sklearn.inspection._axes import legend_above, set_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(eq=False, repr=False)
class ThresholdDisplay:
    """Histogram of the scores of normal images that the model had not learnt from, and the threshold.

    Scores of other images can be drawn too, coloured by their labels if these are known. Create the display with
    `from_estimator`.

    Parameters
    ----------
    calibration_scores : ndarray of shape (n,)
        Scores of normal images; higher is more normal.
    offset : float
        Images that score lower are anomalous.
    scores : ndarray of shape (n_new,) or None, default=None
        Scores of other images. NaN (an image that could not be read) is left out.
    y : ndarray of shape (n_new,) or None, default=None
        +1 for normal, -1 for anomalous ones.

    Attributes
    ----------
    ax_ : matplotlib Axes
        After `plot`.
    figure_ : matplotlib.figure.Figure
    line_ : matplotlib Line2D
        The threshold.

    See Also
    --------
    ThresholdDisplay.from_estimator : Make the display from a fitted detector.
    """

    calibration_scores: np.ndarray
    offset: float
    _: KW_ONLY
    scores: np.ndarray | None = None
    y: np.ndarray | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        X: Images | ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        bins: int | Sequence[float] = 30,
        ax: Axes | None = None,
    ) -> ThresholdDisplay:
        """Draw the scores of a fitted detector.

        Parameters
        ----------
        estimator : PatchGaussianDetector, or a Pipeline that ends in one
            Fitted.
        X : array-like, PatchFeatures or images, default=None
            Images or features, as `estimator.score_samples` takes them; None draws the normal images of the fit alone.
        y : array-like of shape (n_new,), default=None
            Labels of X: +1 for normal, -1 for anomalous images.
        bins : int or sequence, default=30
            Bins, or their edges; the same for all histograms.
        ax : matplotlib Axes or None
            Where to draw; None makes a figure.

        Returns
        -------
        ThresholdDisplay

        Raises
        ------
        TypeError
            The estimator has no threshold.
        ValueError
            y without X, of another length, or with other labels.
        NotFittedError
            The estimator is not fitted.
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import PatchGaussianDetector
        >>> from ipca_sklearn.inspection import ThresholdDisplay
        >>> rng = np.random.default_rng(0)
        >>> detector = PatchGaussianDetector(2, false_positive_rate=0.1).fit(rng.normal(size=(100, 4, 4, 8)))
        >>> display = ThresholdDisplay.from_estimator(detector, 3 * rng.normal(size=(9, 4, 4, 8)))
        >>> bool(display.line_.get_xdata()[0] == detector.offset_), len(display.scores)
        (True, 9)
        """
        detector = calibrated(estimator, "threshold")
        if y is not None:
            if X is None:
                raise ValueError("there are labels y without the images X; pass both")
            y = check_labels(y)
            check_consistent_length(X, y)
        scores = None if X is None else estimator.score_samples(X)
        scores = scores.cpu().numpy() if isinstance(scores, torch.Tensor) else scores
        display = cls(detector.calibration_scores_, detector.offset_, scores=scores, y=y)
        return display.plot(bins=bins, ax=ax)

    def plot(self, *, bins: int | Sequence[float] = 30, ax: Axes | None = None) -> ThresholdDisplay:
        """Draw the display.

        Parameters
        ----------
        bins : int or sequence, default=30
            Bins, or their edges; the same for all histograms.
        ax : matplotlib Axes or None
            As in `from_estimator`.

        Returns
        -------
        ThresholdDisplay
            This display.
        """
        ax = set_axes(self, ax, (6, 3.8))
        groups = [("normal, not learnt from", self.calibration_scores, "tab:blue")]
        if self.scores is not None and self.y is None:
            groups.append(("new", self.scores, "tab:orange"))
        elif self.scores is not None:
            groups.append(("new, normal", self.scores[self.y == 1], "tab:green"))
            groups.append(("new, anomalous", self.scores[self.y == -1], "tab:red"))
        groups = [(name, values[np.isfinite(values)], colour) for name, values, colour in groups]
        together = np.concatenate([values for _, values, _ in groups])
        edges = np.histogram_bin_edges(together, bins).tolist() if len(together) else [0.0, 1.0]
        for name, values, colour in groups:
            # Shares instead of counts, as the groups have different sizes.
            weights = np.full(len(values), 1 / max(1, len(values)))
            ax.hist(values, edges, weights=weights, label=f"{name} ({len(values)})", color=colour, alpha=0.55)
        self.line_ = ax.axvline(self.offset, color="black", linestyle="--", label=f"threshold {self.offset:.4g}")
        ax.set(xlabel="score (higher is more normal)", ylabel="share of the images")
        legend_above(ax)
        return self

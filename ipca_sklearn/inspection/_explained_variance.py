"""ExplainedVarianceDisplay: how many components each patch needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn._utils._sklearn_compat import check_matplotlib_support

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ExplainedVarianceDisplay:
    """Share of the variance that the components explain, and how many components each patch needs for a given share.

    The map on the left shows the components that each patch needs; patches that need more than were kept are grey. If
    those are most of the patches, `n_components` is too small for the share, and the map shows the share that all
    components explain instead. The curve on the right is the share that the first components explain: median, and the
    middle 80 % of the patches. Patches that share a Gaussian show the same. Create the display with `from_estimator`.

    Parameters
    ----------
    explained_variance_ratio : ndarray of shape (H, W, k), (P, k) or (k,)
        Share of the total variance of each patch along each component; NaN for patches that are not inspected.
    share : float in (0, 1], default=0.9
        Share of the variance that the map is for.

    Attributes
    ----------
    n_components_needed : ndarray of int, shape (H, W), (P,) or ()
        Components needed to reach `share`; k + 1 if k are too few, 0 if nothing varies or the patch is not inspected.
    figure_ : matplotlib.figure.Figure
        After `plot`.
    axes_ : ndarray of Axes, shape (2,) or, without a map, (1,)
        The map (for patches in rows and columns), the curve.

    See Also
    --------
    ExplainedVarianceDisplay.from_estimator : Make the display from what was learnt.
    """

    def __init__(self, explained_variance_ratio: np.ndarray, *, share: float = 0.9) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share} is not in (0, 1]")
        self.explained_variance_ratio = explained_variance_ratio
        self.share = share
        cumulated = np.cumsum(explained_variance_ratio, axis=-1)
        # In float32 the ratios sum to 1 only up to rounding.
        too_few = (cumulated < share - 1e-6).sum(-1)
        self.n_components_needed = np.where(cumulated[..., -1] > 0, too_few + 1, 0)

    @classmethod
    def from_estimator(
        cls, estimator: BaseEstimator, *, share: float = 0.9, axes: Sequence[Axes] | Axes | None = None
    ) -> ExplainedVarianceDisplay:
        """Draw what a fitted estimator explains.

        Parameters
        ----------
        estimator : BatchedIncrementalPCA, PatchGaussianDetector or a Pipeline that ends in one
            Fitted.
        share : float in (0, 1], default=0.9
            Share of the variance that the map is for.
        axes : array of 2 matplotlib Axes, or None
            Where to draw; None makes a figure. Without a map, one Axes is enough.

        Returns
        -------
        ExplainedVarianceDisplay

        Raises
        ------
        TypeError
            The estimator has learnt no components.
        NotFittedError
            It is not fitted.
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn import BatchedIncrementalPCA
        >>> from ipca_sklearn.inspection import ExplainedVarianceDisplay
        >>> X = np.random.default_rng(0).normal(size=(200, 3, 4, 6)) * [9, 1, 1, 1, 1, 1]
        >>> pca = BatchedIncrementalPCA(n_components=3).fit(X)
        >>> display = ExplainedVarianceDisplay.from_estimator(pca, share=0.9)
        >>> display.n_components_needed.tolist()
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
        """
        learner = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        check_is_fitted(learner)
        pca = getattr(learner, "pca_", learner)
        if not hasattr(pca, "explained_variance_ratio_") or not hasattr(pca, "patch_shape_"):
            raise TypeError(
                f"{type(learner).__name__} has learnt no components; pass a BatchedIncrementalPCA, a "
                "PatchGaussianDetector, or a pipeline that ends in one"
            )
        ratio = pca.explained_variance_ratio_
        ratio = ratio.cpu().numpy() if isinstance(ratio, torch.Tensor) else np.asarray(ratio)
        return cls(_on_grid(ratio, learner), share=share).plot(axes=axes)

    def plot(self, *, axes: Sequence[Axes] | Axes | None = None) -> ExplainedVarianceDisplay:
        """Draw the display.

        Parameters
        ----------
        axes : array of 2 matplotlib Axes, or None
            As in `from_estimator`.

        Returns
        -------
        ExplainedVarianceDisplay
            This display.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        has_map = self.n_components_needed.ndim == 2
        if axes is None:
            _, axes = plt.subplots(1, 1 + has_map, figsize=(9 if has_map else 4.5, 3.8), layout="constrained")
        self.axes_ = np.atleast_1d(np.asarray(axes))
        self.figure_ = self.axes_[0].figure
        if has_map:
            self._draw_map(self.axes_[0])
        self._draw_curve(self.axes_[-1])
        return self

    def _draw_map(self, axis: Axes) -> None:
        import matplotlib as mpl
        from matplotlib.ticker import MaxNLocator

        k = self.explained_variance_ratio.shape[-1]
        axis.set(xticks=[], yticks=[])
        outside = np.isnan(self.explained_variance_ratio[..., 0])
        lacking = self.n_components_needed[~outside] > k
        if lacking.mean() > 0.5:
            image = axis.imshow(np.ma.array(self.explained_variance_ratio.sum(-1), mask=outside), cmap="viridis")
            axis.figure.colorbar(image, ax=axis, label="share of the variance")
            who = "no patch reaches" if lacking.all() else f"{1 - lacking.mean():.0%} of the patches reach"
            axis.set_title(f"explained by {k} components:\n{who} {self.share:.0%}")
            return
        colours = mpl.colormaps["viridis"].with_extremes(over="0.6")
        image = axis.imshow(np.ma.array(self.n_components_needed, mask=outside), cmap=colours, vmin=0, vmax=k)
        ticks = MaxNLocator(integer=True)
        axis.figure.colorbar(image, ax=axis, extend="max", ticks=ticks, label=f"components (grey: more than {k})")
        axis.set_title(f"needed for {self.share:.0%} of the variance")

    def _draw_curve(self, axis: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        k = self.explained_variance_ratio.shape[-1]
        ratio = self.explained_variance_ratio.reshape(-1, k)
        cumulated = np.cumsum(ratio[~np.isnan(ratio[:, 0])], axis=1)
        numbers = np.arange(1, k + 1)
        low, median, high = np.quantile(cumulated, [0.1, 0.5, 0.9], axis=0)
        if len(cumulated) > 1:
            axis.fill_between(numbers, low, high, alpha=0.3, label="middle 80 % of the patches")
        axis.plot(numbers, median, marker=".", label="median patch" if len(cumulated) > 1 else None)
        axis.axhline(self.share, linestyle=":", color="0.5")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="components", ylabel="share of the variance", ylim=(0, 1.02), title="explained variance")
        if len(cumulated) > 1:
            axis.legend()


def _on_grid(ratio: np.ndarray, learner: BaseEstimator) -> np.ndarray:
    """Return values (G, k) of Gaussians, or (k,) of one, at the patches that they are of; NaN elsewhere."""
    cells, region = getattr(learner, "cells_", None), learner.region_
    if cells is not None:
        return np.where(cells[..., None] >= 0, ratio[cells], np.nan)
    if region is None:
        return ratio.reshape(*learner.patch_shape_, ratio.shape[-1])
    grid = np.full((*region.shape, ratio.shape[-1]), np.nan, ratio.dtype)
    grid[region] = ratio
    return grid

"""PimoDisplay: how much of each defect is found at false positive rates that a user can bear."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.inspection._axes import set_axes
from ipca_sklearn.metrics import PimoCurves, pimo_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(eq=False, repr=False)
class PimoDisplay:
    """Per-image overlap curves: a thin line for each image with a defect, and a thick one for their mean.

    The false positive rate is that of the pixels of normal images, on a logarithmic axis. AUPIMO is the area of the
    grey stripe that lies under a curve. Create the display with `from_predictions`.

    Parameters
    ----------
    curves : PimoCurves
        What :func:`ipca_sklearn.metrics.pimo_curves` returns.
    groups : ndarray of str, shape (n_images,), or None, default=None
        Kinds of the images, one colour and one mean each. Those of normal images are ignored.

    Attributes
    ----------
    ax_ : matplotlib Axes
        After `plot`.
    figure_ : matplotlib.figure.Figure
    lines_ : dict of str to matplotlib Line2D
        The mean of each group.

    See Also
    --------
    ipca_sklearn.metrics.aupimo_score : The mean area.
    """

    curves: PimoCurves
    _: KW_ONLY
    groups: np.ndarray | None = None

    @classmethod
    def from_predictions(
        cls,
        masks: ArrayLike,
        maps: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        ax: Axes | None = None,
        **options: Any,
    ) -> PimoDisplay:
        """Draw the curves of masks and maps.

        Parameters
        ----------
        masks, maps : array-like
            As :func:`ipca_sklearn.metrics.aupimo_score` takes them.
        groups : array-like of str, shape (n_images,), default=None
            Kinds of the images; None is one.
        ax : matplotlib Axes or None
            Where to draw; None makes a figure.
        **options
            Of :func:`ipca_sklearn.metrics.pimo_curves`: `region`, `fpr_bounds`, `n_thresholds`.

        Returns
        -------
        PimoDisplay

        Raises
        ------
        ValueError, TypeError
            As :func:`ipca_sklearn.metrics.pimo_curves`, and if `groups` has another length.
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn.inspection import PimoDisplay
        >>> rng = np.random.default_rng(0)
        >>> masks = np.zeros((4, 100, 100), dtype=bool)
        >>> masks[2:, :10, :10] = True
        >>> maps = rng.normal(size=masks.shape) + 3 * masks
        >>> display = PimoDisplay.from_predictions(masks, maps, fpr_bounds=(1e-3, 1e-2))
        >>> display.lines_["all"].get_label()
        'all (2): AUPIMO 0.61'
        """
        check_consistent_length(masks, maps, groups)
        curves = pimo_curves(masks, maps, **options)
        return cls(curves, groups=None if groups is None else np.asarray(groups)).plot(ax=ax)

    def plot(self, *, ax: Axes | None = None) -> PimoDisplay:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes or None
            As in `from_predictions`.

        Returns
        -------
        PimoDisplay
            This display.
        """
        ax = set_axes(self, ax, (6, 4.5))
        curves = self.curves
        anomalous = np.isfinite(curves.aupimo)
        groups = np.full(len(anomalous), "all") if self.groups is None else self.groups
        ax.axvspan(*curves.fpr_bounds, color="0.9", zorder=0)
        self.lines_ = {}
        for number, name in enumerate(sorted(set(groups[anomalous].tolist()))):
            chosen = anomalous & (groups == name)
            # Images overlap: the more there are, the fainter each is.
            style: dict[str, Any] = {"color": f"C{number % 10}", "drawstyle": "steps-post"}
            alpha = max(0.06, min(0.5, 4 / chosen.sum()))
            ax.plot(curves.shared_fpr, curves.tpr[chosen].T, linewidth=0.7, alpha=alpha, **style)
            label = f"{name} ({chosen.sum()}): AUPIMO {curves.aupimo[chosen].mean():.2f}"
            mean = curves.tpr[chosen].mean(axis=0)
            (self.lines_[str(name)],) = ax.plot(curves.shared_fpr, mean, linewidth=2.2, label=label, **style)
        ax.set(
            xscale="log",
            xlim=(curves.shared_fpr[0], 1),
            ylim=(-0.02, 1.02),
            xlabel="share of the pixels of normal images called anomalous",
            ylabel="share of the defect's pixels found",
        )
        ax.legend(loc="lower right")
        return self

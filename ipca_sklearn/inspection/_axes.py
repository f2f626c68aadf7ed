"""The axes of displays that are one drawing, and their legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipca_sklearn._utils._sklearn_compat import check_matplotlib_support

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def set_axes(display: Any, ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Set `ax_` and `figure_` of a display, to those of a new figure of this size if `ax` is None; return the axes."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    display.ax_, display.figure_ = ax, ax.figure
    return ax


def legend_above(ax: Axes) -> None:
    """Put the legend above the axes, in two columns: inside there is no place that is free for all data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)

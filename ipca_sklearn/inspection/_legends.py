"""Legends that cover nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def legend_above(ax: Axes) -> None:
    """Put the legend above the axes, in two columns: inside there is no place that is free for all data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)

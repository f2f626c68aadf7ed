"""DriftDisplay: the course of the evidence that a line drifts."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn.inspection._axes import legend_above, set_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Decades above the alarm that are drawn; evidence grows without limit after a change.
_DECADES_ABOVE = 3
# What is beyond runs along the edge, this far inside of it.
_INSET = 0.05


@dataclass(eq=False, repr=False)
class DriftDisplay:
    """Evidence that a line drifts, frame by frame, and the limit at which there is an alarm.

    The evidence is drawn as powers of 10, from a tenth to a thousand times the limit; what is beyond runs along the
    edge, and the legend has the largest power. Create the display with `from_monitor`.

    Parameters
    ----------
    frames : ndarray of shape (n,)
        Numbers of frames, counted from 1.
    log_statistic : ndarray of shape (n,)
        Natural logarithm of the evidence.
    alpha : float
        The alarm is at 1 / alpha.
    alarm_at : int or None, default=None
        The frame of the alarm.
    changed_since : int or None, default=None
        The frame at which the change most likely began; drawn if there is an alarm.

    Attributes
    ----------
    ax_ : matplotlib Axes
        After `plot`.
    figure_ : matplotlib.figure.Figure
    line_ : matplotlib Line2D
        The course, as powers of 10, within the axes.
    limit_ : matplotlib Line2D
        The limit.

    See Also
    --------
    DriftDisplay.from_monitor : Make the display from a monitor.
    ipca_sklearn.monitoring.DriftMonitor : What is drawn.
    """

    frames: np.ndarray
    log_statistic: np.ndarray
    _: KW_ONLY
    alpha: float
    alarm_at: int | None = None
    changed_since: int | None = None

    @classmethod
    def from_monitor(cls, monitor: Any, *, ax: Axes | None = None) -> DriftDisplay:
        """Draw what a monitor has seen.

        Parameters
        ----------
        monitor : ipca_sklearn.monitoring.DriftMonitor
            Started. Of a long course it knows the largest evidence of every 2, 4, ... frames.
        ax : matplotlib Axes or None
            Where to draw; None makes a figure.

        Returns
        -------
        DriftDisplay

        Raises
        ------
        TypeError
            It is no monitor.
        NotFittedError
            The monitor has not been started.
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import numpy as np
        >>> from ipca_sklearn.inspection import DriftDisplay
        >>> from ipca_sklearn.monitoring import DriftMonitor
        >>> rng = np.random.default_rng(0)
        >>> monitor = DriftMonitor(random_state=0).fit(rng.normal(size=200))
        >>> _ = monitor.update_scores(rng.normal(size=500)).update_scores(rng.normal(-1, size=100))
        >>> display = DriftDisplay.from_monitor(monitor)
        >>> display.alarm_at == monitor.alarm_at_, len(display.frames)
        (True, 600)
        """
        if not hasattr(type(monitor), "changed_since_"):
            raise TypeError(f"{type(monitor).__name__} is no monitor; pass a DriftMonitor")
        check_is_fitted(monitor, "n_seen_")
        frames, log_statistic = monitor.history_.T
        changed = {"alarm_at": monitor.alarm_at_, "changed_since": monitor.changed_since_}
        return cls(frames, log_statistic, alpha=monitor.alpha, **changed).plot(ax=ax)

    def plot(self, *, ax: Axes | None = None) -> DriftDisplay:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes or None
            As in `from_monitor`.

        Returns
        -------
        DriftDisplay
            This display.
        """
        ax = set_axes(self, ax, (7, 3.6))
        from matplotlib.ticker import MaxNLocator

        limit = -np.log10(self.alpha)
        bottom, top = -1, limit + _DECADES_ABOVE
        last = max(2, *(int(frame) for frame in (*self.frames[-1:], self.alarm_at or 0, self.changed_since or 0)))
        powers = self.log_statistic / np.log(10)
        largest = f" (up to $10^{{{powers.max():.0f}}}$)" if len(powers) and powers.max() > top else ""
        shown = np.clip(powers, bottom + _INSET, top - _INSET)
        (self.line_,) = ax.plot(self.frames, shown, color="tab:blue", label=f"evidence{largest}")
        self.limit_ = ax.axhline(limit, color="black", linestyle="--", label=f"alarm at {1 / self.alpha:,.6g}")
        if self.alarm_at is not None:
            ax.axvline(self.alarm_at, color="tab:red", label=f"alarm: frame {self.alarm_at:,}")
            if self.changed_since is not None:
                label = f"changed since about frame {self.changed_since:,}"
                ax.axvspan(self.changed_since, last, color="tab:red", alpha=0.15, linewidth=0, label=label)
        ax.set(xlabel="frame", ylabel="evidence of a change", ylim=(bottom, top), xlim=(1, last))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:.0f}}}$")
        legend_above(ax)
        return self

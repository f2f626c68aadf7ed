"""Progress on the standard error: a bar in a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 10


class Progress:
    """Images done, images per second and the time left, as a context manager.

    Parameters
    ----------
    total : int
        Number of images.
    plain : bool, default=False
        Print lines even in a terminal, for commands that print their results there meanwhile.
    """

    def __init__(self, total: int, *, plain: bool = False) -> None:
        self._plain = plain or not sys.stderr.isatty()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
            redirect_stdout=False,  # tables are printed there
            speed_estimate_period=600,  # checkpoints may be minutes apart
            get_time=time.monotonic,
        )
        self._bar.add_task("", total=total)
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._plain:
            self._bar.stop()

    def show(self, done: int) -> None:
        """Show how many images are done."""
        (task,) = self._bar.tasks
        self._bar.update(task.id, completed=done)
        now = time.monotonic()
        if self._plain and (task.finished or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            seconds = task.time_remaining
            left = f", {timedelta(seconds=seconds)} left" if seconds else ""
            typer.echo(f"{done}/{task.total:.0f} images, {_rate(task)}{left}", err=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task))


def _rate(task: Task) -> str:
    # The speed of rich needs two updates; until then it is the one since the start.
    speed = task.speed or task.completed / max(task.elapsed or 0, 1e-9)
    return f"{speed:.1f} images/s"

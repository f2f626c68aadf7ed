"""What commands print: lines that no file name can break, warnings, the table of images, and the progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._tables import Column, RowFormat, columns_of

SECONDS_BETWEEN_LINES = 10
# One sign for all outputs: that of `score_samples`.
WORSE = "the lower a score, the worse"


def one_line(text: object) -> str:
    """Return a text as one printable line."""
    return printable(" ".join(str(text).split()))


def warn(text: object) -> None:
    """Print a warning as one line on the standard error."""
    typer.echo(f"warning: {one_line(text)}", err=True)


def threshold_in_words(offset: float) -> str:
    """Return what the threshold of a detector means."""
    return f"images that score below {offset:.4g} are anomalous: {WORSE}"


class Table:
    """Rows, each written at once to a file, or as CSV to the standard output for the path "-"; `stack` closes it.

    In a terminal, everything that could control it is escaped.
    """

    def __init__(self, path: Path, stack: ExitStack, columns: Sequence[Column] = columns_of("predict")) -> None:
        self._path, self._format = path, RowFormat(path.suffix, columns)
        if str(path) == "-":
            self._stream: IO[str] = sys.stdout
            if hasattr(sys.stdout, "reconfigure"):  # else it has been replaced, as by a test
                sys.stdout.reconfigure(errors="surrogateescape")  # names that are not UTF-8 are written as they are
        else:
            stack.enter_context(naming(path))  # also of what is still in the buffer when the file is closed
            opened = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            self._stream = stack.enter_context(opened)
        self._shown = printable if self._stream.isatty() else str
        self._stream.write(self._format.header)

    def write(self, row: Mapping[str, Any]) -> None:
        with naming(self._path):
            self._stream.write(self._format.line(row, self._shown))


class Progress:
    """Images done, images per second and the time left: a bar in a terminal, else a line every ten seconds.

    With `plain` it prints lines even in a terminal, for commands that print their results there meanwhile.
    """

    def __init__(self, total: int, *, plain: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._plain = plain or not sys.stderr.isatty()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
            redirect_stdout=False,  # tables are printed there
            speed_estimate_period=600,  # checkpoints may be minutes apart
            get_time=time.monotonic,
        )
        self._bar.add_task("", total=total, rate="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._bar.stop()

    def show(self, done: int) -> None:
        (task,) = self._bar.tasks
        self._bar.update(task.id, completed=done)
        # The speed of rich needs two updates; until then it is the one since the start.
        speed = task.speed or task.completed / max(task.elapsed or 0, 1e-9)
        task.fields["rate"] = rate = f"{speed:.1f} images/s"
        now = time.monotonic()
        if self._plain and (task.finished or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            seconds = task.time_remaining
            left = f", {timedelta(seconds=seconds)} left" if seconds else ""
            typer.echo(f"{done}/{task.total:.0f} images, {rate}{left}", err=True)

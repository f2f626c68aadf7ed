"""The group of commands: they are imported when they run, and an error is one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ipca_sklearn.cli._names import OptionNames
from ipca_sklearn.cli._text import one_line, warn

# Exit codes; 2 is a wrong command line (click's), and 141 that of a Unix tool whose reader has gone.
ERROR = 1
READER_GONE = 141
INTERRUPTED = 130

# Room and summary of each command. The rooms import torch, which takes seconds: `--help` lists the summaries alone.
COMMANDS = {
    "demo": ("_demo", "Learn generated textures, score others, and draw the heat maps. Needs no data or connection."),
    "fit": ("_learn", "Learn a model from normal images, in one pass."),
    "update": ("_learn", "Learn more normal images with a model, as if they had come at the end of its training."),
    "predict": ("_predict", "Score images, and write tables, defects, heat maps, masks and a report."),
    "watch": ("_watch", "Score images as they appear in a folder, and append a row for each to a table."),
    "evaluate": ("_evaluate", "Test a model on labelled images in MVTec AD's layout."),
    "compare": ("_compare", "Test two models on the same images: the differences, and how sure they are."),
    "threshold": ("_threshold", "Choose the threshold of a model with images that it has not learnt."),
    "info": ("_info", "Print the card of a model: its training, settings, thresholds, versions, size and licence."),
    "export": (
        "_export",
        "Write a model as an ONNX file or for OpenVINO: images (n, 3, H, W) to scores and maps.",
    ),
    "bench": ("_bench", "Measure a model on this machine: images per second, a frame, size and memory."),
}


class Commands(TyperGroup):
    """Commands that are imported when they run. An error is one line and exit code 1, or a traceback with --debug."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._in_words_of_options: Callable[[object], str] = str  # until the command is known
        self.commands.update(
            {name: TyperCommand(name, help=summary, rich_markup_mode=None) for name, (_, summary) in COMMANDS.items()}
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command to be run, the command and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if rest[-1:] == ["--backbone"]:  # Typer has no options whose value may be left out
            rest = [*rest, "list"]
        if name in COMMANDS:
            command = load_command(name)
            self._in_words_of_options = OptionNames(command.params)
        return name, command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the summaries of the commands, which click would cut."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, (self.commands[name].help or "").partition("\n")[0]) for name in self.commands])

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line. A reader that stops reading, as `head` does, ends it without a message."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()  # else a short output fails when Python ends, where nobody can catch it
        except (BrokenPipeError, SystemExit) as end:
            if not _is_or_follows(end, BrokenPipeError):  # Typer and rich turn it into exit code 1
                raise
            # Python flushes once more at the end, which must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(READER_GONE)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        debug = ctx.params.get("debug")
        try:
            with warnings.catch_warnings(), ExitStack() as at_the_end:
                if not debug:
                    warnings.showwarning = shower = _Shower(lambda text: self._in_words_of_options(text))
                    at_the_end.callback(shower.show_totals)
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            if debug:
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
            if debug or isinstance(error, (typer.Exit, typer.Abort)):
                raise
            message = one_line(self._in_words_of_options(error))
            typer.echo(f"error: {message or type(error).__name__}", err=True)
            raise typer.Exit(ERROR) from error


def load_command(name: str) -> Any:
    """Import the room of a command and return the command."""
    room, _ = COMMANDS[name]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(getattr(import_module(f"ipca_sklearn.cli.{room}"), name))
    return typer.main.get_command(app)


def _is_or_follows(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether an error is of a kind, or was raised while one of that kind was handled."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


class _Shower:
    """Prints warnings as lines: of those that come again with each step, the first and a total."""

    # By name, because the classes are in a room that imports scikit-learn.
    _REPEATED = ("AspectRatioWarning", "MultiPageImageWarning")

    def __init__(self, in_words_of_options: Callable[[object], str]) -> None:
        self._in_words_of_options = in_words_of_options
        self._counts: dict[str, tuple[int, int]] = {}  # of each remark: how often it came, and of how many images

    def __call__(self, message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__name__ not in self._REPEATED:
            warn(self._in_words_of_options(message))
            return
        n_times, n_images = self._counts.get(message.remark, (0, 0))
        if not n_times:
            warn(message)
        self._counts[message.remark] = n_times + 1, n_images + message.n_images

    def show_totals(self) -> None:
        for remark, (n_times, n_images) in self._counts.items():
            if n_times > 1:
                warn(f"{n_images} images in all {remark}")

"""The group of commands: each is imported when it is named, and errors are one line in the words of the options."""

from __future__ import annotations

import gc
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, wraps
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ipca_sklearn._utils._tables import columns_in_words
from ipca_sklearn.cli._terminal import one_line, warn

# Exit codes; 2 is a wrong command line (click's), and 141 that of a Unix tool whose reader has gone.
ERROR = 1
INTERRUPTED = 130
READER_GONE = 141

# Module of each command. The modules declare options; torch, which takes seconds, is imported by the functions that
# compute.
COMMANDS = {
    "demo": "_info",
    "fit": "_fit",
    "update": "_fit",
    "predict": "_predict",
    "watch": "_watch",
    "evaluate": "_evaluate",
    "compare": "_evaluate",
    "threshold": "_info",
    "info": "_info",
    "export": "_export",
    "bench": "_export",
}

# What options are called in Python, where it is another name.
_IN_PYTHON = {
    "k": "n_components",
    "gaussians": "n_gaussians",
    "step": "step_size",
    "jobs": "n_jobs",
    "seed": "random_state",
}
# Columns that not all models have.
_ADDED = {"products": " of a model of several products", "align": " of a model with --align"}


class Commands(TyperGroup):
    """Commands, imported when they are named. An error is one line and exit code 1, or a traceback with --debug."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._translate: Callable[[object], str] = one_line  # until the command is known
        self.commands.update({name: TyperCommand(name) for name in COMMANDS})  # until they are loaded

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command to be run, the command and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if rest[-1:] == ["--backbone"]:  # Typer has no options whose value may be left out
            rest = [*rest, "list"]
        if name in COMMANDS:
            command = load_command(name)
            # Later commands tell what `fit` should have been asked for. Made once, when there is a first message.
            names = cache(lambda: to_options([*load_command("fit").params, *command.params]))
            self._translate = lambda text: names()(text)
        return name, command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the summaries of the commands, which click would cut."""
        texts = {name: command.help or inspect.getdoc(_function(name)) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, (text or "").partition("\n")[0]) for name, text in texts.items()])

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
                    warnings.showwarning = printer = _WarningPrinter(lambda text: self._translate(text))
                    at_the_end.callback(printer.print_totals)
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
            message = self._translate(error)
            typer.echo(f"error: {message or type(error).__name__}", err=True)
            raise typer.Exit(ERROR) from error


def _function(name: str) -> Callable[..., None]:
    """Return the function of a command; its docstring is the help."""
    return getattr(import_module(f"ipca_sklearn.cli.{COMMANDS[name]}"), name)


def load_command(name: str) -> Any:
    """Import the module of a command and return the command."""
    function = _function(name)
    text = inspect.getdoc(function) or ""
    for table, of in {name: "", **(_ADDED if name == "predict" else {})}.items():
        columns = columns_in_words(table)
        text += f"\n\nColumns{of} - {columns}." if columns else ""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, help=text)(_after_imports(function))
    return typer.main.get_command(app)


def _after_imports(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that imports what most of them need, and then starts the garbage collection that `main` stopped.

    What imports make stays until the end, and each full collection searches all of it: a sixth of the time of a
    `predict` of one image. Frozen, it is left out from then on.
    """

    @wraps(function)
    def run(**options: Any) -> None:
        if not gc.isenabled():
            import_module("ipca_sklearn.cli._training_images")
            gc.freeze()
            gc.enable()
        function(**options)

    return run


def _is_or_follows(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether an error is of a kind, or was raised while one of that kind was handled."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


def to_options(parameters: Iterable[Any]) -> Callable[[object], str]:
    """Return what puts options in the place of parameters in a message: `step_size=0` is `--step 0`."""
    options: dict[str, str] = {}
    for parameter in parameters:
        long = [name for name in parameter.opts if name.startswith("--")]
        if long:  # else it is an argument
            options[_IN_PYTHON.get(parameter.name, parameter.name)] = long[0]
    names = "|".join(options)
    # Names alone are words of the language too, unless they have an underscore; and no path is changed.
    long_names = "|".join(name for name in options if "_" in name)
    pattern = re.compile(
        rf"(?<![\w./\\-])(?:features__|detector__)?(?:({names})=([^\s,;.)]?)|({long_names})(?![\w/]|\.\w))"
    )

    def option(match: re.Match[str]) -> str:
        given, value, alone = match.groups()
        return options[given or alone] + (f" {value}" if value else "")

    return lambda text: pattern.sub(option, one_line(text))


class _WarningPrinter:
    """Prints warnings as lines: of those that come again with each step, the first and a total."""

    # By name, because the classes are in a module that imports scikit-learn.
    _REPEATED = ("AspectRatioWarning", "MultiPageImageWarning")

    def __init__(self, translate: Callable[[object], str]) -> None:
        self._translate = translate
        self._counts: dict[str, tuple[int, int]] = {}  # of each remark: how often it came, and of how many images

    def __call__(self, message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__name__ not in self._REPEATED:
            warn(self._translate(message))
            return
        n_times, n_images = self._counts.get(message.remark, (0, 0))
        if not n_times:
            warn(self._translate(message))
        self._counts[message.remark] = n_times + 1, n_images + message.n_images

    def print_totals(self) -> None:
        for remark, (n_times, n_images) in self._counts.items():
            if n_times > 1:
                warn(f"{n_images} images in all {remark}")

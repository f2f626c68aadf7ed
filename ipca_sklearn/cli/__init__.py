"""The command line: parse, call the public API, print. Exit codes: 0, 1 error, 2 usage, 3 images cannot be read."""

from __future__ import annotations

from typing import Annotated

import typer

from ipca_sklearn import __version__
from ipca_sklearn.cli._parser import Commands

# Plain help: the tables of rich cut the names of options in narrow terminals.
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def commands(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learn from images of normal products or surfaces, and find defects in other images.

    Exit codes: 0 done, 1 error, 2 wrong command line, 3 done but some images could not be read, 4 stopped by a drift
    alarm, 130 interrupted, 141 the reader of the output has gone, 143 terminated.
    """


@app.command("version")
def print_version() -> None:
    """Print the version."""
    typer.echo(__version__)

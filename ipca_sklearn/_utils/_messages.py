"""Parts of messages: names of images, long lists, and suggestions for a name that is not known."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from ipca_sklearn._utils._files import printable


def name_of(image: object, otherwise: str) -> str:
    """Return the path of an image; what has none is called `otherwise`."""
    return printable(image) if isinstance(image, (str, os.PathLike)) else otherwise


def first_few(texts: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """Return the first texts of a list, and how many more there are."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join([*texts[:most], *more])


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the known names that are most like an unknown one, for the end of a message."""
    near = difflib.get_close_matches(name, known)
    return f" (nearest: {', '.join(near)})" if near else ""

"""Values in tables: CSV cells that no spreadsheet runs, and strict JSON."""

from __future__ import annotations

import json
import math
from typing import Any

# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def as_cell(value: Any) -> Any:
    """Return a value of a CSV table: text that a spreadsheet would run as a formula gets a ``'`` before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def of_cell(text: str) -> str:
    """Return the text that `as_cell` has written as this cell."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text


def to_json(value: Any) -> str:
    """Return a value as strict JSON: NaN and infinities, for which it has no numbers, are null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

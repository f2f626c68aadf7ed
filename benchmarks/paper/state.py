"""A file of finished cells, so that a benchmark of hours can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, float]


class State:
    """Finished cells, one line of JSON each; an interruption loses only the cell that was running."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                stored = json.loads(line)
            except json.JSONDecodeError:  # an interruption cut this line off
                continue
            self._results[json.dumps(stored["key"], sort_keys=True)] = stored["result"]
        self._lead = "" if text.endswith("\n") or not text else "\n"

    def get(self, key: dict[str, Any]) -> Result | None:
        """Return the result of a cell, or None if it is not finished."""
        return self._results.get(json.dumps(key, sort_keys=True))

    def add(self, key: dict[str, Any], result: Result) -> None:
        """Keep the result of a cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(self._lead + json.dumps({"key": key, "result": result}) + "\n")
        self._lead = ""
        self._results[json.dumps(key, sort_keys=True)] = result

"""What lets a benchmark of hours be interrupted: a file of finished cells, and a line with the time left."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

Result = dict[str, float]


class State:
    """Finished cells, one line of JSON each, so that an interruption loses the cell in work only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                stored = json.loads(line)
            except json.JSONDecodeError:  # the line that an interruption cut off
                continue
            self._results[json.dumps(stored["key"], sort_keys=True)] = stored["result"]
        self._lead = "" if text.endswith("\n") or not text else "\n"

    def get(self, key: dict[str, Any]) -> Result | None:
        """Return the result of a cell, or None where it is not finished."""
        return self._results.get(json.dumps(key, sort_keys=True))

    def add(self, key: dict[str, Any], result: Result) -> None:
        """Keep the result of a cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(self._lead + json.dumps({"key": key, "result": result}) + "\n")
        self._lead = ""
        self._results[json.dumps(key, sort_keys=True)] = result


class Progress:
    """A line on stderr: a bar, cells done of all, the time left, the cell in work."""

    def __init__(self, n_cells: int) -> None:
        self._n, self._done, self._start = n_cells, 0, time.monotonic()

    def show(self, cell: str) -> None:
        """Draw the line."""
        spent = time.monotonic() - self._start
        left = f"{spent / self._done * (self._n - self._done) / 60:.1f} min left" if self._done else "time left unknown"
        bar = ("#" * (20 * self._done // max(1, self._n))).ljust(20, ".")
        print(f"\r\033[K[{bar}] {self._done}/{self._n} cells, {left}: {cell}", end="", file=sys.stderr, flush=True)

    def step(self) -> None:
        """Count a cell."""
        self._done += 1

    def close(self) -> None:
        """End the line."""
        self.show("stopped" if self._done < self._n else "finished")
        print(file=sys.stderr)

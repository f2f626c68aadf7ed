"""Sections of a long benchmark: a worker process measures, its parent watches it and writes the report.

A worker measures the sections one after another and writes a line of JSON per result. If a section crashes the worker
(a library called wrongly, a GPU in an error state) or hangs, the parent starts another worker with the next section.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks.common.processes import child_environment
from benchmarks.common.reports import figure, markdown_table

Row = dict[str, Any]
# The labels of a row, and the function that measures its figures.
Cell = tuple[Row, Callable[[], Row]]
GRACE = 45  # seconds that a cell may run on after the time of its section


@dataclass
class Config:
    """Device and size of the sections."""

    device: str
    smoke: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    def pick(self, full: Any, smoke: Any) -> Any:
        """Return the size for a full run, or for a trial on any machine."""
        return smoke if self.smoke else full


@dataclass
class Section:
    """A section: `cells` yields its rows, the most important first; `budget` is in seconds."""

    name: str
    title: str
    note: str
    budget: float
    cells: Callable[[Config], Iterator[Cell]]


class NotApplicableError(Exception):
    """Raised by a cell that cannot run here; the report gives the reason, and it is not a failure."""


@dataclass
class Outcome:
    """Results and state of a section."""

    status: str = "not run"
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0


def work(sections: list[Section], config: Config, environment: str, stream: TextIO) -> None:
    """Measure the sections in this process."""

    def say(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message) + "\n")
        stream.flush()

    def tell(section: Section, **message: Any) -> None:
        say({"section": section.name, **message})

    about = {section.name: [section.title, section.note, section.budget] for section in sections}
    say({"environment": environment, "about": about})
    for section in sections:
        start = time.monotonic()
        tell(section, status="running")
        status, error = "complete", None
        try:
            for labels, task in section.cells(config):
                if time.monotonic() - start > section.budget:
                    status = "cut" if status == "complete" else status
                    break
                row = dict(labels)
                try:
                    row |= task()
                except NotApplicableError as reason:
                    row["remark"] = f"not run: {reason}"
                except Exception as problem:
                    status, error = "failed", _told(problem)
                    row["error"] = error
                    if "CUDA error" in error:  # the CUDA context is lost, and later cells would fail too
                        tell(section, row=row)
                        break
                tell(section, row=row)
        except Exception as problem:
            traceback.print_exc()
            status, error = "failed", _told(problem)
        tell(section, status=status, error=error, seconds=time.monotonic() - start)
        if error is not None and "CUDA error" in error:
            sys.exit(3)


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


class Supervisor:
    """Run workers until every section has been tried or the time is over.

    Parameters
    ----------
    command : list of str
        Starts a worker; the supervisor appends `--worker <file of results> --sections <names>`.
    names : list of str
        The sections.
    seconds : float
        Time for all sections.
    """

    def __init__(self, command: list[str], names: list[str], seconds: float) -> None:
        self.command = command
        self.finish = time.monotonic() + seconds
        self.outcomes = {name: Outcome() for name in names}
        self.environment = ""
        self.about: dict[str, list[Any]] = {}

    def run(self, report: Callable[[], None]) -> None:
        """Run the sections, and call `report` after each."""
        with tempfile.TemporaryDirectory() as folder:
            lines = Path(folder) / "lines"
            while (left := self._with_status("not run")) and time.monotonic() < self.finish:
                lines.write_text("")
                command = [*self.command, "--worker", str(lines), "--sections", *left]
                worker = subprocess.Popen(command, env=child_environment())
                try:
                    self._watch(worker, lines, report)
                finally:
                    if worker.poll() is None:
                        worker.kill()
                    worker.wait()
                if self._with_status("not run") == left:  # it ended before its first section, as the next one would
                    self.outcomes[left[0]] = Outcome("failed", error=f"worker ended with {worker.returncode}")
                    left = []
                for name in self._with_status("running"):
                    self.outcomes[name].status = "failed"
                    self.outcomes[name].error = f"worker ended with {worker.returncode}"
                report()
                if not left:
                    return

    def _with_status(self, status: str) -> list[str]:
        return [name for name, outcome in self.outcomes.items() if outcome.status == status]

    def _watch(self, worker: subprocess.Popen[bytes], lines: Path, report: Callable[[], None]) -> None:
        """Follow a worker until it ends; return early if it must be stopped."""
        since = time.monotonic()
        with lines.open() as stream:
            while True:
                ended = worker.poll() is not None
                for line in _whole_lines(stream):
                    before = self._with_status("running")
                    self._take(json.loads(line))
                    if self._with_status("running") != before:
                        since = time.monotonic()
                        report()
                if ended:
                    return
                now = time.monotonic()
                late = [name for name in self._with_status("running") if now > since + self.about[name][2] + GRACE]
                if now > self.finish:
                    late = self._with_status("running")
                for name in late:
                    self.outcomes[name].status, self.outcomes[name].seconds = "cut", now - since
                if late or now > self.finish or not (self._with_status("running") or self._with_status("not run")):
                    return
                time.sleep(0.1)

    def _take(self, message: dict[str, Any]) -> None:
        if "environment" in message:
            self.environment = message["environment"]
            self.about |= message["about"]
            return
        outcome = self.outcomes[message["section"]]
        if "row" in message:
            outcome.rows.append(message["row"])
            print(message["section"], json.dumps(message["row"]), flush=True)
            return
        outcome.status = message["status"]
        outcome.error, outcome.seconds = message.get("error"), message.get("seconds", 0.0)

    def as_markdown(self, title: str) -> str:
        """Return the report of the sections that have been tried."""
        tried = [name for name, outcome in self.outcomes.items() if outcome.status not in ("not run", "running")]
        parts = [_as_markdown(self.outcomes[name], *self.about.get(name, (name, "", 0))) for name in tried]
        return "\n\n".join([title, self.environment, *parts])


def _whole_lines(stream: TextIO) -> Iterator[str]:
    while True:
        position = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(position)
            return
        yield line


def _as_markdown(outcome: Outcome, title: str, note: str, _: float) -> str:
    columns = list(dict.fromkeys(key for row in outcome.rows for key in row))
    table = markdown_table(columns, [[figure(row.get(key)) for key in columns] for row in outcome.rows])
    remarks = {"complete": "", "cut": " Out of time: later rows were not run."}
    remark = remarks.get(outcome.status, f" **{outcome.status}**: {outcome.error}")
    return f"## {title}\n\n{note}{remark}\n\n{table if outcome.rows else 'No results.'}"

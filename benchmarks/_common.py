"""What the benchmarks share: arguments, the environment, timing, a fresh process per measurement, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report (default: docs/benchmarks)")
    return parser


def environment() -> str:
    """One line with everything a figure depends on, paths and host names left out."""
    import numpy
    import sklearn
    import torch
    import torchvision

    import ipca_sklearn

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads; Python {platform.python_version()}"
        f", torch {torch.__version__} (CUDA {torch.version.cuda}), torchvision {torchvision.__version__}, scikit-learn "
        f"{sklearn.__version__}, numpy {numpy.__version__}, ipca_sklearn {ipca_sklearn.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_fresh_process(
    script: Path, arguments: Sequence[str], *, python: str = sys.executable, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run `script arguments` and return the JSON object that its last line is: peak memory is that of one job only."""
    done = subprocess.run(
        [python, str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **(variables or {})},
    )
    return json.loads(done.stdout.splitlines()[-1])


def synchronize(device: Any) -> None:
    """Wait for a GPU; a clock read before it is done measures the queueing of kernels only."""
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


def seconds(task: Callable[[], object], device: Any, repeats: int, *, warm_up: bool = True) -> list[float]:
    """Time `task` `repeats` times after a run that does not count."""
    if warm_up:
        task()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        task()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def figure(value: Any) -> str:
    """Return a value of a table with three significant digits; of a list, the median and the range."""
    if isinstance(value, (list, tuple)):
        text = figure(float(statistics.median(value)))
        return text if len(value) == 1 else f"{text} ({figure(float(min(value)))} - {figure(float(max(value)))})"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return "" if value is None else str(value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(out: Path, name: str, text: str, values: Any, *, show: bool = True) -> None:
    """Print a report and write it to the folder `out` as Markdown and JSON."""
    if show:
        print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n")
    (out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")

"""What the benchmarks share: the environment, a fresh process per measurement, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


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


def in_fresh_process(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `script arguments` and return the JSON object that its last line is: peak memory is that of one job only."""
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, text: str, values: Any) -> None:
    """Print a report and write it to docs/benchmarks as Markdown and JSON."""
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")

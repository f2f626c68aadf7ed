"""Arguments, tables and result pages of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.processes import REPOSITORY

RESULTS = REPOSITORY / "docs" / "benchmarks"


def argument_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark; `module` is what stands behind `python -m`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report (default: docs/benchmarks)")
    parser.set_defaults(module=module)
    return parser


def environment() -> str:
    """Return a line with everything that a figure depends on, without paths and host names."""
    # Imported here so that `--help` does not load torch.
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


def environments(earlier: dict[str, Any]) -> list[str]:
    """Return the environments of all runs that have added to a results file, given as it is read, with that of now."""
    return list(dict.fromkeys([*earlier.get("environments", []), environment()]))


def environments_in_words(lines: Sequence[str]) -> list[str]:
    """Return the paragraphs of a page that `environments` make."""
    return [*(["By several runs, each with the cells that were missing, on:"] if len(lines) > 1 else []), *lines]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line(options: argparse.Namespace, arguments: Sequence[str] | None = None) -> str:
    """Return the command of this run, with a placeholder for each path of the machine.

    Parameters
    ----------
    options : Namespace
        What a parser of `argument_parser` returned. The values that are a `Path` are replaced by the name of their
        option in capitals.
    arguments : sequence of str, optional
        The arguments that were parsed; those of this process by default.

    Returns
    -------
    str
    """
    names = {path: name.upper() for name, value in vars(options).items() for path in _paths(value)}

    def shown(argument: str) -> str:
        option, equals, value = argument.partition("=")
        if option.startswith("--") and equals:
            return f"{option}={shown(value)}"
        return names.get(Path(argument)) or shlex.quote(argument)

    return " ".join(["python", "-m", options.module, *map(shown, sys.argv[1:] if arguments is None else arguments)])


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (part for part in value if isinstance(part, Path))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median and the range as text."""
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
    """Return a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_results(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the figures that `write_results` has written to the folder `options.out`."""
    return json.loads((options.out / f"{name}.json").read_text())


def write_results(
    options: argparse.Namespace, name: str, text: str, values: dict[str, Any], *, show: bool = True
) -> None:
    """Write a report to the folder `options.out` as Markdown and JSON, with the command that made it, and print it.

    Parameters
    ----------
    options : Namespace
        What a parser of `argument_parser` returned.
    name : str
        Of the two files.
    text : str
        Markdown; its first line is the title. The command stands below the title.
    values : dict
        The figures.
    show : bool, default=True
        Whether the report is printed too.
    """
    command = command_line(options)
    title, _, body = text.partition("\n")
    page = f"{title}\n\nWritten by `{command}`.\n{body}\n"
    if show:
        print(page)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(page)
    (options.out / f"{name}.json").write_text(json.dumps({"command": command, **values}, indent=1) + "\n")

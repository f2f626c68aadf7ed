"""What the figures of `python -m benchmarks.gpu` mean: for the table of eigensolvers, and for the goals.

    python -m benchmarks.gpu.verdict [--out FOLDER] [--name gpu]

Reads the JSON file that the benchmark has written, complete or cut, and measures nothing.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from benchmarks.common.reports import argument_parser, figure, markdown_table, read_results

Row = dict[str, Any]

# An eigensolver whose vectors are less orthonormal is wrong, however fast it is.
LARGEST_ERROR = {"float32": 1e-4, "float64": 1e-11}
# How much faster the Triton kernel must be than the next best to stay.
TRITON_GAIN = 1.5
TRITON = "ipca_sklearn triton"


def median(value: Any) -> float:
    """Return a figure, or the median of several."""
    return float(statistics.median(value)) if isinstance(value, list) else float(value)


def rows_of(results: dict[str, Any], section: str) -> list[Row]:
    """Return the rows of a section that were measured without an error."""
    rows = results["sections"].get(section, {}).get("rows", [])
    return [row for row in rows if "error" not in row]


def eigensolvers(results: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Return the fastest right eigensolver for each size, and what follows for the candidates."""
    timed: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    wrong = []
    for row in rows_of(results, "eigensolvers"):
        if "ms" not in row:  # it does not apply here
            continue
        if row["orthogonality"] > LARGEST_ERROR[row["dtype"]]:
            wrong.append(f"{row['solver']}, {row['dtype']}, n = {row['n']}: deviates by {figure(row['orthogonality'])}")
            continue
        timed[row["dtype"], row["n"]][row["solver"]] = median(row["ms"])
    table, winners, triton_gains = [], set(), []
    for (dtype, n), times in sorted(timed.items()):
        ranking = sorted(times, key=lambda name: times[name])
        winners.add(ranking[0])
        second = f"{times[ranking[1]] / times[ranking[0]]:.2f} times {ranking[1]}" if len(ranking) > 1 else ""
        table.append([dtype, str(n), ranking[0], figure(times[ranking[0]]), second])
        others = [times[name] for name in times if name != TRITON]
        if TRITON in times and others:
            triton_gains.append(min(others) / times[TRITON])
    candidates = {name for times in timed.values() for name in times}
    said = [f"wrong, whatever their speed: {line}" for line in wrong]
    said += [f"never the fastest, so to be deleted: {name}" for name in sorted(candidates - winners)]
    if triton_gains:
        keeps = max(triton_gains) >= TRITON_GAIN
        said.append(
            f"the Triton kernel is at best {max(triton_gains):.2f} times as fast as the next: "
            f"{'it stays where it gains' if keeps else 'it goes'} (limit {TRITON_GAIN:g})"
        )
    return table, said


def goals(results: dict[str, Any]) -> list[list[str]]:
    """Return goal, figure and whether it is reached; a figure that is missing was not measured."""
    ours = {
        (row["k"], row["b"]): median(row["images_per_s"])
        for row in rows_of(results, "pca")
        if row["method"] == "ours" and row["m"] == 256
    }
    trained = [row for row in rows_of(results, "end_to_end") if row["what"] == "training"]
    steps = [row for row in rows_of(results, "step") if row["task"] == "PatchGaussianDetector" and row["k"] == 16]
    waits = [
        sum(value for name, value in row.items() if name.endswith("Synchronize") or name == "copies to host")
        for row in steps
    ]
    shared, engine = rows_of(results, "shared"), rows_of(results, "engine")
    detectors = [row for row in shared if row["task"] == "PatchGaussianDetector"]
    basis = ours.get((16, 16))
    relative = [ours[key] / basis for key in ((64, 16), (64, 64)) if basis and key in ours]
    checked: list[tuple[str, float | None, float, bool]] = [
        ("PCA alone, k = 16, steps of 16: images/s", basis, 10_000, True),
        ("PCA alone, k = 64: share of that rate", max(relative, default=None), 0.5, True),
        ("end to end, learning: images/s", _best(trained, "images_per_s"), 3_000, True),
        ("end to end, scoring: images/s", _best(trained, "inference"), 5_000, True),
        ("waits for the GPU and copies to the host in a step", max(waits, default=None), 1, False),
        ("256 Gaussians, learning without a network: images/s", _best(detectors, "images_per_s"), 3_000, True),
        ("256 Gaussians, eigendecomposition: ms", _best(shared, "ms"), 100, False),
        ("256 Gaussians, error of float32 products", _best(shared, "deviation"), 1e-5, False),
        ("256 Gaussians, end to end, learning: images/s", _best(engine, "learning"), 3_000, True),
        ("256 Gaussians, end to end, scoring: images/s", _best(engine, "maps"), 5_000, True),
        ("memory of a step, k = 16: MB", _best(steps, "peak_mb"), 2_000, False),
    ]
    table = []
    for goal, value, limit, at_least in checked:
        if value is None:
            state = "not measured"
        else:
            state = "reached" if (value >= limit if at_least else value <= limit) else "missed"
        table.append([goal, f"{'>=' if at_least else '<='} {limit:g}", figure(value), state])
    return table


def _best(rows: list[Row], key: str) -> float | None:
    return max((median(row[key]) for row in rows if row.get(key) is not None), default=None)


def verdict(results: dict[str, Any]) -> str:
    """Return the summary as Markdown."""
    table, said = eigensolvers(results)
    states = [f"{name}: {section['status']}" for name, section in results["sections"].items()]
    parts = [
        "# What the GPU benchmark means",
        f"{results['environment']}\n\nSections: {', '.join(states)}.",
        "## Goals",
        markdown_table(["goal", "limit", "measured", ""], goals(results)),
        "## The fastest eigensolver",
        markdown_table(["dtype", "n", "fastest", "ms", "faster than the next by"], table) if table else "Not measured.",
        "\n".join(f"- {line}" for line in said),
    ]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    parser = argument_parser("benchmarks.gpu.verdict", __doc__)
    parser.add_argument("--name", default="gpu", help="of the report to read")
    options = parser.parse_args()
    print(verdict(read_results(options, options.name)))


if __name__ == "__main__":
    main()

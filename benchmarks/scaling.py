"""Growth of a fit's time and peak memory with the number of images, patches, features and components.

Features are generated while they are read, so that n images need no memory of their own. Every point runs in a fresh
process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, markdown_table, spread, write_results

BASE = {"n": 400, "patches": 784, "m": 256, "k": 16}
SWEEPS = {
    "n": [200, 1000, 5000, 20000],
    "patches": [392, 784, 1568, 3136],
    "m": [64, 128, 256, 512],
    "k": [8, 16, 32, 64],
}


def measure(n: int, patches: int, m: int, k: int) -> dict[str, float]:
    """Fit a detector on n generated images and return seconds and megabytes."""
    import torch

    from benchmarks.common.generated import GeneratedFeatures
    from ipca_sklearn import PatchGaussianDetector

    detector = PatchGaussianDetector(k)
    PatchGaussianDetector(2).fit(torch.randn(20, 4, 8))  # starts the libraries
    before = restart_peak()
    start = time.perf_counter()
    detector.fit(GeneratedFeatures(n, patches, m))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mb_over_imports": peak_mb() - before}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the exponent of the power law through the points, by least squares of the logarithms."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if y > 0]
    if len(points) < 2:
        return math.nan
    lx, ly = zip(*points, strict=True)
    mx, my = statistics.mean(lx), statistics.mean(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly, strict=True)) / sum((a - mx) ** 2 for a in lx)


def main() -> None:
    parser = argument_parser("benchmarks.scaling", __doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1, help="divide n and P by this, for a trial")
    parser.add_argument("--measure", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    rows, exponents, results = [], [], []
    bar = tqdm(total=sum(map(len, SWEEPS.values())), unit="point")
    for name, values in SWEEPS.items():
        seconds, memory = [], []
        for value in values:
            point = BASE | {name: value}
            point |= {key: max(1, point[key] // options.shrink) for key in ("n", "patches")}
            arguments = ["--measure", *(str(point[key]) for key in ("n", "patches", "m", "k"))]
            runs = [in_fresh_process(options.module, arguments) for _ in range(options.repeats)]
            results.append({**point, "runs": runs})
            seconds.append(statistics.median(run["seconds"] for run in runs))
            memory.append(statistics.median(run["mb_over_imports"] for run in runs))
            row = [name, *(str(point[key]) for key in ("n", "patches", "m", "k"))]
            row += [spread([run["seconds"] for run in runs], 2), spread([run["mb_over_imports"] for run in runs], 0)]
            rows.append(row)
            tqdm.write(" | ".join(row), file=sys.stderr)
            bar.update()
        exponents.append([name, f"{slope(values, seconds):.2f}", f"{slope(values, memory):.2f}"])
    bar.close()
    header = ["varied", "n", "P", "m", "k", "seconds, median (range)", "MB over the imports"]
    text = f"""# How a fit grows

`PatchGaussianDetector(k, step_size=16).fit` on n images of P patches with m generated float32 features, each point in
{options.repeats} fresh processes. The memory includes four steps of generated features, which grow with P and m as the
model does.

{environment()}

{markdown_table(header, rows)}

Exponent of the power law through the points (1 is proportional, 0 is flat):

{markdown_table(["varied", "time", "memory"], exponents)}"""
    write_results(options, "scaling", text, {"environment": environment(), "results": results})


if __name__ == "__main__":
    main()

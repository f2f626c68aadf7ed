"""Growth of a fit's time and peak memory with the number of images, patches, features, components and Gaussians.

Features are generated while they are read, so that n images need no memory of their own. Every point runs in a fresh
process.

With --images FOLDER, the peak memory of fits from files alone is measured, and written to a page of its own: the
extractor with EfficientNet-Lite0 and the detector with their defaults, on the files of the folder, which are repeated
where there are fewer.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.images import images_in
from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, markdown_table, spread, write_results

BASE = {"n": 400, "patches": 1024, "m": 256, "k": 32, "gaussians": 256}
SWEEPS = {
    "n": [200, 1000, 5000],
    "patches": [512, 1024, 2048, 4096],
    "m": [64, 128, 256, 512],
    "k": [16, 32, 64, 96],
    "gaussians": [16, 64, 256, 1024],
}


def measure(n: int, patches: int, m: int, k: int, gaussians: int) -> dict[str, float]:
    """Fit a detector on n generated images and return seconds and megabytes."""
    import torch

    from benchmarks.common.generated import GeneratedFeatures
    from ipca_sklearn import PatchGaussianDetector

    detector = PatchGaussianDetector(k, n_gaussians=gaussians)
    PatchGaussianDetector(2).fit(torch.randn(20, 600, 8))  # starts the libraries, numba too
    before = restart_peak()
    start = time.perf_counter()
    detector.fit(GeneratedFeatures(n, patches, m))
    _ = detector.pca_.noise_variance_  # the components are computed when they are first read
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mb_over_imports": peak_mb() - before}


def measure_files(folder: Path, pattern: str, n: int) -> dict[str, float]:
    """Fit from n files of a folder and return megabytes."""
    import torch

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

    paths = list(islice(cycle(images_in(folder, pattern)), n))
    PatchGaussianDetector(2).fit(torch.randn(20, 600, 8))  # starts the libraries, numba too
    before = restart_peak()
    PatchGaussianDetector().fit(PatchFeatureExtractor("efficientnet_lite0").fit_transform(paths))
    return {"mb_over_imports": peak_mb() - before, "imports_mb": before}


def run_files(options: argparse.Namespace) -> None:
    """Write the page of fits from files."""
    rows, results = [], []
    for n in tqdm(options.n_images, unit="point"):
        arguments = ["--images", str(options.images), "--pattern", options.pattern, "--measure-files", str(n)]
        runs = [in_fresh_process(options.module, arguments) for _ in range(options.repeats)]
        results.append({"n": n, "runs": runs})
        column = {key: [run[key] for run in runs] for key in runs[0]}
        first = statistics.median(run["mb_over_imports"] for run in results[0]["runs"])
        ratio = statistics.median(column["mb_over_imports"]) / first
        row = [str(n), *(spread(column[key], 0) for key in ("mb_over_imports", "imports_mb"))]
        rows.append([*row, f"{ratio:.3f}"])
        tqdm.write(" | ".join(rows[-1]), file=sys.stderr)
    header = ["images", "peak MB over the imports", "imports MB", f"peak over that of {options.n_images[0]}"]
    text = f"""# Peak memory of a fit from files

`PatchFeatureExtractor("efficientnet_lite0")` and `PatchGaussianDetector()` with their defaults, {options.repeats} fresh
process(es) a row, median (range). The peak includes the network, decoding, the features of the steps at work and the
model; imports are those of libraries, after a fit of random numbers. Files are repeated where the folder has fewer.

{environment()}

{markdown_table(header, rows)}"""
    write_results(options, "scaling_from_files", text, {"environment": environment(), "results": results})


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
    parser.add_argument("--measure", nargs=5, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help="folder of files for fits from files")
    parser.add_argument("--pattern", default="*", help="of the files' names, if masks lie beside the images")
    parser.add_argument("--n-images", type=int, nargs="+", default=[128, 512, 2048], help="of fits from files")
    parser.add_argument("--measure-files", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    if options.measure_files:
        print(json.dumps(measure_files(options.images, options.pattern, options.measure_files)))
        return
    if options.images:
        run_files(options)
        return
    rows, exponents, results = [], [], []
    bar = tqdm(total=sum(map(len, SWEEPS.values())), unit="point")
    for name, values in SWEEPS.items():
        seconds, memory = [], []
        for value in values:
            point = BASE | {name: value}
            point |= {key: max(1, point[key] // options.shrink) for key in ("n", "patches")}
            arguments = ["--measure", *(str(point[key]) for key in BASE)]
            runs = [in_fresh_process(options.module, arguments) for _ in range(options.repeats)]
            results.append({**point, "runs": runs})
            seconds.append(statistics.median(run["seconds"] for run in runs))
            memory.append(statistics.median(run["mb_over_imports"] for run in runs))
            row = [name, *(str(point[key]) for key in BASE)]
            row += [spread([run["seconds"] for run in runs], 2), spread([run["mb_over_imports"] for run in runs], 0)]
            rows.append(row)
            tqdm.write(" | ".join(row), file=sys.stderr)
            bar.update()
        exponents.append([name, f"{slope(values, seconds):.2f}", f"{slope(values, memory):.2f}"])
    bar.close()
    header = ["varied", "n", "P", "m", "k", "Gaussians", "seconds, median (range)", "MB over the imports"]
    text = f"""# How a fit grows

`PatchGaussianDetector(k, n_gaussians).fit` on n images of P patches with m generated float32 features, with the
components; each point in {options.repeats} fresh process(es). The memory includes four steps of generated features,
which are most of it and grow with P and m. As many Gaussians as patches are a Gaussian for each patch.

{environment()}

{markdown_table(header, rows)}

Exponent of the power law through the points (1 is proportional, 0 is flat):

{markdown_table(["varied", "time", "memory"], exponents)}"""
    write_results(options, "scaling", text, {"environment": environment(), "results": results})


if __name__ == "__main__":
    main()

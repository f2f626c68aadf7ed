"""Partitions of images on one process and on two, and the cost of a merge.

FOLDER holds normal images (at any depth). Each run is a fresh process. From the measured costs follows what many
machines would need; that part is calculated, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.images import images_in
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, figure, markdown_table, spread, write_results

METHOD = """\
{n_images} images from disk in {n_partitions} partitions, {backbone}, k = {k}, steps of 16. Seconds of the whole call, after
a call on two images, which starts the workers and does not count; median (range) of {repeats} run(s), each in a new
process. "One fit" is `pipe.fit` on all the images, without partitions."""  # noqa: E501
MODEL = """\
## What many machines would need

**Calculated** from the figures above, not measured: {n_images:.0e} images on {n_workers} one-core workers like those here,
each learning its share with one state in memory; states go up a binary tree of depth {depth}, each level one transfer of
{megabytes:.1f} MB and one merge. The network between the machines is *assumed* to carry {bandwidth} MB/s."""  # noqa: E501


def main() -> None:
    parser = argument_parser("benchmarks.distributed", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-images", type=int, default=512)
    parser.add_argument("--n-partitions", type=int, default=8)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--total-images", type=float, default=1e8)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--bandwidth", type=float, default=100, help="MB/s between machines, assumed")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    paths = images_in(options.folder)[: options.n_images]
    if options.job:
        print(json.dumps(_job(options.job, paths, options)))
        return
    jobs = {
        "one fit, 2 threads": "fit",
        "1 process, 1 thread": "1 1",
        "1 process, 2 threads": "1 2",
        "2 processes, 1 thread each": "2 1",
    }
    results: dict[str, Any] = {name: [] for name in jobs}
    arguments = [str(options.folder), *_passed_on(options)]
    for name, job in tqdm([*jobs.items()] * options.repeats, unit="run"):
        results[name].append(in_fresh_process(options.module, [*arguments, "--job", job])["seconds"])
        tqdm.write(f"{name} {results[name]}", file=sys.stderr)
    costs = in_fresh_process(options.module, [*arguments, "--job", "costs"])
    rows = [
        [name, spread(seconds), figure([len(paths) / value for value in seconds])] for name, seconds in results.items()
    ]
    text = [
        "# Partitions on several processes",
        environment(),
        METHOD.format(n_images=len(paths), n_partitions=options.n_partitions, backbone=options.backbone,
                      k=options.k, repeats=options.repeats),
        markdown_table(["", "seconds", "images/s"], rows),
        "## A merge",
        markdown_table(
            ["state of a partition, MB", "to bytes, ms", "from bytes, ms", "merge of two, ms"],
            [[figure(costs["bytes"] / 1e6), *(figure([1e3 * value for value in costs[name]])
                                              for name in ("dump", "load", "merge"))]],
        ),
        _model(options, costs, statistics.median(results["1 process, 1 thread"]) / len(paths)),
    ]  # fmt: skip
    values = {"environment": environment(), "n_images": len(paths), "seconds": results, "costs": costs}
    write_results(options, "distributed", "\n\n".join(text), values)


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("n_images", "n_partitions", "backbone", "k")
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]


def _model(options: argparse.Namespace, costs: dict[str, Any], seconds_per_image: float) -> str:
    depth = math.ceil(math.log2(options.workers))
    transfer = costs["bytes"] / (options.bandwidth * 1e6)
    local = sum(statistics.median(costs[name]) for name in ("dump", "load", "merge"))
    learning = options.total_images / options.workers * seconds_per_image
    rows = [
        [
            "learning, per worker",
            f"{options.total_images / options.workers:.0f} images",
            f"{learning / 3600:.2f} hours",
        ],
        ["merging, whole tree", f"depth {depth}", f"{depth * (transfer + local):.1f} s"],
        ["sent, per worker", f"{costs['bytes'] / 1e6:.1f} MB", f"once, {transfer:.2f} s"],
        ["sent, all workers", f"{(options.workers - 1) * costs['bytes'] / 1e9:.1f} GB", ""],
    ]
    head = MODEL.format(n_images=options.total_images, n_workers=options.workers, depth=depth,
                        megabytes=costs["bytes"] / 1e6, bandwidth=f"{options.bandwidth:g}")  # fmt: skip
    return f"{head}\n\n{markdown_table(['', '', ''], rows)}"


def _job(job: str, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.distributed import fit

    extractor = PatchFeatureExtractor(options.backbone, random_state=0)
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(options.k))])
    partitions = [list(part) for part in np.array_split(np.array(paths, dtype=object), options.n_partitions)]
    if job == "costs":
        return _costs(pipe, partitions)
    if job == "fit":
        pipe.fit(paths[:2])
        start = time.perf_counter()
        pipe.fit(paths)
    else:
        n_jobs, threads = map(int, job.split())
        fit(pipe, [paths[:2]] * n_jobs, n_jobs=n_jobs, threads_per_worker=threads)
        start = time.perf_counter()
        fit(pipe, partitions, n_jobs=n_jobs, threads_per_worker=threads)
    return {"seconds": time.perf_counter() - start}


def _costs(pipe: Any, partitions: list[list[Path]]) -> dict[str, Any]:
    """Return the bytes of a state, and the seconds of pickling, unpickling and merging it, five times each."""
    first, second = (pipe[-1].fit(pipe[0].fit_transform(part)) and pickle.dumps(pipe[-1]) for part in partitions[:2])
    costs: dict[str, Any] = {"bytes": len(first), "dump": [], "load": [], "merge": []}
    for _ in range(6):
        start = time.perf_counter()
        one, other = pickle.loads(first), pickle.loads(second)
        loaded = time.perf_counter()
        one.merge(other)
        merged = time.perf_counter()
        pickle.dumps(one)
        for name, value in (("load", (loaded - start) / 2), ("merge", merged - loaded),
                            ("dump", time.perf_counter() - merged)):  # fmt: skip
            costs[name].append(value)
    return {name: value[1:] if isinstance(value, list) else value for name, value in costs.items()}


if __name__ == "__main__":
    main()

"""Cost of a search over six numbers of components, beside the cost of one candidate.

FOLDER holds normal images (at any depth). Each search runs in a fresh process: the default extractor fills an empty
cache ("network"), and the search reads it. Beside seconds, the work is counted (scatter updates, eigendecompositions of
all Gaussians, steps scored for thresholds and for the folds), which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.images import images_in
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, figure, markdown_table, write_results

SIX = [8, 16, 32, 48, 64, 96]
# Search, its number of candidates.
SEARCHES = {
    "one candidate": ("DetectorGridSearchCV", 1),
    "six, DetectorGridSearchCV": ("DetectorGridSearchCV", 6),
    "six, GridSearchCV": ("GridSearchCV", 6),
}
METHOD = """\
{n_images} images from disk, {n_splits} of 3 folds of normal images, scored by held-out likelihood, no refit; default extractor
and detector; `n_components` {six}, and the one candidate is 64. Medians (ranges) of {repeats} run(s), each in a new process after
a small fit that does not count. "Network" is what fills the cache, once for all candidates and folds; "search" reads it. Ratios are of
CPU seconds, which a busy machine changes less, to "one candidate" of the same run: of the search alone, and with the network."""  # noqa: E501
COUNTED = {
    "scatter updates": "update_scatter",
    "decompositions": "finalize_scatter",
    "steps scored": "scored",
}


def main() -> None:
    parser = argument_parser("benchmarks.grid_search", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-images", type=int, default=150)
    parser.add_argument("--n-splits", type=int, default=3, help="folds that are fitted, of three")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    paths = images_in(options.folder)[: options.n_images]
    if options.job:
        print(json.dumps(_job(paths, options.n_splits, **json.loads(options.job))))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    bar = tqdm(total=options.repeats * len(SEARCHES), unit="search")
    for _ in range(options.repeats):
        for name, (kind, n_candidates) in SEARCHES.items():
            job = json.dumps({"kind": kind, "n_candidates": n_candidates})
            arguments = [str(options.folder), "--n-images", str(options.n_images), "--n-splits", str(options.n_splits)]
            done = in_fresh_process(options.module, [*arguments, "--job", job])
            tqdm.write(f"{name} {done}", file=sys.stderr)
            results.setdefault(name, []).append(done)
            bar.update()
    bar.close()
    method = METHOD.format(n_images=len(paths), n_splits=options.n_splits, repeats=options.repeats, six=SIX)
    title = "# A search over six numbers of components"
    text = "\n\n".join([title, environment(), method, _table(results)])
    write_results(options, "grid_search", text, {"environment": environment(), "results": results})


def _table(results: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    one = results["one candidate"]
    for name, runs in results.items():
        pairs = list(zip(runs, one, strict=True))
        alone = [run["cpu"] / base["cpu"] for run, base in pairs]
        network = statistics.median(run["network"] for run in one)
        together = [(network + run["cpu"]) / (network + base["cpu"]) for run, base in pairs]
        counts = [str(runs[0]["counts"].get(key, 0)) for key in COUNTED.values()]
        seconds = [figure([run[part] for run in runs]) for part in ("search", "network", "cpu")]
        rows.append([name, *seconds, figure(alone), figure(together), str(runs[0]["n_fits"]), *counts])
    header = [
        "",
        "search, s",
        "network, CPU s",
        "search, CPU s",
        "ratio of searches",
        "ratio with the network",
        "fits",
        *COUNTED,
    ]
    return markdown_table(header, rows)


def _job(paths: list[Path], n_splits: int, *, kind: str, n_candidates: int) -> dict[str, Any]:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.model_selection import DetectorGridSearchCV, OneClassKFold

    warnings.simplefilter("ignore")
    counts = _count_work()
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder)
        pipe = Pipeline([("features", PatchFeatureExtractor(cache=cache)), ("detector", PatchGaussianDetector())])
        clone(pipe).set_params(features__cache=None).fit(paths[:2])
        start = time.process_time()
        for _ in pipe[0].fit(paths).transform(paths).batches():
            pass
        network = time.process_time() - start
        counts.clear()
        grid = {"detector__n_components": SIX if n_candidates == 6 else [64]}
        searches: dict[str, Any] = {"GridSearchCV": GridSearchCV, "DetectorGridSearchCV": DetectorGridSearchCV}
        splits = list(OneClassKFold(3).split(paths))[:n_splits]
        search = searches[kind](pipe, grid, cv=splits, refit=False)
        start, cpu_start = time.perf_counter(), time.process_time()
        search.fit(paths)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        n_fits = getattr(search, "n_fits_", n_splits * n_candidates)
        return {"network": network, "search": seconds, "cpu": cpu, "n_fits": n_fits, "counts": dict(counts)}


def _count_work() -> Counter[str]:
    """Count the calls of what a search spends its time on."""
    from ipca_sklearn import linalg

    counts: Counter[str] = Counter()

    def count(name: str, key: str) -> None:
        function = getattr(linalg, name)

        def counted(*args: Any, **how: Any) -> Any:
            counts[key] += 1
            return function(*args, **how)

        setattr(linalg, name, counted)

    for name in ("update_scatter", "finalize_scatter"):
        count(name, name)
    for name in ("patch_distances", "log_likelihood"):
        count(name, "scored")
    return counts


if __name__ == "__main__":
    main()

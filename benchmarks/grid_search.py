"""Cost of a search over six candidates, beside the cost of one candidate.

FOLDER holds normal images (at any depth). The search is scikit-learn's GridSearchCV over `n_components` and
`step_size` with three folds and `refit=False`; "one candidate" is the same search with one. Each starts with an empty
cache, in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.images import images_in
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, figure, markdown_table, write_results

GRID = {"detector__n_components": [8, 16, 32], "detector__step_size": [16, 32]}
ONE = {"detector__n_components": [16], "detector__step_size": [16]}
METHOD = """\
{n_images} images from disk, three folds of normal images, scored by held-out likelihood. "Six, cache" over "one, no cache"
is the price of a search instead of one cross-validation. Candidates are n_components 8, 16, 32 with step_size 16
and 32; the one is 16 and 16. Median (range) of {repeats} run(s), each in a new process with an empty cache, after a small
fit that does not count. Weights are random, which costs the same, except those of
EfficientNet-Lite0."""  # noqa: E501


def main() -> None:
    parser = argument_parser("benchmarks.grid_search", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "efficientnet_b4", "wide_resnet50_2"])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    paths = images_in(options.folder)
    if options.job:
        print(json.dumps(_job(paths[: options.n_images], **json.loads(options.job))))
        return
    rows, results = [], []
    runs = (("one", False, False), ("one, cache", False, True), ("six, cache", True, True))
    bar = tqdm(total=len(options.backbones) * options.repeats * len(runs), unit="search")
    for backbone in options.backbones:
        times: dict[str, list[float]] = {}
        n_bytes = 0
        for _ in range(options.repeats):
            for name, many, cached in runs:
                job = json.dumps({"backbone": backbone, "many": many, "cached": cached})
                arguments = [str(options.folder), "--n-images", str(options.n_images), "--job", job]
                done = in_fresh_process(options.module, arguments)
                times.setdefault(name, []).append(done["seconds"])
                n_bytes = max(n_bytes, done["n_bytes"])
                tqdm.write(f"{backbone} {name} {done}", file=sys.stderr)
                bar.update()
        ratios = [six / one for six, one in zip(times["six, cache"], times["one"], strict=True)]
        results.append({"backbone": backbone, "seconds": times, "ratios": ratios, "cache_bytes": n_bytes})
        rows.append([backbone, *(figure(times[name]) for name in times), f"{statistics.median(ratios):.2f}",
                     f"{n_bytes / 1e6:.0f}"])  # fmt: skip
    bar.close()
    header = ["backbone", "one, no cache, s", "one, cache, s", "six, cache, s", "six over one", "cache, MB"]
    method = METHOD.format(n_images=min(options.n_images, len(paths)), repeats=options.repeats)
    text = "\n\n".join(["# A search over six candidates", environment(), method, markdown_table(header, rows)])
    write_results(options, "grid_search", text, {"environment": environment(), "results": results})


def _job(paths: list[Path], *, backbone: str, many: bool, cached: bool) -> dict[str, Any]:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.model_selection import OneClassKFold

    weights = "DEFAULT" if backbone == "efficientnet_lite0" else None
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder)
        extractor = PatchFeatureExtractor(backbone, weights=weights, random_state=0, cache=cache if cached else None)
        pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector())])
        clone(pipe).set_params(features__cache=None).fit(paths[:2])
        search = GridSearchCV(pipe, GRID if many else ONE, cv=OneClassKFold(3), refit=False)
        start = time.perf_counter()
        search.fit(paths)
        return {"seconds": time.perf_counter() - start, "n_bytes": cache.n_bytes}


if __name__ == "__main__":
    main()

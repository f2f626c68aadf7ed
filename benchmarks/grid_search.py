"""python benchmarks/grid_search.py FOLDER: what six candidates cost in a search, over what one costs.

FOLDER holds normal images (at any depth). The search is scikit-learn's GridSearchCV over `n_components` and
`step_size` with three folds, `refit=False`; one candidate is the same search with one, and each starts with an empty
cache. Every run is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import argument_parser, environment, figure, in_fresh_process, markdown_table, write_results

GRID = {"detector__n_components": [8, 16, 32], "detector__step_size": [16, 32]}
ONE = {"detector__n_components": [16], "detector__step_size": [16]}
METHOD = """\
{n_images} images from disk, three folds of normal images, scored by held-out likelihood. "Six, cache" over "one, no cache"
is what a user pays for a search instead of one cross-validation. Candidates are n_components 8, 16, 32 with step_size 16
and 32; the one is 16 and 16. Median (range) of {repeats} run(s), each in a new process with an empty cache, after a small
fit that does not count. Weights are random, which costs the same, but for EfficientNet-Lite0."""  # noqa: E501


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "efficientnet_b4", "wide_resnet50_2"])
    parser.add_argument("--job", help="for the processes that this script starts")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if options.job:
        print(json.dumps(_job(paths[: options.n_images], **json.loads(options.job))))
        return
    rows, results = [], []
    for backbone in options.backbones:
        times: dict[str, list[float]] = {}
        n_bytes = 0
        for _ in range(options.repeats):
            for name, many, cached in (("one", False, False), ("one, cache", False, True), ("six, cache", True, True)):
                job = json.dumps({"backbone": backbone, "many": many, "cached": cached})
                arguments = [str(options.folder), "--n-images", str(options.n_images), "--job", job]
                done = in_fresh_process(Path(__file__), arguments)
                times.setdefault(name, []).append(done["seconds"])
                n_bytes = max(n_bytes, done["n_bytes"])
                print(backbone, name, done, file=sys.stderr)
        ratios = [six / one for six, one in zip(times["six, cache"], times["one"], strict=True)]
        results.append({"backbone": backbone, "seconds": times, "ratios": ratios, "cache_bytes": n_bytes})
        rows.append([backbone, *(figure(times[name]) for name in times), f"{statistics.median(ratios):.2f}",
                     f"{n_bytes / 1e6:.0f}"])  # fmt: skip
    header = ["backbone", "one, no cache, s", "one, cache, s", "six, cache, s", "six over one", "cache, MB"]
    method = METHOD.format(n_images=min(options.n_images, len(paths)), repeats=options.repeats)
    text = "\n\n".join(["# A search over six candidates", environment(), method, markdown_table(header, rows)])
    write_results(options.out, "grid_search", text, {"environment": environment(), "results": results})


def _job(paths: list[Path], *, backbone: str, many: bool, cached: bool) -> dict[str, Any]:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.model_selection import FeatureCache, OneClassKFold

    weights = "DEFAULT" if backbone == "efficientnet_lite0" else None
    extractor = PatchFeatureExtractor(backbone, weights=weights, random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder)
        steps = [("features", extractor), ("detector", PatchGaussianDetector())]
        search = GridSearchCV(
            Pipeline(steps, memory=cache if cached else None), GRID if many else ONE, cv=OneClassKFold(3), refit=False
        )
        clone(search.estimator).set_params(memory=None).fit(paths[:2])
        start = time.perf_counter()
        search.fit(paths)
        return {"seconds": time.perf_counter() - start, "n_bytes": cache.n_bytes}


if __name__ == "__main__":
    main()

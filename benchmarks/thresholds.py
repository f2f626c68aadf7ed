"""Nominal and realised rates of false positives, of images and of patches.

The normal images of a set are split at random, and a detector learns from some of them. The share of the others that it
calls anomalous is compared with `false_positive_rate`, and the share of their marked patches with
`pixel_false_positive_rate`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common.features import add_set_options, features_on_disk, image_sets
from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

NOMINAL = (0.01, 0.05, 0.1)
CALIBRATIONS: dict[str, Any] = {"prequential": "prequential", "the last quarter": 0.25}
METHOD = """\
EfficientNet-Lite0 and the defaults (256 Gaussians, k = 96, the mean of the largest 0.5 % of a map). In each of
{repeats} repeats the normal images are put in random order; n are passed to `fit` and {new} the others are new. Each
cell is the mean share of new normal images called anomalous (of their patches marked), in per cent, with a 95 %
interval of that mean (1.96 standard errors over the repeats), and in brackets the middle 80 % of the repeats. *In
sample* is the quantile of the scores of the learnt images, which the package does not use. "auto" has no nominal
share."""


def realised(features: np.ndarray, n_train: int, n_new: int | None, seed: int) -> dict[str, float]:
    """Return the shares of new normal images that are called anomalous, and of their marked patches."""
    order = np.random.default_rng(seed).permutation(len(features))
    train, new = features[order[:n_train]], features[order[n_train:][:n_new]]
    shares: dict[str, float] = {}
    for name, calibration in CALIBRATIONS.items():
        detector = PatchGaussianDetector(calibration=calibration).fit(train)
        maps = detector.transform(new)
        scores = detector.score_maps(maps)
        p_values = detector.p_values(scores=scores)
        shares[f"{name}, images, auto"] = float(np.mean(scores < detector.offset_))
        for rate in NOMINAL:
            detector.set_params(false_positive_rate=rate, pixel_false_positive_rate=rate)
            shares[f"{name}, images, {rate}"] = float(np.mean(scores < detector.offset_))
            shares[f"{name}, patches, {rate}"] = float(np.mean(maps > detector.map_threshold_))
            shares[f"{name}, p-values, {rate}"] = float(np.mean(p_values <= rate))
        if calibration == "prequential":
            own = detector.score_samples(train)
            for rate in NOMINAL:
                shares[f"in sample, images, {rate}"] = float(np.mean(scores < np.quantile(own, rate)))
    return shares


def cell(values: Sequence[float]) -> str:
    """Return the mean in per cent, its 95 % interval and the middle 80 % of the repeats."""
    per_cent = 100 * np.array(values)
    error = 1.96 * per_cent.std(ddof=1) / np.sqrt(len(per_cent)) if len(per_cent) > 1 else np.nan
    low, high = np.quantile(per_cent, [0.1, 0.9])
    return f"{per_cent.mean():.1f} ± {error:.1f} ({low:.1f} - {high:.1f})"


def main() -> None:
    parser = argument_parser("benchmarks.thresholds", __doc__)
    add_set_options(parser, ["fabric", "metal"])
    parser.add_argument("--n-train", type=int, nargs="+", default=[100, 200, 600])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--n-new", type=int, help="new images of a repeat, at most (default: all)")
    options = parser.parse_args()
    extractor = PatchFeatureExtractor()
    new = "all" if options.n_new is None else f"at most {options.n_new} of"
    parts = [
        "# Thresholds: nominal and realised shares",
        METHOD.format(repeats=options.repeats, new=new),
        environment(),
    ]
    values = {}
    for name, (images, _) in image_sets(options).items():
        with features_on_disk(extractor, images) as features:
            for n_train in (n for n in options.n_train if n <= 0.7 * len(images)):
                title = f"{name}, n = {n_train} of {len(images)}"
                seeds = tqdm(range(options.repeats), desc=title, unit="repeat")
                runs = [realised(features, n_train, options.n_new, seed) for seed in seeds]
                values[title] = {key: [run[key] for run in runs] for key in runs[0]}
                parts += [f"## {title}", table(values[title])]
                means = {key: round(100 * float(np.mean(run)), 2) for key, run in values[title].items()}
                print(title, means, file=sys.stderr)
    write_results(options, "thresholds", "\n\n".join(parts), {"environment": environment(), "shares": values})


def table(shares: dict[str, list[float]]) -> str:
    rows = list(dict.fromkeys(key.rpartition(", ")[0] for key in shares))
    header = ["calibration", *(f"nominal {100 * share:g} %" for share in NOMINAL), '"auto"']
    body = [
        [row, *(cell(shares[key]) if (key := f"{row}, {share}") in shares else "" for share in (*NOMINAL, "auto"))]
        for row in rows
    ]
    return markdown_table(header, body)


if __name__ == "__main__":
    main()

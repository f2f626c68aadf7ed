"""Thresholds of few images and of merged detectors, beside those that 200 unseen normal images would give.

The normal images of a set are put in random order. A detector learns from the first of them, or several detectors learn
from parts of them and are merged. The last are new: the share of them that is called anomalous is the realised rate
of false alarms, and the threshold that calls just the nominal share of them so is the best that could be had.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from tqdm import tqdm

from benchmarks.common.features import add_set_options, features_on_disk, image_sets
from benchmarks.common.reports import (
    argument_parser,
    environments,
    environments_in_words,
    markdown_table,
    read_results,
    write_results,
)
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.exceptions import FewImagesWarning

RATE = 0.05
N_IMAGES = [10, 20, 40, 64, 100]
PARTITIONS = ["10x4", "20x2", "20x8", "60x2", "40+20+80"]
METHOD = """\
EfficientNet-Lite0 and the defaults (256 Gaussians, k = 96), false_positive_rate = {rate}. Means over {repeats} random orders
of the normal images. *False alarms*: share of {new} new normal images called anomalous, in per cent
(the middle 80 % of the orders). *Found*: share of the anomalous images called so, and in brackets the share that the threshold
finds which calls {rate:.0%} of the {new} new images anomalous. *Warned*: share of the fits with a `FewImagesWarning`."""  # noqa: E501 (a paragraph of Markdown)

Result = tuple[float, float, float, bool]
Results = dict[str, list[Result]]


def fitted(parts: Sequence[np.ndarray]) -> tuple[PatchGaussianDetector, bool]:
    """Return the merge of detectors that learnt one part each, and whether a warning said that images are few."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detectors = [PatchGaussianDetector(false_positive_rate=RATE).fit(part) for part in parts]
        if len(parts) > 1:
            caught.clear()
        while len(detectors) > 1:  # in a tree, as `distributed.fit` does
            pairs = zip_longest(detectors[::2], detectors[1::2])
            detectors = [first if second is None else copy.copy(first).merge(second) for first, second in pairs]
    return detectors[0], any(issubclass(warning.category, FewImagesWarning) for warning in caught)


def sizes_of(text: str) -> tuple[int, ...]:
    """Return the sizes that "20x8" and "40+20+80" name."""
    size, times, count = text.partition("x")
    return (int(size),) * int(count) if times else tuple(map(int, text.split("+")))


def measured(sizes: Sequence[int], normal: np.ndarray, anomalous: np.ndarray, n_new: int, seed: int) -> Result:
    """Return the rate of false alarms, the share found, the share found by the best threshold, and the warning."""
    order = np.random.default_rng(seed).permutation(len(normal))
    learnt = normal[order[: sum(sizes)]]
    detector, warned = fitted(np.split(learnt, np.cumsum(sizes)[:-1]))
    new = detector.score_samples(normal[order[-n_new:]])
    bad = detector.score_samples(anomalous)
    best = np.quantile(new, RATE)
    return float(np.mean(new < detector.offset_)), float(np.mean(bad < detector.offset_)), np.mean(bad < best), warned


def row(sizes: Sequence[int], results: Sequence[Result]) -> list[str]:
    """Return a row of the table."""
    alarms, found, best, warned = 100 * np.array(results, dtype=float).T
    low, high = np.quantile(alarms, [0.1, 0.9])
    return [
        f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 and len(sizes) > 1 else " + ".join(map(str, sizes)),
        f"{alarms.mean():.1f} ({low:.1f} - {high:.1f})",
        f"{found.mean():.1f} ({best.mean():.1f})",
        f"{warned.mean():.0f} %",
    ]


def missing(values: Results, n_normal: int, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """Return the sizes of the parts that a set has no results of, and enough images for."""
    wanted = [*((n,) for n in options.n_images), *map(sizes_of, options.partitions)]
    return [sizes for sizes in wanted if key_of(sizes) not in values and sum(sizes) + options.n_new <= n_normal]


def key_of(sizes: Sequence[int]) -> str:
    """Return the name of sizes in the results file, as "20 + 20"."""
    return " + ".join(map(str, sizes))


def tables(values: Results) -> str:
    """Return a table of detectors that learnt all their images, and one of merged detectors."""
    by_sizes = {tuple(map(int, key.split(" + "))): results for key, results in values.items()}
    rows: dict[str, list[list[str]]] = {}
    for sizes, results in by_sizes.items():
        rows.setdefault("images of each partition" if len(sizes) > 1 else "images", []).append(row(sizes, results))
    return "\n\n".join(
        markdown_table([title, "false alarms", "found (best)", "warned"], of_title) for title, of_title in rows.items()
    )


def main() -> None:
    parser = argument_parser("benchmarks.thresholds_few_images", __doc__)
    add_set_options(parser, ["fabric", "metal", "wood"])
    parser.add_argument("--n-images", type=int, nargs="+", default=N_IMAGES)
    parser.add_argument("--partitions", nargs="*", default=PARTITIONS, help='merged detectors, as "20x8" or "40+20+80"')
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--n-new", type=int, default=200, help="normal images that are not learnt, of each order")
    parser.add_argument("--n-anomalous", type=int, help="anomalous images, drawn once (default: all)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the results file already has")
    options = parser.parse_args()
    earlier = read_results(options, "thresholds_few_images") if options.resume else {}
    values: dict[str, Results] = earlier.get("sets", {})
    runs = environments(earlier)
    for name, (normal, anomalous) in image_sets(options).items():
        rows = values.setdefault(name, {})
        if left := missing(rows, len(normal), options):
            order = np.random.default_rng(0).permutation(len(anomalous))
            anomalous = [anomalous[index] for index in order[: options.n_anomalous]]
            extractor = PatchFeatureExtractor(image_size=PatchFeatureExtractor().fit(normal).image_size_)
            with features_on_disk(extractor, normal) as good, features_on_disk(extractor, anomalous) as bad:
                for sizes in tqdm(left, desc=name, unit="row"):
                    results = [measured(sizes, good, bad, options.n_new, seed) for seed in range(options.repeats)]
                    rows[key_of(sizes)] = results
                    print(name, row(sizes, results), file=sys.stderr)
        method = METHOD.format(rate=RATE, repeats=options.repeats, new=options.n_new)
        title = "# Few images and merged detectors: false alarms and defects found"
        parts = [title, method, *environments_in_words(runs)]
        parts += [f"## {name}\n\n{tables(results)}" for name, results in values.items()]
        write_results(options, "thresholds_few_images", "\n\n".join(parts), {"environments": runs, "sets": values})


if __name__ == "__main__":
    main()

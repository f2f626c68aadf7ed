"""Accuracy with 0 to 20 % of defects among the training images, with and without `trim`, beside PaDiM and PatchCore.

Training images are drawn once from the normal and the anomalous images of a set; what is not drawn, at any share of
defects, is tested. The results are written after each fit; `--resume` computes those that are missing. The rivals need
another environment, whose interpreter is given with --rival-python: `python -m benchmarks.end_to_end --help` says how
to make it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.__main__ import RIVAL_SIZE, RIVALS_MODULE, rival_job
from benchmarks.accuracy.settings import RIVALS
from benchmarks.common.features import add_set_options, features_on_disk, image_sets
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import (
    argument_parser,
    environments,
    environments_in_words,
    markdown_table,
    read_results,
    write_results,
)
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, metrics
from ipca_sklearn.exceptions import AspectRatioWarning, FewImagesWarning

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2)
TRIMS: tuple[float | str, ...] = (0, 0.1, "auto")
METHOD = """\
Of each set {n_train} training images, of which the given share are defects, {n_test} other normal images and as many other
defects (or all others) to test; the same ones for every share and method. EfficientNet-Lite0 and the defaults of the
extractor and the detector; `trim` as in the first column. Each cell is image ROCAUC / share of the defects found / share of
normal images called anomalous, in per cent, at the threshold that the fit has learnt. *Left out*: defects among the
training images that the fit has left out / normal images that it has left out. One draw."""  # noqa: E501 (a paragraph of Markdown)

OF_RIVALS = """\
Rivals: anomalib's models on the same network, as in the pages of accuracy; ROCAUC alone, as their thresholds take
labelled images."""

Results = dict[str, dict[str, dict[str, Any]]]


class Split:
    """Which images of a set are learnt, by share of defects, and which are tested."""

    def __init__(self, normal: list[Any], defects: list[Any], n_train: int, n_test: int) -> None:
        self.images = [*normal, *defects]
        rng = np.random.default_rng(0)
        good, bad = rng.permutation(len(normal)), len(normal) + rng.permutation(len(defects))
        n_mixed = round(max(SHARES) * n_train)
        self._good, self._bad = good[:n_train], bad[:n_mixed]
        self.test = np.concatenate([good[n_train : n_train + n_test], bad[n_mixed : n_mixed + n_test]])
        self.is_defect = np.arange(len(self.images)) >= len(normal)
        self.labels = np.where(self.is_defect[self.test], -1, 1)

    def train(self, share: float) -> np.ndarray:
        """Return the images to learn, in random order."""
        n_bad = round(share * len(self._good))
        chosen = np.concatenate([self._good[: len(self._good) - n_bad], self._bad[:n_bad]])
        return np.random.default_rng(1).permutation(chosen)


def ours(options: argparse.Namespace, split: Split, done: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each fit that is not done."""
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore", AspectRatioWarning)  # tiles have many shapes
    warnings.simplefilter("ignore", FewImagesWarning)
    missing = [(share, trim) for share in options.shares for trim in TRIMS if _key(f"trim={trim!r}", share) not in done]
    if not missing:
        return
    used = np.unique(np.concatenate([split.test, *map(split.train, SHARES)]))
    size = PatchFeatureExtractor().fit(split.images[:1]).image_size_  # whichever image is drawn first
    with features_on_disk(
        PatchFeatureExtractor(image_size=size), [split.images[number] for number in used]
    ) as features:
        test = features[np.searchsorted(used, split.test)]
        for share, trim in missing:
            train = split.train(share)
            detector = PatchGaussianDetector(trim=trim)
            began = time.perf_counter()
            detector.fit(features[np.searchsorted(used, train)])
            seconds = time.perf_counter() - began
            scores = detector.score_samples(test)
            found = {
                "image_roc_auc": metrics.image_roc_auc_score(split.labels, scores),
                "found": np.mean(scores[split.labels == -1] < detector.offset_),
                "false_alarms": np.mean(scores[split.labels == 1] < detector.offset_),
                "seconds": seconds,
            }
            if trim:
                suspects = detector.suspects_
                trimmed = split.is_defect[train[suspects["index"][suspects["trimmed"]]]]
                named = split.is_defect[train[suspects["index"][suspects["q_value"] <= 0.05]]]
                found |= {"trimmed_defects": trimmed.sum(), "trimmed_normal": (~trimmed).sum()}
                found |= {"named_defects": named.sum(), "named_normal": (~named).sum()}
            yield _key(f"trim={trim!r}", share), {name: float(value) for name, value in found.items()}


def rivals(options: argparse.Namespace, split: Split, done: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each fit of a rival that is not done."""
    for share in options.shares:
        for rival in RIVALS:
            key = _key(rival.title, share)
            if key in done:
                continue
            train, test = ([split.images[number] for number in rows] for rows in (split.train(share), split.test))
            with tempfile.TemporaryDirectory() as folder:
                job, out = Path(folder, "job.json"), Path(folder, "maps.npz")
                job.write_text(json.dumps(rival_job(rival, RIVAL_SIZE, train, test, out)))
                in_fresh_process(RIVALS_MODULE, [str(job)], python=options.rival_python)
                scores = -np.load(out)["scores"]
            yield key, {"image_roc_auc": float(metrics.image_roc_auc_score(split.labels, scores))}


def _key(method: str, share: float) -> str:
    return f"{method} | {share}"


def cell(result: dict[str, Any] | None) -> str:
    """Return the figures of a fit."""
    if result is None:
        return ""
    text = " / ".join(
        f"{100 * result[name]:.1f}" for name in ("image_roc_auc", "found", "false_alarms") if name in result
    )
    if "trimmed_defects" in result:
        text += f"; left out {result['trimmed_defects']:.0f} / {result['trimmed_normal']:.0f}"
    return text


def report(values: Results, runs: list[str], options: argparse.Namespace) -> str:
    """Return the page; `runs` are the environments of all that have added to it."""
    parts = [
        "# Defects among the training images",
        METHOD.format(n_train=options.n_train, n_test=options.n_test),
        *(
            [OF_RIVALS]
            if any(rival.title in key for results in values.values() for rival in RIVALS for key in results)
            else []
        ),
        *environments_in_words(runs),
    ]
    for name, results in values.items():
        methods = [*(f"trim={trim!r}" for trim in TRIMS), *(rival.title for rival in RIVALS)]
        found = [[results.get(_key(method, share)) for share in SHARES] for method in methods]
        rows = [[method, *map(cell, row)] for method, row in zip(methods, found, strict=True) if any(row)]
        parts += [f"## {name}", markdown_table(["", *(f"{100 * share:g} % defects" for share in SHARES)], rows)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser("benchmarks.dirty_training", __doc__)
    add_set_options(parser, [])
    parser.add_argument("--n-train", type=int, default=160)
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), choices=SHARES, help="of defects")
    parser.add_argument("--resume", action="store_true", help="keep the results that the results file already has")
    options = parser.parse_args()
    earlier = read_results(options, "dirty_training") if options.resume else {}
    values: Results = earlier.get("sets", {})
    runs = environments(earlier)

    def measured(split: Split, done: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from ours(options, split, done)
        if options.rival_python:
            yield from rivals(options, split, done)

    for name, (normal, defects) in image_sets(options).items():
        done = values.setdefault(name, {})
        for key, result in measured(Split(normal, defects, options.n_train, options.n_test), done):
            done[key] = result
            print(name, key, result, file=sys.stderr)
            found = {"environments": runs, "sets": values}
            write_results(options, "dirty_training", report(values, runs, options), found, show=False)
    print(report(values, runs, options))


if __name__ == "__main__":
    main()

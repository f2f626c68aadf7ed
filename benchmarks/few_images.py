"""Accuracy with 1 to 32 training images, with shared Gaussians and one for each patch, with and without copies.

Training images are drawn at random; every method gets the same draws, and is scored on all test images. The results are
written after each number of images of a method; `--resume` keeps what the results file already has. The rivals
need another environment, whose interpreter is given with --rival-python: `python -m benchmarks.end_to_end --help` says
how to make it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from tqdm import tqdm

from benchmarks.accuracy.__main__ import RIVAL_SIZE, RIVALS_MODULE, SETS, load, rival_job
from benchmarks.accuracy.settings import RIVALS
from benchmarks.common.features import features_on_disk
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import (
    argument_parser,
    command_line,
    environment,
    markdown_table,
    read_results,
    write_results,
)
from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector, metrics

N_COPIES = 7
COPIES = {"augment": ("flip", "rotation"), "n_augmented": N_COPIES, "random_state": 0}
# Parameters of the detector, and of the extractor that gives the training images.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "256 Gaussians (the default)": ({}, {}),
    "64 Gaussians": ({"n_gaussians": 64}, {}),
    "one Gaussian": ({"n_gaussians": 1}, {}),
    "one for each patch, k = 16": ({"n_gaussians": None}, {}),
    f"256 Gaussians, {N_COPIES} copies": ({}, COPIES),
    f"64 Gaussians, {N_COPIES} copies": ({"n_gaussians": 64}, COPIES),
}
METHOD = """\
EfficientNet-Lite0 and the defaults, if the name of the method says nothing else. Copies are flipped and turned by any angle.
Each figure is the mean over draws of the training images, and in brackets the standard deviation: image ROCAUC / pixel
ROCAUC of the test images (of `--n-test` of them, where the command says so). Methods get the same draws. anomalib resizes to its own 256 x 256; its PaDiM has no covariance of
a single image. To save time one image beside those that are learnt sets the threshold, which these figures do not
depend on."""  # noqa: E501 (a paragraph of Markdown)

Results = dict[str, dict[str, dict[str, list[list[float]]]]]


def drawn(n_all: int, n_images: int, draw: int) -> np.ndarray:
    """Return the images to learn, and one more that sets a threshold."""
    return np.random.default_rng(draw).permutation(n_all)[: n_images + 1]


def some_of_the_test(data: Any, n_test: int | None) -> Any:
    """Return the set with at most so many test images, drawn once."""
    if n_test is None or n_test >= len(data.test_paths):
        return data
    rows = np.sort(np.random.default_rng(0).permutation(len(data.test_paths))[:n_test])
    parts = {name: [data[name][row] for row in rows] for name in ("test_paths", "mask_paths")}
    return Bunch(**{**data, **parts, "test_labels": data.test_labels[rows]})


def roc_aucs(labels: np.ndarray, scores: np.ndarray, masks: np.ndarray, maps: np.ndarray) -> list[float]:
    """Return image and pixel ROCAUC in per cent; scores are larger for anomalous images."""
    pixels = metrics.resize_maps(maps, masks.shape[1:])
    found = metrics.image_roc_auc_score(labels, -scores), metrics.pixel_roc_auc_score(masks, pixels)
    return [round(100 * float(value), 3) for value in found]


def missing(options: argparse.Namespace, done: Any, method: str) -> Any:
    """Return the numbers of images that a method has not learnt yet, with a progress bar."""
    return tqdm([n for n in options.n_images if str(n) not in done.get(method, {})], desc=method, unit="size")


def ours(options: argparse.Namespace, data: Any, done: Any) -> Iterator[tuple[str, int, list[list[float]]]]:
    """Yield each of our methods, a number of images that it has not learnt yet, and the figures of all draws."""
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        plain = PatchFeatureExtractor(cache=FeatureCache(folder, max_bytes=20_000_000_000)).fit(data.train_paths)
        masks = plain.transform_masks(data.mask_paths, data.test_paths)
        with features_on_disk(PatchFeatureExtractor(image_size=plain.image_size_), data.test_paths) as test:
            for name, (gaussians, copies) in METHODS.items():
                for n_images in missing(options, done, name):
                    results = []
                    for draw in range(options.draws):
                        chosen = [data.train_paths[index] for index in drawn(len(data.train_paths), n_images, draw)]
                        extractor = PatchFeatureExtractor(image_size=plain.image_size_, cache=plain.cache, **copies)
                        detector = PatchGaussianDetector(calibration=1 / (n_images + 1), **gaussians)
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            detector.fit(extractor.fit_transform(chosen))
                        maps = detector.transform(test)
                        results.append(roc_aucs(data.test_labels, -detector.score_maps(maps), masks, maps))
                    yield name, n_images, results


def rivals(options: argparse.Namespace, data: Any, done: Any) -> Iterator[tuple[str, int, list[list[float]]]]:
    """Yield what `ours` does, of each method of anomalib."""
    masks = PatchFeatureExtractor(image_size=RIVAL_SIZE).transform_masks(data.mask_paths, data.test_paths)
    for rival in RIVALS:
        for n_images in missing(options, done, rival.title):
            if n_images == 1 and rival.kind == "padim":
                continue
            with tempfile.TemporaryDirectory() as folder:
                jobs = []
                for draw in range(options.draws):
                    job, out = Path(folder, f"{draw}.json"), Path(folder, f"{draw}.npz")
                    chosen = [data.train_paths[index] for index in drawn(len(data.train_paths), n_images, draw)[:-1]]
                    job.write_text(json.dumps(rival_job(rival, RIVAL_SIZE, chosen, data.test_paths, out)))
                    jobs.append(str(job))
                in_fresh_process(RIVALS_MODULE, jobs, python=options.rival_python)
                outputs = (np.load(Path(job).with_suffix(".npz")) for job in jobs)
                yield (
                    rival.title,
                    n_images,
                    [roc_aucs(data.test_labels, given["scores"], masks, given["maps"]) for given in outputs],
                )


def cell(found: Sequence[Sequence[float]]) -> str:
    """Return means and standard deviations of both figures."""
    values = np.array(found)
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(2, np.nan)
    return " / ".join(
        f"{mean:.1f}" + ("" if np.isnan(spread) else f" ({spread:.1f})")
        for mean, spread in zip(values.mean(axis=0), deviation, strict=True)
    )


def report(values: Results, commands: dict[str, list[str]]) -> str:
    """Return the page; `commands` are those that measured each set."""
    parts = ["# Few images: accuracy with 1 to 32 of them", METHOD, environment()]
    for name, methods in values.items():
        sizes = sorted({int(n) for results in methods.values() for n in results})
        rows = [
            [method, *(cell(results[str(n)]) if str(n) in results else "" for n in sizes)]
            for method, results in methods.items()
        ]
        n_draws = max(len(found) for results in methods.values() for found in results.values())
        by = ", ".join(f"`{command}`" for command in commands[name])
        parts += [f"## {SETS[name][1]}, {n_draws} draws", f"By {by}."]
        parts.append(markdown_table(["images", *map(str, sizes)], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser("benchmarks.few_images", __doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("root", type=Path, help="folder of the images")
    parser.add_argument("--n-images", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--n-test", type=int, help="test images, drawn once (default: all)")
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--resume", action="store_true", help="keep the results that the results file already has")
    options = parser.parse_args()
    stored = read_results(options, "few_images") if options.resume else {}
    values: Results = stored.get("sets", {})
    commands = stored.get("commands", {})
    commands[options.set] = list(dict.fromkeys([*commands.get(options.set, []), command_line(options)]))
    data, done = some_of_the_test(load(options.set, options.root), options.n_test), values.setdefault(options.set, {})

    def measured() -> Iterator[tuple[str, int, list[list[float]]]]:
        yield from ours(options, data, done)
        if options.rival_python:
            yield from rivals(options, data, done)

    for method, n_images, found in measured():
        done.setdefault(method, {})[str(n_images)] = found
        print(options.set, method, n_images, cell(found), file=sys.stderr)
        results_of_all = {"environment": environment(), "commands": commands, "sets": values}
        write_results(options, "few_images", report(values, commands), results_of_all, show=False)
    print(report(values, commands))


if __name__ == "__main__":
    main()

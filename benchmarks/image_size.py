"""What `image_size`, a region of interest and large files cost: speed, memory, size of the model, decoding.

The pictures are JPEG files of 12 megapixels (4000 x 3000), each a mosaic of drawn textures. Every row of the first two
tables runs in a fresh process. The third compares the full decode of a file with decoders that halve the picture once
or several times while they decode it (libjpeg's scaled decoding, `PIL.Image.Image.draft`), by the maps of a model
that has learnt full decodes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, markdown_table, spread, write_results

WIDTH, HEIGHT, TILE = 4000, 3000, 256
SIDES = (256, 512, 1024)
SCALES = (2, 4, 8)
LIMIT = 0.01  # a change of the maps that would be allowed


def draw(folder: Path, n_images: int, shrink: float) -> list[Path]:
    """Write JPEG files of mosaics of textures, their sides divided by `shrink`, and return their paths."""
    import numpy as np
    from PIL import Image

    from ipca_sklearn.datasets import make_textures

    rng = np.random.default_rng(0)
    tiles = make_textures(48, 2, material="stone", size=TILE, random_state=0).train_images
    paths = []
    for number in range(n_images):
        picture = Image.new("RGB", (int(WIDTH / shrink), int(HEIGHT / shrink)))
        for top in range(0, picture.height, TILE):
            for left in range(0, picture.width, TILE):
                picture.paste(Image.fromarray(tiles[rng.integers(len(tiles))]), (left, top))
        paths.append(folder / f"{number:03}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def measure(paths: Sequence[Path], side: int, region: bool) -> dict[str, float]:
    """Learn all pictures at a size and score some, and return seconds and megabytes."""
    import io

    import joblib
    import numpy as np
    import torch

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

    torch.set_grad_enabled(False)
    half = np.zeros((HEIGHT // 100, WIDTH // 100), dtype=bool)
    half[:, : half.shape[1] // 2] = True
    extractor = PatchFeatureExtractor("efficientnet_lite0", image_size=side, region=half if region else None)
    PatchGaussianDetector(2).fit(torch.randn(80, 4, 8))  # starts the libraries
    _ = extractor.fit(paths).engine_  # compiled before the clock starts
    before = restart_peak()
    started = time.perf_counter()
    features = extractor.fit(paths).transform(paths)
    said = PatchGaussianDetector().memory_needed(features)
    detector = PatchGaussianDetector().fit(features)
    learnt = time.perf_counter()
    peak = peak_mb() - before
    scored = features[:16]
    detector.transform(scored)
    ended = time.perf_counter()
    stored = io.BytesIO()
    joblib.dump(detector, stored)
    return {
        "train_images_per_s": len(paths) / (learnt - started),
        "test_images_per_s": len(scored) / (ended - learnt),
        "peak_mb": peak,
        "said_mb": said.learning / 1e6,
        "model_mb": stored.tell() / 1e6,
        "n_patches": math.prod(detector.patch_shape_) if detector.region_ is None else int(detector.region_.sum()),
    }


def decode(path: Path, scale: int) -> Any:
    """Return a file as an array, decoded at 1 / scale of its size."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        if scale > 1:
            picture.draft("RGB", (picture.width // scale, picture.height // scale))
        return np.asarray(picture)


def compare_decoders(paths: Sequence[Path], side: int) -> list[dict[str, float]]:
    """Return seconds per file of each scale, and by how much maps differ from those of the full decode."""
    import numpy as np
    import torch

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

    torch.set_grad_enabled(False)
    n_test = len(paths) // 4
    extractor = PatchFeatureExtractor("efficientnet_lite0", image_size=side)
    detector = PatchGaussianDetector(8).fit(extractor.fit(paths).transform(paths[n_test:]))
    reference, rows = None, []
    for scale in (1, *SCALES):
        seconds = []
        pictures = []
        for path in paths[:n_test]:
            start = time.perf_counter()
            pictures.append(decode(path, scale))
            seconds.append(time.perf_counter() - start)
        maps = detector.transform(extractor.transform(pictures))
        if reference is None:
            reference = maps
        change = np.abs(maps / reference - 1)
        scores = np.abs(maps.max((1, 2)) / reference.max((1, 2)) - 1)
        rows.append(
            {
                "side": side,
                "scale": scale,
                "ms": [1000 * value for value in seconds],
                "mean": float(change.mean()),
                "p99": float(np.quantile(change, 0.99)),
                "max": float(change.max()),
                "score": float(scores.max()),
            }
        )
    return rows


def run(options: argparse.Namespace) -> None:
    """Measure all tables and write the page."""
    with tempfile.TemporaryDirectory() as name:
        paths = draw(Path(name), options.n_images, options.shrink)
        sizes, regions = [], []
        for side in tqdm([side // options.shrink for side in SIDES], unit="size"):
            arguments = ["--measure", json.dumps({"paths": [str(path) for path in paths], "side": side})]
            runs = [in_fresh_process(options.module, arguments) for _ in range(options.repeats)]
            sizes.append({"side": side, "runs": runs})
            if side == SIDES[0] // options.shrink:
                arguments.append("--region")
                halves = [in_fresh_process(options.module, arguments) for _ in range(options.repeats)]
                regions = [{"region": "none", "runs": runs}, {"region": "the left half", "runs": halves}]
        decoders = []
        for side in (SIDES[0] // options.shrink, SIDES[1] // options.shrink):
            decoders += compare_decoders(paths[: options.n_decoded], side)
    width, height = WIDTH // options.shrink, HEIGHT // options.shrink
    text = f"""# Large images, and regions of interest

{options.n_images} JPEG files of {width} x {height} pixels, EfficientNet-Lite0 and the defaults (256 Gaussians, k = 96);
each row: {options.repeats} fresh process(es), median (range). Speed includes decoding, with one thread.
Memory is over that of the imports. "Said" is `PatchGaussianDetector.memory_needed`, before the first step.

{environment()}

{_table("image_size", "side", sizes)}

A region of interest, `image_size={SIDES[0] // options.shrink}`.

{_table("region", "region", regions)}

Scaled decoding: maps of a model (k = 8) that has learnt full decodes, relative to the map of the full decode.

{_decoders(decoders)}

{_verdict(decoders)}"""
    values = {"environment": environment(), "sizes": sizes, "regions": regions, "decoders": decoders}
    write_results(options, "image_size", text, values)


def _table(title: str, key: str, results: list[dict[str, Any]]) -> str:
    header = [
        title,
        "P",
        "learning, images/s",
        "scoring, images/s",
        "peak MB",
        "said MB",
        "model MB",
    ]
    rows = []
    for result in results:
        column = {name: [run[name] for run in result["runs"]] for name in result["runs"][0]}
        row = [str(result[key]), str(column["n_patches"][0])]
        row += [spread(column[name]) for name in ("train_images_per_s", "test_images_per_s")]
        row += [spread(column["peak_mb"], 0), f"{column['said_mb'][0]:.0f}", f"{column['model_mb'][0]:.1f}"]
        rows.append(row)
    return markdown_table(header, rows)


def _decoders(results: list[dict[str, Any]]) -> str:
    header = [
        "image_size",
        "decoded at",
        "decoding, ms",
        "mean change",
        "99 % of patches",
        "largest",
        "largest of a score",
    ]
    rows = []
    for result in results:
        scale = "full size" if result["scale"] == 1 else f"1/{result['scale']}"
        changes = [f"{100 * result[name]:.2f} %" for name in ("mean", "p99", "max", "score")]
        rows.append([str(result["side"]), scale, f"{statistics.median(result['ms']):.0f}", *changes])
    return markdown_table(header, rows)


def _verdict(results: list[dict[str, Any]]) -> str:
    kept = [f"1/{row['scale']} at {row['side']}" for row in results if row["scale"] > 1 and row["max"] <= LIMIT]
    if kept:
        return f"Within {LIMIT:.0%} of the full decode at every patch: {', '.join(kept)}."
    return f"None stays within {LIMIT:.0%} of the full decode at every patch: the package decodes files in full."


def main() -> None:
    parser = argument_parser("benchmarks.image_size", __doc__)
    parser.add_argument("--n-images", type=int, default=80)
    parser.add_argument("--n-decoded", type=int, default=40, help="images for the comparison of decoders")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this, for a trial")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--region", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        job = json.loads(options.measure)
        print(json.dumps(measure([Path(path) for path in job["paths"]], job["side"], options.region)))
    else:
        run(options)


if __name__ == "__main__":
    main()

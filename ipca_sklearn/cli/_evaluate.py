"""`evaluate`: figures of a model on labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._precision import above, below
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli._alarms import WORSE, doubt_of_normal
from ipca_sklearn.cli._common import Device, ModelFile, Product, open_model
from ipca_sklearn.cli._figures import draw_pimo, draw_roc, print_report
from ipca_sklearn.cli._learnt import unseen
from ipca_sklearn.cli._outputs import PICTURES, Output, check_outputs
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.cli._reviewed import ReviewedFile, read_reviewed
from ipca_sklearn.cli._text import warn
from ipca_sklearn.datasets._folders import NORMAL_TYPE, Sample, make_bunch
from ipca_sklearn.datasets._mvtec import list_test_images
from ipca_sklearn.detection._expected import expected_rate
from ipca_sklearn.exceptions import AspectRatioWarning, MaskWarning
from ipca_sklearn.inspection._provenance import file_digest
from ipca_sklearn.metrics import evaluation_report


def evaluate(
    model: ModelFile,
    root: Annotated[
        Path | None,
        typer.Argument(
            metavar="ROOT",
            help="Folder with test/good and test/<type>, and masks ground_truth/<type>/<name>_mask.png for the figures "
            "of pixels. train/good is not needed.",
        ),
    ] = None,
    reviewed: ReviewedFile = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the ROC curves of all images and of each type, and the threshold."),
    ] = None,
    pimo: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw how much of each defect is found where normal images have few alarms."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; null is a figure that these images do not give.")
    ] = False,
    product: Product = None,
    device: Device = "auto",
) -> None:
    """Test a model on labelled images in MVTec AD's layout.

    For each type of defect: ROCAUC, average precision and the largest F1 score of images and of pixels, the share of
    images found and the F1 score of the marked pixels at the learnt thresholds, AUPRO and AUPIMO of the regions, and at
    the learnt threshold how much of each defect is marked (PRO), the F1 score of defects and how many are found by
    their size, with 95 % intervals. Good images that the model has learnt are left out, and so are their copies. The
    figures of pixels are of the images with a mask, inside of the region of interest. Warnings tell if images of a kind
    are fewer than 30, and if the normal images are not those that the model expects. With --reviewed in place of a
    folder, the labels are the ticks of a report, and there are no figures of pixels.
    """
    if (root is None) == (reviewed is None):
        raise ValueError("name a folder in MVTec AD's layout, or --reviewed with a file of ticks, and not both")
    folders = [] if root is None else [root / part for part in ("train", "test", "ground_truth")]
    pictures = [("--picture", picture), ("--pimo", pimo)]
    outputs = [None if path is None else Output(option, path, PICTURES) for option, path in pictures]
    check_outputs(outputs, files=[model, *([] if reviewed is None else [reviewed])], folders=folders)
    pipe = open_model(model, device, product=product)
    data = test_images(root, reviewed, pipe)
    extractor, detector = pipe[0], pipe[-1]
    normal = data.test_labels == 1
    # Before the network runs: a wrong mask is told at once.
    masks = extractor.transform_masks(data.mask_paths, data.test_paths)
    has_mask = normal | [path is not None for path in data.mask_paths]
    if root is not None:
        warn_of_masks(root / "ground_truth", data.mask_paths, masks, normal, has_mask)
    maps = maps_of(pipe, data.test_paths)
    scores = detector.score_maps(maps)
    with masks_are_checked():
        report = evaluation_report(
            data.test_labels,
            scores,
            masks,
            maps,
            marked=above(maps, detector.map_threshold_),
            offset=detector.offset_,
            defect_types=data.defect_types,
            has_mask=has_mask,
            region=detector.map_region_,
        )
    rate = expected_rate(detector)
    if as_json:
        source = {"file": printable(model.name), "SHA-256": file_digest(model), "product": product}
        settings = {"expected_false_positive_rate": rate, "offset": float(detector.offset_), "worse_scores": "lower"}
        images = printable(root if reviewed is None else reviewed)
        typer.echo(to_json(report | settings | {"model": source, "images": images}))
    else:
        print_report(report)
        typer.echo(f"images that score below {detector.offset_:.4g} are anomalous: {WORSE}")
    n_alarms = int(np.sum(below(scores[normal], detector.offset_)))
    doubt = doubt_of_normal(scores[normal], detector.calibration_scores_, n_alarms, rate)
    if doubt is not None:
        warn(doubt)
    if picture is not None:
        if normal.all() or not normal.any():
            warn("no ROC curve is drawn: it needs normal and anomalous images")
        else:
            draw(picture, draw_roc, data.test_labels, scores, data.defect_types, detector.offset_)
    if pimo is not None:
        if report["defects"][0]["aupimo"] is None:
            warn("no PIMO curve is drawn: it needs masks, and normal images with enough pixels for AUPIMO")
        else:
            shown = has_mask & (normal | masks.any(axis=(1, 2)))
            with masks_are_checked():
                draw(pimo, draw_pimo, masks[shown], maps[shown], data.defect_types[shown], detector.map_region_)


def test_images(root: Path | None, reviewed: Path | None, *models: Pipeline) -> Bunch:
    """Return the images of a folder in MVTec AD's layout, or of a file of ticks, without good ones that were learnt."""
    if root is not None:
        tests = list_test_images(root, all_masks=False)
    else:
        assert reviewed is not None
        ticks = read_reviewed(reviewed)
        tests = [Sample(path, NORMAL_TYPE, None) for path in ticks.good]
        tests += [Sample(path, "defect", None) for path in ticks.defects]
    for model in models:
        new = set(unseen(model, [test.path for test in tests if test.defect_type == NORMAL_TYPE]))
        tests = [test for test in tests if test.defect_type != NORMAL_TYPE or test.path in new]
    if not tests:
        source = reviewed if root is None else root
        assert source is not None
        raise ValueError(f"{printable(source)} has no image that is not learnt: there is nothing to test with")
    return make_bunch([], tests, "")


def maps_of(pipe: Pipeline, paths: list[Path]) -> np.ndarray:
    """Return the maps of images, and show the progress."""
    features = pipe[0].transform(paths)
    steps: list[np.ndarray] = []
    size = pipe[-1].step_size or 16
    with Progress(len(paths)) as progress:
        for start in range(0, len(paths), size):
            steps.append(pipe[-1].transform(features[start : start + size]))
            progress.show(start + len(steps[-1]))
    return np.concatenate(steps)


@contextmanager
def masks_are_checked() -> Iterator[None]:
    """Without warnings of masks: those that mark nothing have been named, and maps lie over them whatever the grid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=MaskWarning)
        warnings.filterwarnings("ignore", category=AspectRatioWarning)
        yield


def warn_of_masks(
    folder: Path, paths: list[Path | None], masks: np.ndarray, normal: np.ndarray, has_mask: np.ndarray
) -> None:
    """Say which anomalous images have no mask, and which masks mark nothing of what is inspected."""
    if not has_mask.all():
        warn(
            f"{np.sum(~has_mask)} of {np.sum(~normal)} anomalous images have no mask in {printable(folder)}: the "
            "figures of pixels leave them out"
        )
    empty = [path for path, mask in zip(paths, masks, strict=True) if path is not None and not mask.any()]
    if empty:
        shown = ", ".join(map(printable, empty[:3]))
        warn(
            f"{len(empty)} of {np.sum(~normal)} anomalous images have a mask that marks nothing of what is inspected "
            f"({shown}{', ...' if len(empty) > 3 else ''}): their pixels count as normal"
        )


def draw(path: Path, draw: Callable[..., None], *arguments: Any) -> None:
    with naming(path):
        draw(path, *arguments)
    typer.echo(f"picture: {printable(path)}", err=True)

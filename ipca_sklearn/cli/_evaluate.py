"""`evaluate` and `compare`: figures of one model, or of two, on labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._messages import first_few
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli._arguments import Device, ModelFile, Product, ReviewedFile, open_model, read_ticks
from ipca_sklearn.cli._outputs import PICTURES, check_outputs, optional_output
from ipca_sklearn.cli._predict import ADVICE
from ipca_sklearn.cli._terminal import Progress, threshold_in_words, warn

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline
    from sklearn.utils import Bunch

# A test that normal images pass warns of one set in 1000 by chance.
_SIGNIFICANCE = 1e-3
# The largest difference between two distributions (0 to 1) that is worth a warning, however many images show it.
_LARGEST_DIFFERENCE = 0.35
_MIN_IMAGES = 10

AsJson = typer.Option("--json", help="Print JSON; null is a figure that these images do not give.")


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
    as_json: Annotated[bool, AsJson] = False,
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
    import numpy as np

    from ipca_sklearn._utils._precision import above, below
    from ipca_sklearn.cli._figures import draw_pimo, draw_roc, print_report
    from ipca_sklearn.inspection import model_card
    from ipca_sklearn.metrics import evaluation_report

    outputs = optional_output("--picture", picture, PICTURES) + optional_output("--pimo", pimo, PICTURES)
    check_outputs(outputs, files=[model, reviewed], folders=_folders_read(root, reviewed))
    pipe = open_model(model, device, product=product)
    data = _labelled_images(root, reviewed, pipe)
    extractor, detector = pipe[0], pipe[-1]
    normal = data.test_labels == 1
    # Before the network runs: a wrong mask is an error at once.
    masks = extractor.transform_masks(data.mask_paths, data.test_paths)
    has_mask = normal | [path is not None for path in data.mask_paths]
    if root is not None:
        _warn_of_masks(root, data, masks, has_mask)
    maps = _maps_of(pipe, data.test_paths)
    scores = detector.score_maps(maps)
    with _mask_warnings_ignored():
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
    facts = model_card(pipe, file=model).to_dict()
    rate = facts["expected share of normal images called anomalous"]
    if as_json:
        source = {"file": printable(model.name), "SHA-256": facts["SHA-256"], "product": product}
        settings = {"expected_false_positive_rate": rate, "offset": float(detector.offset_), "worse_scores": "lower"}
        images = printable(root if reviewed is None else reviewed)
        typer.echo(to_json(report | settings | {"model": source, "images": images}))
    else:
        print_report(report)
        typer.echo(threshold_in_words(detector.offset_))
    n_alarms = int(np.sum(below(scores[normal], detector.offset_)))
    warning = warning_of_normal_images(scores[normal], detector.calibration_scores_, n_alarms, rate)
    if warning is not None:
        warn(warning)
    if picture is not None:
        if normal.all() or not normal.any():
            warn("no ROC curve is drawn: it needs normal and anomalous images")
        else:
            _draw(picture, draw_roc, data.test_labels, scores, data.defect_types, detector.offset_)
    if pimo is not None:
        if report["defects"][0]["aupimo"] is None:
            warn("no PIMO curve is drawn: it needs masks, and normal images with enough pixels for AUPIMO")
        else:
            shown = has_mask & (normal | masks.any(axis=(1, 2)))
            with _mask_warnings_ignored():
                _draw(pimo, draw_pimo, masks[shown], maps[shown], data.defect_types[shown], detector.map_region_)


def compare(
    a: ModelFile,
    b: ModelFile,
    root: Annotated[
        Path | None,
        typer.Argument(metavar="ROOT", help="Folder in MVTec AD's layout, as `ipca-sklearn evaluate` takes it."),
    ] = None,
    reviewed: ReviewedFile = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw both ROC curves, and the differences with their intervals.")
    ] = None,
    as_json: Annotated[bool, AsJson] = False,
    product: Product = None,
    device: Device = "auto",
) -> None:
    """Test two models on the same images: the differences, and how sure they are.

    Prints the measures of `evaluate` for both models, the difference (b less a) with its 95 % interval, and the p-value
    of no difference: of the ROCAUC of images by DeLong's method, of the others by a paired bootstrap over the images.
    Good images that one of the models has learnt are left out for both. There are figures of pixels if both models
    inspect the same part of the images.
    """
    from ipca_sklearn._utils._precision import above
    from ipca_sklearn.cli._figures import draw_comparison, print_comparison
    from ipca_sklearn.metrics import compare_scores

    folders = _folders_read(root, reviewed)
    check_outputs(optional_output("--picture", picture, PICTURES), files=[a, b, reviewed], folders=folders)
    pipes = open_model(a, device, product=product), open_model(b, device, product=product)
    data = _labelled_images(root, reviewed, *pipes)
    normal = data.test_labels == 1
    same_part = _same_part(*pipes)
    has_mask = normal | [path is not None for path in data.mask_paths]
    masks = None
    if same_part and root is not None:
        finer = max(pipes, key=lambda pipe: pipe[0].crop_size_)
        masks = finer[0].transform_masks(data.mask_paths, data.test_paths)
        _warn_of_masks(root, data, masks, has_mask)
    maps = [_maps_of(pipe, data.test_paths) for pipe in pipes]
    scores = [pipe[-1].score_maps(values) for pipe, values in zip(pipes, maps, strict=True)]
    of_pixels: dict[str, Any] = {}
    if masks is not None:
        marked = [above(values, pipe[-1].map_threshold_) for pipe, values in zip(pipes, maps, strict=True)]
        of_pixels = {"masks": masks, "maps": maps, "marked": marked, "has_mask": has_mask}
        of_pixels |= {"region": pipes[0][-1].map_region_}
    with _mask_warnings_ignored():
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
        _draw(picture, draw_comparison, report, data.test_labels, scores, [a.stem, b.stem])


def _same_part(a: Pipeline, b: Pipeline) -> bool:
    """Return whether the patches of two models cover the same part of an image, to a hundredth of its sides."""
    import numpy as np

    boxes = [pipe[0].covered_box((1000, 1000)) for pipe in (a, b)]
    regions = [pipe[-1].map_region_ for pipe in (a, b)]
    same_region = regions[0] is regions[1] is None or np.array_equal(*regions)
    return same_region and np.allclose(boxes[0], boxes[1], rtol=0, atol=10)


def _folders_read(root: Path | None, reviewed: Path | None) -> list[Path]:
    """Return the folders of a data set; it is an error to name both it and a file of ticks, or none."""
    if (root is None) == (reviewed is None):
        raise ValueError("name a folder in MVTec AD's layout, or --reviewed with a file of ticks, and not both")
    return [] if root is None else [root / part for part in ("train", "test", "ground_truth")]


def _labelled_images(root: Path | None, reviewed: Path | None, *models: Pipeline) -> Bunch:
    """Return the images of a folder in MVTec AD's layout, or of a file of ticks, without good ones that were learnt."""
    import numpy as np
    from sklearn.utils import Bunch

    from ipca_sklearn.cli._training_images import without_learnt
    from ipca_sklearn.datasets import load_test_images

    if reviewed is None:
        assert root is not None
        data = load_test_images(root)
    else:
        ticks = read_ticks(reviewed)
        paths, labels = [*ticks.good, *ticks.defects], np.repeat([1, -1], [len(ticks.good), len(ticks.defects)])
        data = Bunch(test_paths=paths, test_labels=labels, mask_paths=[None] * len(paths))
        data.defect_types = np.where(labels == 1, "good", "defect")
    good = [path for path, label in zip(data.test_paths, data.test_labels, strict=True) if label == 1]
    for model in models:
        good = without_learnt(model, good)
    new = set(good)
    kept = [index for index, path in enumerate(data.test_paths) if data.test_labels[index] == -1 or path in new]
    if not kept:
        name = printable(root if reviewed is None else reviewed)
        raise ValueError(f"{name} has no image that is not learnt: there is nothing to test with")
    return Bunch(
        test_paths=[data.test_paths[index] for index in kept],
        test_labels=data.test_labels[kept],
        mask_paths=[data.mask_paths[index] for index in kept],
        defect_types=data.defect_types[kept],
    )


def _maps_of(pipe: Pipeline, paths: list[Path]) -> np.ndarray:
    import numpy as np

    features = pipe[0].transform(paths)
    steps: list[np.ndarray] = []
    size = pipe[-1].step_size or 16
    with Progress(len(paths)) as progress:
        for start in range(0, len(paths), size):
            steps.append(pipe[-1].transform(features[start : start + size]))
            progress.show(start + len(steps[-1]))
    return np.concatenate(steps)


@contextmanager
def _mask_warnings_ignored() -> Iterator[None]:
    """Ignore warnings of masks: those that mark nothing have been named, and maps lie over them whatever the grid."""
    from ipca_sklearn.exceptions import AspectRatioWarning, MaskWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=MaskWarning)
        warnings.filterwarnings("ignore", category=AspectRatioWarning)
        yield


def _warn_of_masks(root: Path, data: Bunch, masks: np.ndarray, has_mask: np.ndarray) -> None:
    """Print which anomalous images have no mask, and which masks mark nothing of what is inspected."""
    n_anomalous, folder = (data.test_labels == -1).sum(), printable(root / "ground_truth")
    if not has_mask.all():
        warn(
            f"{(~has_mask).sum()} of {n_anomalous} anomalous images have no mask in {folder}: the "
            "figures of pixels leave them out"
        )
    empty = [path for path, mask in zip(data.mask_paths, masks, strict=True) if path is not None and not mask.any()]
    if empty:
        warn(
            f"{len(empty)} of {n_anomalous} anomalous images have a mask that marks nothing of what is inspected "
            f"({first_few([*map(printable, empty)])}): their pixels count as normal"
        )


def warning_of_normal_images(
    scores: np.ndarray, calibration_scores: np.ndarray, n_alarms: int, rate: float
) -> str | None:
    """Return what is wrong with the scores of images that are known to be normal, or None.

    `n_alarms` of them are called anomalous; a share of `rate` may be. The threshold comes from the calibration scores.
    """
    import numpy as np
    from scipy.stats import binomtest, ks_2samp

    n = len(scores)
    if n == 0:
        return None
    if binomtest(n_alarms, n, min(1.0, rate), alternative="greater").pvalue < _SIGNIFICANCE:
        return (
            f"{n_alarms} of {n} normal images ({n_alarms / n:.0%}) are called anomalous where about {rate:.1%} were "
            f"expected: the threshold does not hold for these images. {ADVICE}"
        )
    if n < _MIN_IMAGES or len(calibration_scores) < _MIN_IMAGES:
        return None
    test = ks_2samp(scores, calibration_scores)  # that is: how far the p-values are from uniform
    if test.pvalue >= _SIGNIFICANCE or test.statistic <= _LARGEST_DIFFERENCE:
        return None
    median = float(np.mean(calibration_scores <= np.median(scores)))
    if median < 0.5:
        return (
            f"the {n} normal images are less normal than the unseen ones of the fit: half of their p-values are below "
            f"{median:.2g}, where 0.5 is expected. {ADVICE}"
        )
    return (
        f"the {n} normal images are more normal than the unseen ones of the fit: half of their p-values are above "
        f"{median:.2g}, where 0.5 is expected. Were they learnt? Then test with others. Else they show less than those "
        "of the fit: look at the light and the focus"
    )


def _draw(path: Path, draw: Callable[..., None], *arguments: Any) -> None:
    with naming(path):
        draw(path, *arguments)
    typer.echo(f"picture: {printable(path)}", err=True)

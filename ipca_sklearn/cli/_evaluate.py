"""`evaluate`, `info` and `export`: figures of a model, its settings, and a file for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli._alarms import asked_rate, doubt_of_normal
from ipca_sklearn.cli._common import Device, ModelFile, open_model
from ipca_sklearn.cli._outputs import ONNX, PICTURES, Output, check_outputs
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.cli._text import warn
from ipca_sklearn.datasets._folders import make_bunch
from ipca_sklearn.datasets._mvtec import list_test_images
from ipca_sklearn.export import to_onnx
from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score


def evaluate(
    model: ModelFile,
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT",
            help="Folder with test/good and test/<type>, and masks ground_truth/<type>/<name>_mask.png for the figures "
            "of pixels. train/good is not needed.",
        ),
    ],
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the ROC curves of the images.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; null is a figure that these images do not give.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Test a model on labelled images in MVTec AD's layout.

    The figures are ROCAUC of images and of pixels, AUPRO and the share of images found, for each type of defect. Those
    of pixels are of the images with a mask. A warning tells if the normal images are not those that the model expects.
    """
    folders = [root / part for part in ("train", "test", "ground_truth")]
    check_outputs([None if picture is None else Output("--picture", picture, PICTURES)], files=[model], folders=folders)
    data = make_bunch([], list_test_images(root, all_masks=False), "")
    pipe = open_model(model, device)
    extractor, detector = pipe[0], pipe[-1]
    features = extractor.transform(data.test_paths)
    steps: list[np.ndarray] = []
    size = detector.step_size or 16
    with Progress(len(data.test_paths)) as progress:
        for start in range(0, len(data.test_paths), size):
            steps.append(detector.transform(features[start : start + size]))
            progress.show(start + len(steps[-1]))
    maps = np.concatenate(steps)
    scores = detector.score_maps(maps)
    masks = extractor.transform_masks(data.mask_paths)
    normal = data.test_labels == 1
    with_pixels = normal | [path is not None for path in data.mask_paths]
    if not with_pixels.all():
        warn(
            f"{np.sum(~with_pixels)} of {np.sum(~normal)} anomalous images have no mask in "
            f"{root / 'ground_truth'}: the figures of pixels leave them out"
        )
    table = []
    for name in ["all", *sorted(set(data.defect_types[~normal]))]:
        chosen = normal | (data.defect_types == name) if name != "all" else np.ones_like(normal)
        pixels = chosen & with_pixels
        table.append(
            {
                "defects": name,
                "n_images": int(np.sum(chosen & ~normal)),
                "image_roc_auc": _figure(image_roc_auc_score, data.test_labels[chosen], scores[chosen]),
                "pixel_roc_auc": _figure(pixel_roc_auc_score, masks[pixels], maps[pixels]),
                "aupro": _figure(aupro_score, masks[pixels], maps[pixels]),
                "found": _share(scores[chosen & ~normal] < detector.offset_),
            }
        )
    false_alarms = _share(scores[normal] < detector.offset_)
    rate = asked_rate(detector.false_positive_rate, detector.calibration_scores_, detector.offset_)
    if as_json:
        facts = {"n_normal": int(normal.sum()), "false_alarms": false_alarms, "expected_false_alarms": rate}
        typer.echo(to_json({"defects": table, **facts}))
    else:
        _print(table)
        if false_alarms is None:
            typer.echo("there are no normal images")
        else:
            typer.echo(f"{false_alarms:.0%} of {normal.sum()} normal images are called anomalous")
    n_alarms = int(np.sum(scores[normal] < detector.offset_))
    doubt = doubt_of_normal(scores[normal], detector.calibration_scores_, n_alarms, rate)
    if doubt is not None:
        warn(doubt)
    if picture is not None:
        if normal.all() or not normal.any():
            warn("no ROC curve is drawn: it needs normal and anomalous images")
            return
        with naming(picture):
            _draw_roc(picture, data, scores)
        typer.echo(f"picture: {printable(picture)}", err=True)


def _figure(measure: Callable[..., float], labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Return a measure of how labels are told apart, or None if there is one kind of label only."""
    return float(measure(labels, scores)) if len(np.unique(labels)) > 1 else None


def _share(chosen: np.ndarray) -> float | None:
    return float(np.mean(chosen)) if len(chosen) else None


def _print(table: list[dict[str, Any]]) -> None:
    """Print a table of figures; "-" stands for those that the images do not give."""
    names = [printable(row["defects"]) for row in table]
    width = max(map(len, names))
    typer.echo(f"{'':{width}}  images  image ROCAUC  pixel ROCAUC  AUPRO  found")
    for name, row in zip(names, table, strict=True):
        shown = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("image_roc_auc", "pixel_roc_auc", "aupro")]
        found = "-" if row["found"] is None else f"{row['found']:.0%}"
        typer.echo(f"{name:{width}}  {row['n_images']:6d}  {shown[0]:>12}  {shown[1]:>12}  {shown[2]:>5}  {found:>5}")


def _draw_roc(path: Path, data: Any, scores: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")  # to write a file without opening a window
    from matplotlib import pyplot as plt
    from sklearn.metrics import RocCurveDisplay

    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    normal = data.test_labels == 1
    for name in ["all", *sorted(set(data.defect_types[~normal]))]:
        chosen = normal | (data.defect_types == name) if name != "all" else np.ones_like(normal)
        RocCurveDisplay.from_predictions(
            data.test_labels[chosen] == -1, -scores[chosen], name=name, ax=axes, plot_chance_level=name == "all"
        )
    axes.set(xlabel="Share of normal images called anomalous", ylabel="Share of anomalous images found")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def info(
    model: ModelFile, as_json: Annotated[bool, typer.Option("--json", help="Print JSON; null is infinity.")] = False
) -> None:
    """Print what a model was trained on, its settings and its size."""
    pipe = open_model(model, None)
    extractor, detector = pipe[0], pipe[-1]
    height, width = detector.patch_shape_
    facts = {
        "images learnt": detector.n_samples_seen_,
        "learnt from": getattr(pipe, "learnt_from_", []),
        "backbone": str(extractor.backbone),
        "layers": list(map(str, extractor.layers_)),
        "image size": list(extractor.image_size_),
        "inspected": list(extractor.crop_size_),
        "patches": [height, width],
        "patches in the region of interest": None if detector.region_ is None else int(detector.region_.sum()),
        "features": detector.n_features_in_,
        "components": detector.pca_.n_components_,
        "distance": detector.distance,
        "offset": float(detector.offset_),
        "map threshold": float(detector.map_threshold_),
        "false positive rate": detector.false_positive_rate,
        "calibrated with images": len(detector.calibration_scores_),
        "file, MB": round(model.stat().st_size / 1e6, 1),
    }
    if as_json:
        typer.echo(to_json(facts))
        return
    for name, value in facts.items():
        if name == "learnt from":
            for record in value:
                sources = printable(", ".join(record["sources"]))
                typer.echo(
                    f"learnt from: {sources}: {record['n_images']} images, {record['date']}, "
                    f"ipca_sklearn {record['ipca_sklearn']}"
                )
        else:
            typer.echo(f"{name}: {value if not isinstance(value, list) else ', '.join(map(str, value))}")


def export(
    model: ModelFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ONNX", help="File to write.")],
    dtype: Annotated[str, typer.Option(help="Type of the pixels that the file takes: uint8 or float32.")] = "uint8",
) -> None:
    """Write a model as one ONNX file, from images (n, 3, H, W) to scores and maps."""
    n_bytes = model.stat().st_size if model.is_file() else 0
    check_outputs([Output("--output", output, ONNX, n_bytes=n_bytes)], files=[model])
    with naming(output):
        to_onnx(open_model(model, "cpu"), output, dtype=dtype)
    typer.echo(f"{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")

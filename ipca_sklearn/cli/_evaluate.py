"""`evaluate`, `info` and `export`: figures of a model, its settings, and a file for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ipca_sklearn.cli._common import Device, ModelFile, open_model
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.datasets import load_mvtec_ad
from ipca_sklearn.export import to_onnx
from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score


def evaluate(
    model: ModelFile,
    root: Annotated[
        Path,
        typer.Argument(metavar="ROOT", help="Folder with train/good, test/good, test/<type>, ground_truth/<type>."),
    ],
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the ROC curves of the images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Test a model on labelled images in MVTec AD's layout.

    The figures are ROCAUC of images and of pixels, AUPRO and the share of images found, for each type of defect.
    """
    pipe = open_model(model, device)
    root = root.resolve()
    data = load_mvtec_ad(root.parent, root.name)
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
    table = []
    for name in ["all", *sorted(set(data.defect_types[~normal]))]:
        chosen = normal | (data.defect_types == name) if name != "all" else np.ones_like(normal)
        table.append(
            {
                "defects": name,
                "n_images": int(np.sum(chosen & ~normal)),
                "image_roc_auc": image_roc_auc_score(data.test_labels[chosen], scores[chosen]),
                "pixel_roc_auc": pixel_roc_auc_score(masks[chosen], maps[chosen]),
                "aupro": aupro_score(masks[chosen], maps[chosen]),
                "found": float(np.mean(scores[chosen & ~normal] < detector.offset_)),
            }
        )
    false_alarms = float(np.mean(scores[normal] < detector.offset_))
    if as_json:
        typer.echo(json.dumps({"defects": table, "n_normal": int(normal.sum()), "false_alarms": false_alarms}))
    else:
        width = max(len(row["defects"]) for row in table)
        typer.echo(f"{'':{width}}  images  image ROCAUC  pixel ROCAUC  AUPRO  found")
        for row in table:
            typer.echo(
                f"{row['defects']:{width}}  {row['n_images']:6d}  {row['image_roc_auc']:12.3f}  "
                f"{row['pixel_roc_auc']:12.3f}  {row['aupro']:5.3f}  {row['found']:5.0%}"
            )
        typer.echo(f"{false_alarms:.0%} of {normal.sum()} normal images are called anomalous")
    if picture is not None:
        _draw_roc(picture, data, scores)
        typer.echo(f"picture: {picture}", err=True)


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


def info(model: ModelFile, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what a model was trained on, its settings and its size."""
    pipe = open_model(model, None)
    extractor, detector = pipe[0], pipe[-1]
    height, width = detector.patch_shape_
    facts = {
        "images learnt": detector.n_samples_seen_,
        "learnt from": getattr(pipe, "learnt_from_", []),
        "backbone": str(extractor.backbone),
        "layers": list(map(str, extractor.layers_)),
        "image size, crop size": [extractor.image_size, extractor.crop_size],
        "patches": [height, width],
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
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        if name == "learnt from":
            for record in value:
                typer.echo(
                    f"learnt from: {', '.join(record['sources'])}: {record['n_images']} images, {record['date']}, "
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
    to_onnx(open_model(model, "cpu"), output, dtype=dtype)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")

"""`demo`: learn, score and draw generated images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._precision import below
from ipca_sklearn.cli._alarms import WORSE
from ipca_sklearn.cli._numbers import Components, components_of
from ipca_sklearn.cli._outputs import PICTURES, Output, check_outputs
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import AnomalyMapDisplay
from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture.")] = Path(
        "ipca_sklearn_demo.png"
    ),
    material: Annotated[str, typer.Option(help="fabric, leather, metal, part, stone or wood.")] = "fabric",
    n_train: Annotated[int, typer.Option(min=1, help="Normal images to learn from.")] = 96,
    n_test: Annotated[int, typer.Option(min=2, help="Images to score, half of them with a defect.")] = 48,
    k: Components = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the images.")] = 0,
) -> None:
    """Learn generated textures, score others, and draw the heat maps. Needs no data or connection."""
    import matplotlib

    n_components = components_of("--k", k)
    check_outputs([Output("--output", output, PICTURES)])
    matplotlib.use("Agg")  # to write a file without opening a window
    data = make_textures(n_train, n_test, material=material, random_state=seed)
    features = PatchFeatureExtractor()
    pipe = Pipeline([("features", features), ("detector", PatchGaussianDetector(n_components))])
    started = time.perf_counter()
    pipe.fit(data.train_images)
    trained = time.perf_counter()
    detector = pipe["detector"]
    maps = pipe.transform(data.test_images)
    scores = detector.score_maps(maps)
    labels = np.where(below(scores, detector.offset_), -1, 1)
    masks = features.transform_masks(data.test_masks, data.test_images)
    normal = data.test_labels == 1
    typer.echo(f"{material}: learnt {n_train} normal images of 256 x 256 in {trained - started:.1f} s")
    typer.echo(f"image ROCAUC {image_roc_auc_score(data.test_labels, scores):.3f}")
    typer.echo(f"pixel ROCAUC {pixel_roc_auc_score(masks, maps):.3f}")
    typer.echo(f"AUPRO        {aupro_score(masks, maps):.3f}")
    typer.echo(
        f"threshold    {detector.offset_:.3g} ({WORSE}): "
        f"{np.sum(labels[~normal] == -1)} of {np.sum(~normal)} defects found, "
        f"{np.sum(labels[normal] == -1)} of {np.sum(normal)} normal images called anomalous"
    )
    shown = [*np.flatnonzero(~normal)[:5], *np.flatnonzero(normal)[:1]]
    display = AnomalyMapDisplay.from_estimator(
        pipe,
        data.test_images[shown],
        masks=list(data.test_masks[shown]),
        titles=[str(data.defect_types[index]) for index in shown],
    )
    with naming(output):
        display.figure_.savefig(output, dpi=110)
    typer.echo(f"picture      {printable(output)}")

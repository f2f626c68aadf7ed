"""`fit` and `update`: from folders of normal images to a model on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, __version__, persistence
from ipca_sklearn.cli._common import Device, ModelFile, OnError, Progress, list_images, open_model

Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders or files of normal images; `-` reads paths from stdin.")
]


def fit(
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="File of the model to write.")],
    backbone: Annotated[str, typer.Option(help="As of PatchFeatureExtractor; Lite0's weights need no download.")] = (
        "efficientnet_lite0"
    ),
    k: Annotated[int, typer.Option("--k", min=1, help="Components per patch.")] = 16,
    step: Annotated[int, typer.Option(min=1, help="Images per update.")] = 16,
    contamination: Annotated[
        str, typer.Option(help="Share of normal images that may be called anomalous, or auto.")
    ] = "auto",
    image_size: Annotated[int, typer.Option(min=1, help="Side that images are resized to.")] = 256,
    crop_size: Annotated[int, typer.Option(min=1, help="Side of the centre that is inspected.")] = 224,
    shuffle: Annotated[
        bool, typer.Option(help="Learn in random order, the same each time: folders are often sorted by time or light.")
    ] = True,
    on_error: OnError = "raise",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Images between checkpoints.")] = 1000,
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(help="Threads that decode images; -1: all cores.")] = -1,
) -> None:
    """Learn a model from normal images, in one pass.

    A checkpoint lies beside the model until it is complete: after an interruption the same command goes on from it.
    """
    paths = list_images(folders)
    if shuffle:  # the threshold comes from the later half
        paths = [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]
    pipe = Pipeline(
        [
            (
                "features",
                PatchFeatureExtractor(
                    backbone,
                    image_size=image_size,
                    crop_size=crop_size,
                    on_error=on_error,
                    device=device,
                    n_jobs=jobs,
                ),
            ),
            ("detector", PatchGaussianDetector(k, step_size=step, contamination=_contamination(contamination))),
        ]
    )
    progress = Progress(len(paths))
    checkpoint = output.with_name(output.name + ".checkpoint")
    try:
        persistence.fit_resumable(pipe, paths, checkpoint, every=checkpoint_every, callback=progress.show)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    pipe.learnt_from_ = [_record(folders, pipe[-1].n_samples_seen_)]
    persistence.save(pipe, output)
    checkpoint.unlink(missing_ok=True)
    _told(pipe, output)


def update(
    model: ModelFile,
    folders: Folders,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="MODEL", help="Write here, not over the old model.")
    ] = None,
    on_error: OnError = "raise",
    device: Device = "auto",
) -> None:
    """Learn more normal images with a model, as if it had seen them at the end of its training.

    If anything goes wrong the file stays as it was.
    """
    paths = list_images(folders)
    pipe = open_model(model, device, on_error=on_error)
    features = pipe[0].transform(paths)
    n_before = pipe[-1].n_samples_seen_
    block = 16 * (pipe[-1].step_size or 16)
    progress = Progress(len(paths))
    for start in range(0, len(paths), block):
        pipe[-1].partial_fit(features[start : start + block])
        progress.show(min(start + block, len(paths)))
    pipe.learnt_from_ = [*getattr(pipe, "learnt_from_", []), _record(folders, pipe[-1].n_samples_seen_ - n_before)]
    persistence.save(pipe, output or model)
    _told(pipe, output or model)


def _contamination(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # "auto"; anything else is refused by the detector, with what it may be


def _record(folders: list[Path], n_images: int) -> dict[str, Any]:
    return {
        "sources": [str(folder) for folder in folders],
        "n_images": n_images,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ipca_sklearn": __version__,
    }


def _told(pipe: Pipeline, path: Path) -> None:
    detector = pipe[-1]
    typer.echo(
        f"{path}: {detector.n_samples_seen_} images learnt, anomalous from {-detector.offset_:.4g} on, "
        f"{path.stat().st_size / 1e6:.1f} MB"
    )

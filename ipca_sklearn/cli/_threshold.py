"""`threshold`: from which score on images are anomalous, chosen with images that the model has not learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import persistence
from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli._alarms import WORSE
from ipca_sklearn.cli._common import (
    Device,
    ModelFile,
    OnError,
    Product,
    find_images,
    folders_of,
    of_product,
    open_whole,
)
from ipca_sklearn.cli._learnt import pixels, unseen
from ipca_sklearn.cli._outputs import changed_model, check_outputs
from ipca_sklearn.cli._reviewed import ReviewedFile, Ticks, read_reviewed


def threshold(
    model: ModelFile,
    good: Annotated[
        list[Path] | None, typer.Option("--good", metavar="DIR", help="Normal images that were not learnt.")
    ] = None,
    bad: Annotated[list[Path] | None, typer.Option("--bad", metavar="DIR", help="Images with defects.")] = None,
    reviewed: ReviewedFile = None,
    false_alarms: Annotated[
        float | None, typer.Option(help="Share of new normal images that may be called anomalous.")
    ] = None,
    recall: Annotated[float | None, typer.Option(help="Share of the defects that must be found; needs --bad.")] = None,
    score: Annotated[
        float | None, typer.Option(help="Score, as in the rows of `predict`, below which images are anomalous.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals of both errors.")] = 0.95,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="MODEL", help="Write here and keep the old model.")
    ] = None,
    product: Product = None,
    on_error: OnError = "raise",
    device: Device = "auto",
) -> None:
    """Choose the threshold of a model with images that it has not learnt.

    By false alarms, by recall, or as a score. Both errors are counted on the images given, with Clopper-Pearson
    intervals, and stored with the model: `info` shows them. Good images that `fit` or `update` has learnt are left out,
    and so are their copies, whatever their names: images are known by their pixels.
    With --reviewed, the images ticked good in a report count as --good, and those ticked as defects as --bad.
    """
    if sum(wish is not None for wish in (false_alarms, recall, score)) != 1:
        raise ValueError("name one of --false-alarms, --recall and --score")
    options, folders = {1: "--good", -1: "--bad"}, {1: good or [], -1: bad or []}
    paths = {label: find_images(given, options[label]) if given else [] for label, given in folders.items()}
    ticks = None if reviewed is None else read_reviewed(reviewed)
    given = [*folders[1], *folders[-1], *([] if reviewed is None else [reviewed])]
    place = changed_model(model, output)
    check_outputs(
        [place],
        files=[*paths[1], *paths[-1], *([] if reviewed is None else [reviewed])],
        folders=folders_of([*folders[1], *folders[-1]]),
    )
    whole = open_whole(model, device, on_error=on_error)
    pipe = of_product(whole, product, model)
    if reviewed is not None and ticks is not None:
        _add(pipe, paths, ticks, reviewed)
    paths[1] = unseen(pipe, paths[1])
    if false_alarms is not None and not paths[1]:
        raise ValueError(
            f"--false-alarms {false_alarms} takes images that are normal and not learnt: name some with --good"
        )
    if recall is not None and not paths[-1]:
        raise ValueError(f"--recall {recall} takes images with defects: name some with --bad")
    both = paths[1] + paths[-1]
    detector = pipe[-1]
    detector.set_threshold(
        pipe[0].transform(both) if both else None,
        np.repeat([1, -1], [len(paths[1]), len(paths[-1])]) if both else None,
        false_alarms=false_alarms,
        recall=recall,
        score=score,
        confidence=confidence,
        source=", ".join(map(str, given)),
    )
    persistence.save(whole, place.path)  # which shares the detector with `pipe`
    chosen = detector.chosen_threshold_
    typer.echo(f"{printable(place.path)}: images that score below {detector.offset_:.4g} are anomalous: {WORSE}")
    typer.echo(f"false alarms: {chosen.false_alarms}")
    typer.echo(f"missed defects: {chosen.missed}")


def _add(pipe: Pipeline, paths: dict[int, list[Path]], ticks: Ticks, reviewed: Path) -> None:
    """Add ticked images to those of the options, each once: images of the same pixels are one."""
    for label, images, other in ((1, ticks.good, "--bad"), (-1, ticks.defects, "--good")):
        there, against = (set(pixels(pipe, paths[which])) for which in (label, -label))
        new = []
        for image, key in zip(images, pixels(pipe, images), strict=True):
            if key in against:
                raise ValueError(
                    f"{printable(image)} is of {other}, and ticked otherwise in {printable(reviewed)}: take it out of "
                    "one of them"
                )
            if key not in there:
                new.append(image)
        paths[label] = [*paths[label], *new]

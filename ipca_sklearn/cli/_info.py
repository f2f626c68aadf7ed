"""`info`, `threshold` and `demo`: what is known of a model, from which score on images are anomalous, an example."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn.cli import _arguments as options
from ipca_sklearn.cli._outputs import PICTURES, Output, changed_model, check_outputs
from ipca_sklearn.cli._terminal import WORSE, threshold_in_words

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


Format = StrEnum("Format", ["TEXT", "JSON", "MARKDOWN"])
_FORMAT = typer.Option("--format", help="text: a line for each fact; json: null is infinity, or not known; markdown.")


def info(
    model: options.ModelFile,
    card_format: Annotated[Format, _FORMAT] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="What `evaluate MODEL ROOT --json` has printed, for the card."),
    ] = None,
    product: options.Product = None,
) -> None:
    """Print the card of a model: its training, settings, thresholds, versions, size and licence.

    Nothing is measured here: --figures takes what `evaluate --json` printed, and refuses figures of another file. Of a
    model of several products, the text is a line for each; more of one with --product.
    """
    from ipca_sklearn import ProductRouter
    from ipca_sklearn.inspection import model_card

    measured = None if figures is None else _read_figures(figures)
    pipe = options.open_file(model, None)
    if product is not None or not isinstance(pipe[-1], ProductRouter):
        pipe = options.of_product(pipe, product, model)
    if measured is not None:
        of = measured.get("model")
        of_figures = of.get("product") if isinstance(of, dict) else None
        if of_figures != product:
            raise ValueError(
                f"--figures {printable(figures)}: they are of the product {of_figures}, and --product is {product}: "
                "name the same one in both, or none"
            )
    try:
        card = model_card(pipe, file=model, figures=measured)
    except ValueError as error:
        if figures is None:  # of the model itself
            raise
        raise ValueError(f"--figures {printable(figures)}: {error}") from error
    formats = {Format.JSON: card.to_json, Format.MARKDOWN: card.to_markdown, Format.TEXT: card.to_text}
    typer.echo(formats[Format.JSON if as_json else card_format]())


def _read_figures(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--figures {printable(path)}: there is no such file")
    try:
        with naming(path):
            figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--figures {printable(path)} is no JSON: {error}") from error
    if not isinstance(figures, dict) or "defects" not in figures:
        raise ValueError(f"--figures {printable(path)} is not what `ipca-sklearn evaluate --json` prints")
    return figures


def threshold(
    model: options.ModelFile,
    good: Annotated[
        list[Path] | None, typer.Option("--good", metavar="DIR", help="Normal images that were not learnt.")
    ] = None,
    bad: Annotated[list[Path] | None, typer.Option("--bad", metavar="DIR", help="Images with defects.")] = None,
    reviewed: options.ReviewedFile = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Share of new normal images that may be called anomalous.")
    ] = None,
    recall: Annotated[float | None, typer.Option(help="Share of the defects that must be found; needs --bad.")] = None,
    score: Annotated[
        float | None, typer.Option(help="Score, as in the rows of `predict`, below which images are anomalous.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals of both errors.")] = 0.95,
    output: options.ChangedModel = None,
    product: options.Product = None,
    on_error: options.OnError = "raise",
    device: options.Device = "auto",
) -> None:
    """Choose the threshold of a model with images that it has not learnt.

    By false alarms, by recall, or as a score. Both errors are counted on the images given, with Clopper-Pearson
    intervals, and stored with the model: `info` shows them. Good images that `fit` or `update` has learnt are left out,
    and so are their copies, whatever their names: images are known by their pixels.
    With --reviewed, the images ticked good in a report count as --good, and those ticked as defects as --bad.
    """
    import numpy as np

    from ipca_sklearn import persistence
    from ipca_sklearn.cli._training_images import without_learnt

    if sum(value is not None for value in (false_positive_rate, recall, score)) != 1:
        raise ValueError("name one of --false-positive-rate, --recall and --score")
    images = {
        label: options.find_images(folders, option) if folders else []
        for label, folders, option in ((1, good, "--good"), (-1, bad, "--bad"))
    }
    ticks = None if reviewed is None else options.read_ticks(reviewed)
    target, folders = changed_model(model, output), [*(good or []), *(bad or [])]
    check_outputs([target], files=[*images[1], *images[-1], reviewed], folders=options.folders_of(folders))
    whole = options.open_file(model, device, on_error=on_error)
    pipe = options.of_product(whole, product, model)
    if ticks is not None:
        _add_ticks(pipe, images, ticks)
    images[1] = without_learnt(pipe, images[1])
    if false_positive_rate is not None and not images[1]:
        raise ValueError(
            f"--false-positive-rate {false_positive_rate} takes images that are normal and not learnt: name some with "
            "--good"
        )
    if recall is not None and not images[-1]:
        raise ValueError(f"--recall {recall} takes images with defects: name some with --bad")
    both = images[1] + images[-1]
    detector = pipe[-1]
    detector.set_threshold(
        pipe[0].transform(both) if both else None,
        np.repeat([1, -1], [len(images[1]), len(images[-1])]) if both else None,
        false_positive_rate=false_positive_rate,
        recall=recall,
        score=score,
        confidence=confidence,
        source=", ".join(map(str, [*folders, *([] if reviewed is None else [reviewed])])),
    )
    persistence.save(whole, target.path)  # which shares the detector with `pipe`
    chosen = detector.chosen_threshold_
    typer.echo(f"{printable(target.path)}: {threshold_in_words(detector.offset_)}")
    typer.echo(f"false alarms: {chosen.false_positives}")
    typer.echo(f"missed defects: {chosen.missed}")


def _add_ticks(pipe: Pipeline, images: dict[int, list[Path]], ticks: options.Ticks) -> None:
    """Add ticked images to those of the options by label, each once: images of the same pixels are one."""
    from ipca_sklearn.cli._training_images import pixels_of

    for label, ticked, other in ((1, ticks.good, "--bad"), (-1, ticks.defects, "--good")):
        known, refused = (set(pixels_of(pipe, images[one])) for one in (label, -label))
        for image, pixels in zip(ticked, pixels_of(pipe, ticked), strict=True):
            if pixels in refused:
                raise ValueError(
                    f"{printable(image)} is of {other}, and ticked otherwise in {printable(ticks.file)}: take it out "
                    "of one of them"
                )
            if pixels not in known:
                images[label] = [*images[label], image]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture.")] = Path(
        "ipca_sklearn_demo.png"
    ),
    material: Annotated[str, typer.Option(help="fabric, leather, metal, part, stone or wood.")] = "fabric",
    n_train: Annotated[int, typer.Option(min=1, help="Normal images to learn from.")] = 96,
    n_test: Annotated[int, typer.Option(min=2, help="Images to score, half of them with a defect.")] = 48,
    k: options.Components = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images.")] = 0,
) -> None:
    """Learn generated textures, score others, and draw the heat maps. Needs no data or connection."""
    import matplotlib
    import numpy as np
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn._utils._precision import below
    from ipca_sklearn.datasets import make_textures
    from ipca_sklearn.inspection import AnomalyMapDisplay
    from ipca_sklearn.metrics import aupro_score, image_roc_auc_score, pixel_roc_auc_score

    n_components = options.parse_components("--k", k)
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

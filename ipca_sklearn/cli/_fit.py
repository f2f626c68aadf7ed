"""`fit` and `update`: from folders of normal images to a model on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import printable, shown_bytes
from ipca_sklearn.cli import _arguments as options
from ipca_sklearn.cli._outputs import (
    MODELS,
    REPORTS,
    Output,
    changed_model,
    check_outputs,
    check_space,
    optional_output,
)
from ipca_sklearn.cli._parser import INTERRUPTED
from ipca_sklearn.cli._terminal import Progress, threshold_in_words

if TYPE_CHECKING:
    import numpy as np
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchGaussianDetector

_STEPS_AT_ONCE = 16  # of `update`, between lines of the progress
_PIXELS = "a number of pixels from 0 on"


Align = StrEnum("Align", ["TRANSLATION", "RIGID"])


def fit(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders or files of normal images; `-` reads paths from stdin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="File of the model to write.")],
    products: Annotated[
        bool, typer.Option("--products", help="Each folder in DIR is a product: a model for each, in one file.")
    ] = False,
    backbone: Annotated[
        str,
        typer.Option(
            callback=options.choose_backbone,
            is_eager=True,  # the list needs no images
            help="Network, as in PatchFeatureExtractor; `list` prints which there are and where their weights come "
            "from, and a pattern such as 'timm:*resnet*' those that match.",
        ),
    ] = options.DEFAULT_BACKBONE,
    k: options.Components = "auto",
    gaussians: Annotated[
        str,
        typer.Option(help="Gaussians, at most: neighbouring patches share one. patch is one for each, 1 one for all."),
    ] = str(options.DEFAULT_GAUSSIANS),
    step: Annotated[int, typer.Option(min=1, help="Images per update.")] = 16,
    false_positive_rate: Annotated[
        str,
        typer.Option(
            help="Share of new normal images that may be called anomalous, or auto: three robust standard "
            "deviations below the median, which has called 1.2 to 3.4 % of new normal images anomalous."
        ),
    ] = "auto",
    image_size: Annotated[
        str,
        typer.Option(
            help="Size images are resized to: 256, 160x416 (height x width), or auto: about the first's shape."
        ),
    ] = "auto",
    crop_size: Annotated[str, typer.Option(help="Size of the centre that is inspected, or all.")] = "all",
    margin: Annotated[
        str, typer.Option(help="Mirrored pixels beyond each edge that the network sees too, or auto: 16.")
    ] = "auto",
    tile_size: Annotated[
        str,
        typer.Option(
            help="For small defects in large pictures: size of the tiles that pass through the network, in pixels of "
            "the picture unless --image-size says another size: 512, 384x512 (height x width), or none."
        ),
    ] = "none",
    tile_overlap: Annotated[
        str, typer.Option(help="Pixels that neighbouring tiles share, or auto: 128, four strides of transformers.")
    ] = "auto",
    region: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK",
            help="Picture of the region of interest: white is inspected. With --align, auto is the part itself.",
        ),
    ] = None,
    align: Annotated[
        Align | None,
        typer.Option(help="For parts that do not lie alike: how images are brought to the mean image."),
    ] = None,
    trim: Annotated[
        str,
        typer.Option(
            help="Share of the images that is left out, those farthest from all others; auto: those that stand out "
            "(false discovery rate 5 %). The images are read several times, and no checkpoint is kept."
        ),
    ] = "0",
    reviewed: options.ReviewedFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write an HTML page of the training images, the most suspicious first, scored by models of the "
            "others. Ticks saved from it are for --reviewed. Without --trim the images are read four times more.",
        ),
    ] = None,
    shuffle: Annotated[
        bool,
        typer.Option(help="Learn in a fixed random order, as folders are often sorted by time or light."),
    ] = True,
    on_error: options.OnError = "raise",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Images between checkpoints.")] = 1000,
    device: options.Device = "auto",
    jobs: Annotated[int, typer.Option(help="Threads that decode images; -1: all cores.")] = -1,
) -> None:
    """Learn a model from normal images, in one pass.

    A checkpoint is kept beside the model until it is complete: after an interruption, the same command resumes there.
    If images have come or gone since, remove the checkpoint to start again, or bring back the images as they were.
    With --products there is no checkpoint, --trim, --report or --reviewed.
    With --reviewed the images that are ticked as defects in a report are not learnt, and ticked good ones are.
    """
    import numpy as np
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter, persistence
    from ipca_sklearn.cli._training_images import (
        images_of_products,
        print_if_products,
        print_suspects,
        refuse_test_images,
        warn_of_copies,
        with_ticks,
        write_report,
    )

    options.check_common(device, on_error)
    if jobs == 0:
        raise ValueError("--jobs 0: use a number of threads, or -1 for all cores")
    crop = options.parse_size("--crop-size", crop_size, "all")
    tile = options.parse_size("--tile-size", tile_size, "none")
    whole_number, word = "a whole number from 1 on", "patch: a Gaussian for each patch"
    n_gaussians = options.parse_number("--gaussians", gaussians, int, whole_number, 1, inf, word)
    share_words = "a share above 0 and at most 0.5"
    trimmed = options.parse_number("--trim", trim, float, "a share from 0 on and below 0.5", 0, options.BELOW_HALF)
    is_automatic = str(region) == "auto"
    extractor = PatchFeatureExtractor(
        backbone,
        image_size=options.parse_size("--image-size", image_size, "auto"),
        crop_size=None if crop == "all" else crop,
        margin=options.parse_number("--margin", margin, int, _PIXELS, 0, inf),
        tile_size=None if tile == "none" else tile,
        tile_overlap=options.parse_number("--tile-overlap", tile_overlap, int, _PIXELS, 0, inf),
        region="auto" if is_automatic else region,
        align=None if align is None else align.value,
        on_error=on_error,
        device=device,
        n_jobs=jobs,
    )
    detector = PatchGaussianDetector(
        options.parse_components("--k", k),
        n_gaussians=None if n_gaussians == "patch" else n_gaussians,
        step_size=step,
        false_positive_rate=options.parse_number(
            "--false-positive-rate", false_positive_rate, float, share_words, options.ABOVE_0, 0.5
        ),
        trim=trimmed,
    )
    pipe = Pipeline([("features", extractor), ("detector", detector)])
    if region is not None and not is_automatic:
        _check_region(region)
        if align is not None:
            raise ValueError(
                "--region MASK with --align: the mask would lie over the first image, and images are shuffled; use "
                "--region auto, or fit in Python"
            )
    if products and (trimmed or report is not None or reviewed is not None):
        raise ValueError("--products with --trim, --report or --reviewed: look at the images of each product by itself")
    of_products = images_of_products(folders) if products else {"": options.find_images(folders)}
    paths = list(chain.from_iterable(of_products.values()))
    checkpoint = output.parent / f"{output.name}.checkpoint"
    files = [Output("--output", output, MODELS), Output("the checkpoint", checkpoint)]
    page = optional_output("--report", report, REPORTS)
    check_outputs([*files, *page], files=[*paths, reviewed], folders=options.folders_of(folders))
    refuse_test_images([] if products else options.folders_of(folders), paths)
    if not products:
        print_if_products(options.folders_of(folders), paths)
    warn_of_copies(paths)
    if reviewed is not None:
        of_products = {"": with_ticks(pipe, options.read_ticks(reviewed), paths)}
    if shuffle:  # the threshold comes from the scores of the later half
        for name, images in of_products.items():
            of_products[name] = [images[index] for index in np.random.default_rng(0).permutation(len(images))]
    paths = list(chain.from_iterable(of_products.values()))
    features = extractor.fit_transform(paths)
    need = detector.memory_needed(features)
    n_others = (len(of_products) - 1) * need.model
    typer.echo(
        f"learning takes about {shown_bytes(need.learning + n_others)} of memory, the model "
        f"{shown_bytes(need.model + n_others)} of it"
    )
    check_space([replace(file, n_bytes=need.model + n_others) for file in files])
    try:
        with Progress(len(paths)) as progress, persistence.noting_pixels():
            if products:
                router = ProductRouter(detector)
                numbers = [len(images) for images in of_products.values()]
                labels = np.repeat(np.array([*of_products], object), numbers)
                _learn(router, features, labels, np.cumsum(numbers).tolist(), progress.show)
                pipe = Pipeline([("features", extractor), ("products", router)])
            elif trimmed:
                detector.fit(features)
            else:
                persistence.fit_resumable(
                    pipe, paths, checkpoint, every=checkpoint_every, callback=progress.show, features=features
                )
    except KeyboardInterrupt:
        if products or trimmed:
            state = "with --products or --trim there is no checkpoint; the same command starts again"
        elif checkpoint.exists():
            state = f"the same command goes on from there ({printable(checkpoint)})"
        else:
            state = "too few images were learnt to be saved; the same command starts again"
        typer.echo(f"\ninterrupted: {state}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    for name, images in of_products.items() if products else ():
        persistence.record_training(pipe, images, source=folders, product=name)
    if not products:
        readable = [path for index, path in enumerate(paths) if index not in extractor.skipped_]
        persistence.record_training(pipe, readable, source=folders)
    persistence.save(pipe, output)
    checkpoint.unlink(missing_ok=True)
    _print_summary(pipe, output)
    if trimmed or report is not None:
        suspects = detector.suspects_ if trimmed else detector.find_suspects(features)
        print_suspects(suspects, paths)
        if report is not None:
            write_report(report, pipe, paths, suspects, model=output, folders=folders)


def update(
    model: options.ModelFile,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders or files of normal images; `-` reads paths from stdin."),
    ] = None,
    reviewed: options.ReviewedFile = None,
    output: options.ChangedModel = None,
    product: options.Product = None,
    on_error: options.OnError = "raise",
    device: options.Device = "auto",
) -> None:
    """Learn more normal images with a model, as if they had come at the end of its training.

    Images that `fit` or an earlier update has learnt are left out, so a folder that has grown can be named again. They
    are known by their pixels: copies and renamed files are left out too. If no image is new, the exit code is 0. With
    --reviewed it learns the images that are ticked good in a report, with those of the folders or alone, and never one
    that is ticked as a defect. If an error occurs, the file of the model stays unchanged.
    """
    from ipca_sklearn import persistence
    from ipca_sklearn.cli._training_images import not_learnt, refuse_test_images, warn_of_copies, with_ticks

    if not folders and reviewed is None:
        raise ValueError("nothing to learn is named: give folders of normal images, or --reviewed with a file of ticks")
    folders = folders or []
    paths = options.find_images(folders) if folders else []
    refuse_test_images(options.folders_of(folders), paths)
    ticks = None if reviewed is None else options.read_ticks(reviewed)
    target = changed_model(model, output)
    check_outputs([target], files=[*paths, reviewed], folders=options.folders_of(folders))
    whole = options.open_file(model, device, on_error=on_error)
    pipe = options.of_product(whole, product, model)
    pipe[-1].set_params(trim=0)  # which is for all images of a fit
    if ticks is not None:
        paths = with_ticks(pipe, ticks, paths)
    new = not_learnt(pipe, paths)
    if len(new) < len(paths):
        typer.echo(f"{len(paths) - len(new)} of {len(paths)} images are learnt already and left out")
    if not new:
        typer.echo(f"no image is new to {printable(model)}: there is nothing to learn, and the model is as it was")
        if output is not None:  # who named it goes on with it
            persistence.save(whole, output)
        return
    warn_of_copies(new)
    size = _STEPS_AT_ONCE * (pipe[-1].step_size or 16)
    with Progress(len(new)) as progress:
        stops = [*range(size, len(new), size), len(new)]
        skipped = _learn(pipe[-1], pipe[0].training_features(new), None, stops, progress.show)
    readable = [path for index, path in enumerate(new) if index not in skipped]
    persistence.record_training(pipe, readable, source=[*folders, *([] if reviewed is None else [reviewed])])
    persistence.save(whole, target.path)  # whose detector has learnt: it is that of `pipe`
    _print_summary(pipe, target.path)


def _learn(
    learner: Any, features: Any, labels: np.ndarray | None, stops: Sequence[int], show: Callable[[int], None]
) -> set[int]:
    """Learn features in parts that end at `stops`; return the positions of images that could not be read."""
    from ipca_sklearn import FewImagesWarning

    skipped: set[int] = set()
    for start, stop in pairwise([0, *stops]):
        part = features[start:stop]
        with warnings.catch_warnings():
            if labels is None and stop < len(features):  # that images are few counts at the end
                warnings.simplefilter("ignore", FewImagesWarning)
            learner.partial_fit(part, None if labels is None else labels[start:stop])
        skipped.update(part.skipped)
        show(stop)
    return skipped


def _check_region(region: Path) -> None:
    """Refuse a picture of the region that cannot be read, in the name of its option."""
    import numpy as np

    from ipca_sklearn.inspection import open_upright

    try:
        marks_something = np.asarray(open_upright(region)).any()
    except (OSError, ValueError) as error:
        raise ValueError(f"--region {printable(region)}: {error}") from error
    if not marks_something:
        raise ValueError(f"--region {printable(region)}: it marks nothing; paint what is inspected white")


def _print_summary(pipe: Pipeline, path: Path) -> None:
    """Print what a model has learnt, its size, and how many false alarms its threshold is expected to give."""
    from ipca_sklearn import ProductRouter

    size = f"{path.stat().st_size / 1e6:.1f} MB"
    if isinstance(pipe[-1], ProductRouter):
        names = list(pipe[-1].detectors_)
        typer.echo(f"{printable(path)}: {len(names)} product{'' if len(names) == 1 else 's'}, {size}")
        for name in names:
            _print_learnt(pipe[-1].detectors_[name], printable(name))
    else:
        _print_learnt(pipe[-1], printable(path), f", {size}")


def _print_learnt(detector: PatchGaussianDetector, name: str, size: str = "") -> None:
    import numpy as np

    from ipca_sklearn._utils._precision import below
    from ipca_sklearn.inspection import model_card

    facts, scores, offset = model_card(detector).to_dict(), detector.calibration_scores_, detector.offset_
    typer.echo(f"{name}: {facts['images learnt']} images learnt{size}")
    typer.echo(
        f"{threshold_in_words(offset)}; of new normal images about "
        f"{facts['expected share of normal images called anomalous']:.1%} are expected to, as "
        f"{int(np.sum(below(scores, offset)))} of {len(scores)} did before they were learnt"
        if len(scores)
        else f"{threshold_in_words(offset)}; of normal images nothing is known yet"
    )

"""`fit` and `update`: from folders of normal images to a model on disk."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import (
    FewImagesWarning,
    PatchFeatureExtractor,
    PatchGaussianDetector,
    ProductRouter,
    persistence,
)
from ipca_sklearn._utils._files import printable, shown_bytes
from ipca_sklearn.cli._alarms import in_words
from ipca_sklearn.cli._backbone import choose_backbone
from ipca_sklearn.cli._commands import INTERRUPTED
from ipca_sklearn.cli._common import (
    Align,
    Device,
    ModelFile,
    OnError,
    Product,
    check_common,
    find_images,
    folders_of,
    of_product,
    open_whole,
)
from ipca_sklearn.cli._learnt import not_learnt, pixels
from ipca_sklearn.cli._numbers import LEAST, MOST_TRIMMED, Components, components_of, gaussians_of, number_of, size_of
from ipca_sklearn.cli._outputs import MODELS, REPORTS, Output, changed_model, check_outputs, check_space
from ipca_sklearn.cli._products import images_of_products, learn_products
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.cli._reviewed import ReviewedFile, Ticks, read_reviewed
from ipca_sklearn.cli._suspects import print_suspects, write_report
from ipca_sklearn.cli._training_images import refuse_test_images, tell_copies
from ipca_sklearn.features.backbones._networks import DEFAULT_BACKBONE
from ipca_sklearn.images._masks import read_mask
from ipca_sklearn.persistence._image_digests import noting_pixels

Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR", help="Folders or files of normal images; `-` reads paths from stdin.")
]


def fit(
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="File of the model to write.")],
    products: Annotated[
        bool, typer.Option("--products", help="Each folder in DIR is a product: a model for each, in one file.")
    ] = False,
    backbone: Annotated[
        str,
        typer.Option(
            callback=choose_backbone,
            is_eager=True,  # the list needs no images
            help="Network, as in PatchFeatureExtractor; `list` prints which there are and where their weights come "
            "from, and a pattern such as 'timm:*resnet*' those that match.",
        ),
    ] = DEFAULT_BACKBONE,
    k: Components = "auto",
    gaussians: Annotated[
        str,
        typer.Option(help="Gaussians, at most: neighbouring patches share one. patch is one for each, 1 one for all."),
    ] = str(PatchGaussianDetector().n_gaussians),
    step: Annotated[int, typer.Option(min=1, help="Images per update.")] = 16,
    false_positive_rate: Annotated[
        str,
        typer.Option(
            help="Share of new normal images that may be called anomalous, or auto: three robust standard "
            "deviations below the median, which has called 1.5 to 4 % of new normal images anomalous."
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
    reviewed: ReviewedFile = None,
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
    on_error: OnError = "raise",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Images between checkpoints.")] = 1000,
    device: Device = "auto",
    jobs: Annotated[int, typer.Option(help="Threads that decode images; -1: all cores.")] = -1,
) -> None:
    """Learn a model from normal images, in one pass.

    A checkpoint is kept beside the model until it is complete: after an interruption, the same command resumes there.
    If images have come or gone since, remove the checkpoint to start again, or bring back the images as they were.
    With --products there is no checkpoint, --trim, --report or --reviewed.
    With --reviewed the images that are ticked as defects in a report are not learnt, and ticked good ones are.
    """
    check_common(device, on_error)
    size, crop = size_of("--image-size", image_size, "auto"), size_of("--crop-size", crop_size, "all")
    n_components, n_gaussians = components_of("--k", k), gaussians_of("--gaussians", gaussians)
    pixels_beyond = number_of("--margin", margin, int, "a number of pixels from 0 on", 0, inf)
    tile = size_of("--tile-size", tile_size, "none")
    overlap = number_of("--tile-overlap", tile_overlap, int, "a number of pixels from 0 on", 0, inf)
    rate = number_of("--false-positive-rate", false_positive_rate, float, "a share above 0 and at most 0.5", LEAST, 0.5)
    share = number_of("--trim", trim, float, "a share from 0 on and below 0.5", 0, MOST_TRIMMED)
    if jobs == 0:
        raise ValueError("--jobs 0: use a number of threads, or -1 for all cores")
    if region is not None and str(region) != "auto":
        _check_region(region)
        if align is not None:
            raise ValueError(
                "--region MASK with --align: the mask would lie over the first image, and images are shuffled; use "
                "--region auto, or fit in Python"
            )
    if products and (share or report is not None or reviewed is not None):
        raise ValueError("--products with --trim, --report or --reviewed: look at the images of each product by itself")
    of_products = images_of_products(folders) if products else {"": find_images(folders)}
    paths = [path for images in of_products.values() for path in images]
    checkpoint = output.parent / f"{output.name}.checkpoint"
    files = [Output("--output", output, MODELS), Output("the checkpoint", checkpoint)]
    page = [] if report is None else [Output("--report", report, REPORTS)]
    read = [*paths, *([] if reviewed is None else [reviewed])]
    check_outputs([*files, *page], files=read, folders=folders_of(folders))
    refuse_test_images([] if products else folders_of(folders), paths)
    tell_copies(paths)
    pipe = Pipeline(
        [
            (
                "features",
                PatchFeatureExtractor(
                    backbone,
                    image_size=size,
                    crop_size=None if crop == "all" else crop,
                    margin=pixels_beyond,
                    tile_size=None if tile == "none" else tile,
                    tile_overlap=overlap,
                    region="auto" if str(region) == "auto" else region,
                    align=None if align is None else align.value,
                    on_error=on_error,
                    device=device,
                    n_jobs=jobs,
                ),
            ),
            (
                "detector",
                PatchGaussianDetector(
                    n_components, n_gaussians=n_gaussians, step_size=step, false_positive_rate=rate, trim=share
                ),
            ),
        ]
    )
    if reviewed is not None:
        paths = _choose(pipe, reviewed, read_reviewed(reviewed), paths)
        of_products = {"": paths}
    if shuffle:  # the threshold comes from the scores of the later half
        for name, images in of_products.items():
            of_products[name] = [images[index] for index in np.random.default_rng(0).permutation(len(images))]
    paths = [path for images in of_products.values() for path in images]
    need = pipe[1].memory_needed(pipe[0].fit(paths).transform(paths))
    n_others = (len(of_products) - 1) * need.model
    typer.echo(
        f"learning takes about {shown_bytes(need.learning + n_others)} of memory, the model "
        f"{shown_bytes(need.model + n_others)} of it"
    )
    check_space([replace(file, n_bytes=need.model + n_others) for file in files])
    try:
        with Progress(len(paths)) as progress, noting_pixels():
            if products:
                pipe = learn_products(pipe[0], pipe[1], of_products, progress.show)
            elif share:
                pipe.fit(paths)
            else:
                persistence.fit_resumable(pipe, paths, checkpoint, every=checkpoint_every, callback=progress.show)
    except KeyboardInterrupt:
        saved = checkpoint.exists()
        again = (
            f"the same command goes on from there ({printable(checkpoint)})"
            if saved
            else "too few images were learnt to be saved; the same command starts again"
        )
        typer.echo(f"\ninterrupted: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if products:
        for name, images in of_products.items():
            persistence.record_training(pipe, images, source=folders, product=name)
    else:
        read_images = [path for index, path in enumerate(paths) if index not in pipe[0].skipped_]
        persistence.record_training(pipe, read_images, source=folders)
    persistence.save(pipe, output)
    checkpoint.unlink(missing_ok=True)
    _print_summary(pipe, output)
    if share or report is not None:
        suspects = pipe[-1].suspects_ if share else pipe[-1].find_suspects(pipe[0].transform(paths))
        print_suspects(suspects, paths)
        if report is not None:
            write_report(report, pipe, paths, suspects, model=output, folders=folders)


def update(
    model: ModelFile,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders or files of normal images; `-` reads paths from stdin."),
    ] = None,
    reviewed: ReviewedFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="MODEL", help="Write here and keep the old model.")
    ] = None,
    product: Product = None,
    on_error: OnError = "raise",
    device: Device = "auto",
) -> None:
    """Learn more normal images with a model, as if they had come at the end of its training.

    Images that `fit` or an earlier update has learnt are left out, so a folder that has grown can be named again. They
    are known by their pixels: copies and renamed files are left out too. If no image is new, the exit code is 0. With
    --reviewed it learns the images that are ticked good in a report, with those of the folders or alone, and never one
    that is ticked as a defect. If an error occurs, the file of the model stays unchanged.
    """
    if not folders and reviewed is None:
        raise ValueError("nothing to learn is named: give folders of normal images, or --reviewed with a file of ticks")
    folders = folders or []
    paths = find_images(folders) if folders else []
    refuse_test_images(folders_of(folders), paths)
    ticks = None if reviewed is None else read_reviewed(reviewed)
    place = changed_model(model, output)
    check_outputs([place], files=[*paths, *([] if reviewed is None else [reviewed])], folders=folders_of(folders))
    whole = open_whole(model, device, on_error=on_error)
    pipe = of_product(whole, product, model)
    pipe[-1].set_params(trim=0)  # which is for all images of a fit
    if reviewed is not None and ticks is not None:
        paths = _choose(pipe, reviewed, ticks, paths)
    new = not_learnt(pipe, paths)
    if len(new) < len(paths):
        typer.echo(f"{len(paths) - len(new)} of {len(paths)} images are learnt already and left out")
    if not new:
        typer.echo(f"no image is new to {printable(model)}: there is nothing to learn, and the model is as it was")
        if output is not None:  # who named it goes on with it
            persistence.save(whole, output)
        return
    paths = new
    tell_copies(paths)
    features = pipe[0].training_features(paths)
    size = 16 * (pipe[-1].step_size or 16)
    unreadable: set[int] = set()
    with Progress(len(paths)) as progress:
        for start in range(0, len(paths), size):
            with warnings.catch_warnings():
                if start + size < len(paths):  # that images are few counts at the end
                    warnings.simplefilter("ignore", FewImagesWarning)
                part = features[start : start + size]
                pipe[-1].partial_fit(part)
            unreadable.update(part.skipped)
            progress.show(min(start + size, len(paths)))
    read_images = [path for index, path in enumerate(paths) if index not in unreadable]
    persistence.record_training(pipe, read_images, source=[*folders, *([] if reviewed is None else [reviewed])])
    persistence.save(whole, place.path)  # whose detector has learnt: it is that of `pipe`
    _print_summary(pipe, place.path)


def _choose(pipe: Pipeline, reviewed: Path, ticks: Ticks, paths: list[Path]) -> list[Path]:
    """Return the images of folders that are no ticked defects, and the ticked good ones; print how many these are.

    Images are compared by their pixels: a copy of a defect is not learnt either.
    """
    defects = set(pixels(pipe, ticks.defects))
    kept = {path: image for path, image in zip(paths, pixels(pipe, paths), strict=True) if image not in defects}
    good = zip(ticks.good, pixels(pipe, ticks.good), strict=True)
    there = defects.union(kept.values())
    ticked = [path for path, image in good if image not in there]
    left_out = {"defects": len(ticks.defects), "in the folders too": len(ticks.good) - len(ticked)}
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    typer.echo(f"{printable(reviewed)}: {len(ticked)} good images" + (f"; left out: {counts}" if counts else ""))
    return [*kept, *ticked]


def _check_region(region: Path) -> None:
    """Refuse a picture of the region that cannot be read, in the name of its option."""
    try:
        marked = read_mask(region, printable(region)).any()
    except (OSError, ValueError) as error:
        raise ValueError(f"--region {printable(region)}: {error}") from error
    if not marked:
        raise ValueError(f"--region {printable(region)}: it marks nothing; paint what is inspected white")


def _print_summary(pipe: Pipeline, path: Path) -> None:
    if isinstance(pipe[-1], ProductRouter):
        for name in pipe[-1].detectors_:
            typer.echo(f"{printable(name)}: ", nl=False)
            _print_summary(of_product(pipe, name, path), path)
        return
    detector = pipe[-1]
    typer.echo(f"{printable(path)}: {detector.n_samples_seen_} images learnt, {path.stat().st_size / 1e6:.1f} MB")
    typer.echo(in_words(detector))

"""`predict`: images to rows of a table, heat maps, masks and a report, one step of images at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._messages import first_few
from ipca_sklearn._utils._tables import columns_of
from ipca_sklearn.cli import _arguments as options
from ipca_sklearn.cli._outputs import COCO, LINES, REPORTS, TABLES, Output, check_outputs, optional_output
from ipca_sklearn.cli._terminal import WORSE, Progress, Table, threshold_in_words, warn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from ipca_sklearn.inspection import HtmlReport

UNREADABLE = 3  # exit code
MANY_IMAGES = 2000  # of a report: with more, large pictures make a page that browsers open slowly
PICTURE_SIZE = 640
_MIN_IMAGES = 10  # for a warning of many alarms
ADVICE = (
    "If these images are normal, something has changed since the model learnt: look at the light, the camera and the "
    "position of the parts, and make them as they were; or learn the new look with `ipca-sklearn update` and new good "
    "images; or fit again with another --false-positive-rate"
)


MapsFormat = StrEnum("MapsFormat", ["PNG", "NPY", "TIFF"])


def predict(
    model: options.ModelFile,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images or folders; `-` reads paths from stdin.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .csv or .jsonl; `-` is CSV on stdout.")
    ] = Path("-"),
    defects: options.DefectsFile = None,
    maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Write heat maps over the images.")] = None,
    maps_format: Annotated[
        MapsFormat,
        typer.Option(help="What --maps writes: pictures, or float32 numbers in the size of the image."),
    ] = MapsFormat.PNG,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="Write masks of the defects, as PNG.")] = None,
    export_coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the defects for labelling tools: one .json file (COCO).")
    ] = None,
    export_labelme: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the defects for labelme: a .json file per image.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page of all images, sorted by score.")
    ] = None,
    picture_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Longer side of the large pictures of the report in pixels; 0 leaves them out. [default: "
            f"{PICTURE_SIZE}, and 0 for more than {MANY_IMAGES} images]",
        ),
    ] = None,
    min_area: options.MinArea = 0,
    merge_distance: options.MergeDistance = 0,
    product: options.Product = None,
    device: options.Device = "auto",
) -> None:
    """Score images, and write tables, defects, heat maps, masks and a report.

    An image that cannot be read is a row with its error, and the exit code is 3.

    A model of several products (`fit --products`) takes the nearest product for each image, or that of --product. An
    image that is near none is called anomalous. Scores in the report are those less the threshold of the product.
    """
    from ipca_sklearn import ProductRouter
    from ipca_sklearn.cli._annotations import (
        DefectLines,
        coco_file,
        labelme_names,
        picture_folder,
        picture_names,
        write_labelme,
    )
    from ipca_sklearn.cli._images import draw, score_images
    from ipca_sklearn.inspection import defect_mask, map_of_pixels

    options.check_finite("pixels", {"--min-area": min_area, "--merge-distance": merge_distance})
    if maps is None and maps_format != MapsFormat.PNG:
        raise ValueError(f"--maps-format {maps_format.value} is what --maps writes: name a folder with --maps DIR")
    images = options.find_images(paths)
    names, map_names = picture_names(images), picture_names(images, f".{maps_format.value}")
    json_names = labelme_names(images)
    outputs = [] if str(output) == "-" else [Output("--output", output, TABLES)]
    outputs += optional_output("--report", report, REPORTS)
    outputs += optional_output("--defects", defects, LINES)
    outputs += optional_output("--maps", maps, names=map_names)
    outputs += optional_output("--masks", masks, names=names)
    outputs += optional_output("--export-coco", export_coco, COCO)
    outputs += optional_output("--export-labelme", export_labelme, names=json_names, replaces=False)
    check_outputs(outputs, files=[model, *images], folders=options.folders_of(paths))
    pipe = options.open_file(model, device, on_error="skip")
    routed = isinstance(pipe[-1], ProductRouter)
    if not routed or product is not None:
        options.of_product(pipe, product, model)  # an error if there is none
    n_failed = n_scored = n_alarms = n_unknown = 0
    with ExitStack() as stack:
        kinds = ["predict", *(["products"] if routed else []), *([] if pipe[0].align is None else ["align"])]
        table = Table(output, stack, columns_of(*kinds))
        page = None
        if report is not None:
            title = f"{model.name}, {len(images)} image{'' if len(images) == 1 else 's'}"
            page = stack.enter_context(
                open_page(
                    report, pipe, title=title, n_images=len(images), model=model, sources=paths, side=picture_size
                )
            )
        save_map = None if maps is None else stack.enter_context(picture_folder("--maps", maps))
        lists = None if defects is None else DefectLines(defects, stack)
        add_to_coco = None if export_coco is None else stack.enter_context(coco_file(export_coco, images))
        save_mask = None if masks is None else stack.enter_context(picture_folder("--masks", masks))
        rows_in_terminal = str(output) == "-" and sys.stdout.isatty()
        progress = stack.enter_context(Progress(len(images), plain=rows_in_terminal))
        for index, row in enumerate(score_images(pipe, images, min_area, merge_distance, product)):
            pictures = draw(row["pipe"], row, maps is not None and maps_format == MapsFormat.PNG, page)
            table.write(row)
            n_failed += row["error"] is not None
            n_scored += row["score"] is not None
            n_alarms += row["label"] == -1
            n_unknown += not row.get("is_known", True)
            if lists is not None:
                lists.write(row)
            if save_map is not None and "map" in pictures:
                save_map(pictures["map"], map_names[index])
            if "size" in row:
                size = row["size"]
                if save_map is not None and maps_format != MapsFormat.PNG:
                    save_map(map_of_pixels(pipe, row["anomaly_map"], size), map_names[index])
                if save_mask is not None:
                    save_mask(defect_mask(row["defects"], size), names[index])
                if add_to_coco is not None:
                    add_to_coco(images[index], size, row["defects"])
                if export_labelme is not None:
                    write_labelme(export_labelme / json_names[index], images[index], size, row["defects"])
            if page is not None:
                shown = row["score"] - row["pipe"][-1].offset_ if routed and row["error"] is None else row["score"]
                page.add(
                    row["path"],
                    shown,
                    p_value=row["p_value"],
                    note=note_of(row),
                    is_anomalous=product is None and not row.get("is_known", True),
                    error=row["error"],
                    **pictures["report"],
                )
            progress.show(index + 1)
    if routed and product is not None:
        typer.echo(threshold_in_words(pipe[-1].detectors_[product].offset_), err=True)
        typer.echo(f"{n_unknown} of {n_scored} images do not look like product {printable(product)}", err=True)
    elif routed:
        limits = ", ".join(f"{printable(name)} {part.offset_:.4g}" for name, part in pipe[-1].detectors_.items())
        typer.echo(f"images that score below the threshold of their product are anomalous: {limits}; {WORSE}", err=True)
        typer.echo(f"{n_unknown} of {n_scored} images show no product that was learnt", err=True)
    else:
        typer.echo(threshold_in_words(pipe[-1].offset_), err=True)
    warning = warning_of_many_alarms(n_alarms, n_scored)
    if warning is None:
        typer.echo(f"{n_alarms} of {n_scored} images are anomalous", err=True)
    else:
        warn(warning)
    if n_failed:
        typer.echo(f"{n_failed} of {len(images)} images cannot be read; see the column error", err=True)
        raise typer.Exit(UNREADABLE)


def note_of(row: dict[str, Any]) -> str | None:
    """Return what the report says of an image besides its score: which product it shows, or that no part was found."""
    notes = []
    if "scored_as" in row and row["product"] is None:
        notes.append(f"no product that was learnt; nearest: {row['scored_as']}")
    elif "scored_as" in row:
        notes.append(f"product: {row['product']}{'' if row['is_known'] else ', but it does not look like it'}")
    if row["aligned"] is False:
        notes.append(f"no part was found (correlation with the mean image {row['alignment']:.2f})")
    return "; ".join(notes) or None


def warning_of_many_alarms(n_alarms: int, n_images: int) -> str | None:
    """Return a warning if most of the images of a run are called anomalous, or None."""
    if n_images < _MIN_IMAGES or 2 * n_alarms <= n_images:
        return None
    return f"{n_alarms} of {n_images} images ({n_alarms / n_images:.0%}) are called anomalous. {ADVICE}"


def open_page(
    path: Path,
    pipe: Pipeline,
    *,
    title: str,
    n_images: int,
    model: Path,
    sources: Sequence[Path],
    side: int | None = None,
) -> HtmlReport:
    """Return a report, to be entered. Its pictures have a side of 640, or are left out for 0 or many images."""
    from ipca_sklearn import ProductRouter
    from ipca_sklearn.inspection import HtmlReport, model_card

    if side is None and n_images > MANY_IMAGES:
        typer.echo(
            f"the report of {n_images} images has small pictures only, to stay small: --picture-size {PICTURE_SIZE} "
            "adds large ones",
            err=True,
        )
        side = 0
    routed = isinstance(pipe[-1], ProductRouter)
    named = ["standard input" if str(source) == "-" else str(source.absolute()) for source in sources]
    return HtmlReport(
        path,
        threshold=0.0 if routed else pipe[-1].offset_,
        title=title,
        picture_size=PICTURE_SIZE if side is None else side or None,
        normal_scores=None if routed else pipe[-1].calibration_scores_,
        model=model,
        source=first_few(named),
        card=model_card(pipe, file=model),
    )

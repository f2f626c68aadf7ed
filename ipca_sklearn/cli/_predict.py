"""`predict`: images to rows of a table, heat maps, masks and a report, one step of images at a time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn import ProductRouter, SkippedImagesWarning
from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._precision import below
from ipca_sklearn.cli._alarms import WORSE, doubt_of_unknown
from ipca_sklearn.cli._annotations import CocoFile, DefectLines, LabelmeFolder, labelme_names
from ipca_sklearn.cli._common import Device, ModelFile, Product, find_images, folders_of, of_product, open_whole
from ipca_sklearn.cli._outputs import COCO, LINES, REPORTS, TABLES, Output, check_outputs
from ipca_sklearn.cli._progress import Progress
from ipca_sklearn.cli._table import ALIGNMENT_COLUMNS, PRODUCT_COLUMNS, Table, columns_of
from ipca_sklearn.cli._text import one_line, warn
from ipca_sklearn.cli._writing import PictureFolder, picture_names
from ipca_sklearn.detection import find_defects
from ipca_sklearn.images._decode import size_of
from ipca_sklearn.inspection import HtmlReport, model_card, overlay
from ipca_sklearn.inspection._pictures import boxes_of, defect_mask, heat_layer, map_of_pixels, open_upright

UNREADABLE = 3  # exit code
MANY = 2000  # images of a report: with more, large pictures make a page that browsers open slowly


class MapsFormat(StrEnum):
    """What `--maps` writes."""

    PNG = "png"
    NPY = "npy"
    TIFF = "tiff"


DefectsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the list of defects of each image: .jsonl, a line per image."),
]
MinArea = Annotated[float, typer.Option(min=0, help="Leave out defects of fewer pixels of the image.")]
MergeDistance = Annotated[
    float, typer.Option(min=0, help="Regions with at most so many pixels between them are one defect.")
]


def predict(
    model: ModelFile,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images or folders; `-` reads paths from stdin.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .csv or .jsonl; `-` is CSV on stdout.")
    ] = Path("-"),
    defects: DefectsFile = None,
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
            help="Longer side of the large pictures of the report in pixels; 0 leaves them out. [default: 640, and 0 "
            f"for more than {MANY} images]",
        ),
    ] = None,
    min_area: MinArea = 0,
    merge_distance: MergeDistance = 0,
    product: Product = None,
    device: Device = "auto",
) -> None:
    """Score images, and write tables, defects, heat maps, masks and a report.

    The columns are path, score (higher is more normal), p-value, label (+1 normal, -1 anomalous), the box around the
    worst defect in pixels of the image (or around the patch with the largest value, if there is no defect), number and
    area of the defects, and error. A defect is a connected region of patches above the threshold for patches; an image
    can have one and yet score normal. An image that cannot be read is a row with its error, and the exit code is 3. A
    model with --align has two columns more: whether the part was found, and the correlation with the mean image.

    A model of several products (`fit --products`) takes the nearest product for each image, or that of --product. The
    column product is empty where no product is near enough, which is called anomalous, and product_p_value is how often
    an image of the product is as far from it. Scores in the report are those less the threshold of the product.
    """
    check_region_options(min_area, merge_distance)
    if maps is None and maps_format != MapsFormat.PNG:
        raise ValueError(f"--maps-format {maps_format.value} is what --maps writes: name a folder with --maps DIR")
    images = find_images(paths)
    names, map_names = picture_names(images), picture_names(images, f".{maps_format.value}")
    file_names = labelme_names(images)
    check_outputs(
        [
            None if str(output) == "-" else Output("--output", output, TABLES),
            None if report is None else Output("--report", report, REPORTS),
            None if defects is None else Output("--defects", defects, LINES),
            None if maps is None else Output("--maps", maps, names=map_names),
            None if masks is None else Output("--masks", masks, names=names),
            None if export_coco is None else Output("--export-coco", export_coco, COCO),
            None
            if export_labelme is None
            else Output("--export-labelme", export_labelme, names=file_names, replaces=False),
        ],
        files=[model, *images],
        folders=folders_of(paths),
    )
    pipe = open_whole(model, device, on_error="skip")
    routed = isinstance(pipe[-1], ProductRouter)
    if not routed or product is not None:
        of_product(pipe, product, model)  # an error if there is none
    n_failed = n_alarms = n_unknown = 0
    with ExitStack() as stack:
        table = Table(output, stack, columns_of(pipe))
        page = None
        if report is not None:
            page = stack.enter_context(
                HtmlReport(
                    report,
                    threshold=0.0 if routed else pipe[-1].offset_,
                    title=f"{model.name}, {len(images)} images",
                    picture_size=side_of_pictures(picture_size, len(images)),
                    normal_scores=None if routed else pipe[-1].calibration_scores_,
                    model=model,
                    source=source_of(paths),
                    card=model_card(pipe, file=model),
                )
            )
        map_folder = None if maps is None else stack.enter_context(PictureFolder("--maps", maps))
        lists = None if defects is None else DefectLines(defects, stack)
        coco = None if export_coco is None else stack.enter_context(CocoFile(export_coco, images))
        labelme = None if export_labelme is None else LabelmeFolder(export_labelme)
        mask_folder = None if masks is None else stack.enter_context(PictureFolder("--masks", masks))
        rows_in_terminal = str(output) == "-" and sys.stdout.isatty()
        progress = stack.enter_context(Progress(len(images), plain=rows_in_terminal))
        found = rows(pipe, images, min_area, merge_distance, product)
        for index, row in enumerate(found):
            pictures = draw(row["pipe"], row, maps is not None and maps_format == MapsFormat.PNG, page)
            table.write(row)
            n_failed += row["error"] is not None
            n_alarms += row["label"] == -1
            n_unknown += routed and row["error"] is None and row["product"] is None
            if lists is not None:
                lists.write(row)
            if map_folder is not None and "map" in pictures:
                map_folder.save(pictures["map"], map_names[index])
            if "size" in row:
                if map_folder is not None and maps_format != MapsFormat.PNG:
                    map_folder.save(map_of_pixels(pipe, row["anomaly_map"], row["size"]), map_names[index])
                if mask_folder is not None:
                    mask_folder.save(defect_mask(row["defects"], row["size"]), names[index])
                if coco is not None:
                    coco.add(images[index], row["size"], row["defects"])
                if labelme is not None:
                    labelme.add(images[index], file_names[index], row["size"], row["defects"])
            if page is not None:
                shown = row["score"] - row["pipe"][-1].offset_ if routed and row["error"] is None else row["score"]
                page.add(row["path"], shown, p_value=row["p_value"], error=row["error"], **pictures["report"])
            progress.show(index + 1)
    if routed:
        limits = ", ".join(f"{printable(name)} {part.offset_:.4g}" for name, part in pipe[-1].detectors_.items())
        typer.echo(f"images that score below the threshold of their product are anomalous: {limits}; {WORSE}", err=True)
        typer.echo(f"{n_unknown} of {len(images) - n_failed} images show no product that was learnt", err=True)
    else:
        typer.echo(f"images that score below {pipe[-1].offset_:.4g} are anomalous: {WORSE}", err=True)
    doubt = doubt_of_unknown(n_alarms, len(images) - n_failed)
    if doubt is not None:
        warn(doubt)
    if n_failed:
        typer.echo(f"{n_failed} of {len(images)} images cannot be read; see the column error", err=True)
        raise typer.Exit(UNREADABLE)


def source_of(paths: Sequence[Path]) -> str:
    """Return where the images of a report come from, as a page that is opened elsewhere can say it."""
    named = ["standard input" if str(path) == "-" else str(path.absolute()) for path in paths]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def side_of_pictures(wanted: int | None, n_images: int) -> int | None:
    """Return the side of the large pictures of a report: without a wish, a page of many images has none."""
    if wanted is None and n_images > MANY:
        typer.echo(
            f"the report of {n_images} images has small pictures only, to stay small: --picture-size 640 adds large "
            "ones",
            err=True,
        )
        return None
    return 640 if wanted is None else wanted or None


def check_region_options(min_area: float, merge_distance: float) -> None:
    """Refuse numbers of pixels that are none."""
    for option, value in (("--min-area", min_area), ("--merge-distance", merge_distance)):
        if not isfinite(value):
            raise ValueError(f"{option} {value}: name a finite number of pixels")


def rows(
    pipe: Pipeline,
    paths: Sequence[Path],
    min_area: float = 0,
    merge_distance: float = 0,
    product: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a row per image, with its map, its size and its defects. One step of images is in memory at a time."""
    detector = pipe[-1].detector if isinstance(pipe[-1], ProductRouter) else pipe[-1]
    size = detector.step_size or 16
    for start in range(0, len(paths), size):
        yield from _score(pipe, list(paths[start : start + size]), min_area, merge_distance, product)


def _score(
    pipe: Pipeline, paths: list[Path], min_area: float, merge_distance: float, product: str | None
) -> list[dict[str, Any]]:
    extractor = pipe[0]
    features = extractor.transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImagesWarning)  # the rows have the reasons
        maps, judged = _judged(pipe, features, product)
    placed = features.alignment() if features.is_aligned else None
    found = []
    for index, (path, anomaly_map) in enumerate(zip(paths, maps, strict=True)):
        row: dict[str, Any] = dict.fromkeys((*PRODUCT_COLUMNS, *ALIGNMENT_COLUMNS)) | {"path": str(path), "pipe": pipe}
        found.append(row)
        if index in features.skipped:
            row["error"] = one_line(features.skipped[index])
            continue
        row |= judged[index] | {"anomaly_map": anomaly_map}
        if placed is not None:
            row |= {"aligned": bool(placed["aligned"][index]), "alignment": float(placed["quality"][index])}
        detector = row["pipe"][-1]
        try:
            row["size"] = size_of(path, extractor.max_pixels)
        except Exception as error:  # the file has gone or changed since it was scored
            row["error"] = _undrawable(error)
            continue
        (defects,) = find_defects(
            anomaly_map[None],
            detector.map_threshold_,
            min_area=min_area,
            merge_distance=merge_distance,
            image_sizes=row["size"],
            covered_box=extractor.covered_box,
            region=detector.map_region_,
            normal_maxima=detector.calibration_maxima_,
        )
        assert defects is not None
        box = boxes_of(defects, anomaly_map, extractor.covered_box(row["size"]))[0]
        row |= zip(("top", "left", "height", "width"), box, strict=True)
        row |= {
            "defects": defects,
            "n_defects": len(defects),
            "defect_area": sum(defect.area for defect in defects),
        }
    return found


def _judged(pipe: Pipeline, features: Any, product: str | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the maps, and for each image scores, label, and the pipeline of one product that gave them."""
    detector = pipe[-1]
    if not isinstance(detector, ProductRouter):
        maps = detector.transform(features)
        scores = detector.score_maps(maps)
        labels = np.where(below(scores, detector.offset_), -1, 1)
        columns = {"score": scores, "p_value": detector.p_values(scores=scores), "label": labels}
        return maps, [{"pipe": pipe} | row for row in _transposed(columns)]
    routed = detector.route(features, product)
    parts = {name: Pipeline([pipe.steps[0], ("detector", detector.detectors_[name])]) for name in detector.detectors_}
    names = routed.products.copy()
    if product is None:
        names[~routed.is_known] = None
    columns = {
        "product": names,
        "product_p_value": routed.product_p_values,
        "score": routed.scores,
        "p_value": routed.p_values,
        "label": routed.labels,
    }
    rows = _transposed(columns)
    return routed.maps, [{"pipe": parts.get(name)} | row for name, row in zip(routed.products, rows, strict=True)]


def _transposed(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a dict of Python's own numbers for each row."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def draw(pipe: Pipeline, row: dict[str, Any], with_map: bool, page: HtmlReport | None) -> dict[str, Any]:
    """Return the pictures of a row that show its image; if that cannot be read any more, the row gets the reason.

    `"map"` is the heat map over the image, `"report"` what `HtmlReport.add` takes.
    """
    pictures: dict[str, Any] = {"report": {}}
    limit = pipe[0].max_pixels
    if row["error"] is not None:
        return pictures
    try:
        if with_map:
            pictures["map"] = overlay(pipe, row["anomaly_map"], open_upright(row["path"], max_pixels=limit))
        if page is not None:
            image = open_upright(row["path"], max(page.thumbnail_size, page.picture_size or 0), limit)
            pictures["report"] = {
                "image": image,
                "heat_map": heat_layer(pipe, row["anomaly_map"], _fitting(row["size"], 2 * page.thumbnail_size)),
                "boxes": boxes_of(row["defects"], row["anomaly_map"], pipe[0].covered_box(row["size"])),
                "size": row["size"],
            }
    except ImportError:  # of matplotlib: not the image's fault
        raise
    except Exception as error:  # decoders raise whatever they like, and a single image never ends a run
        row["error"] = _undrawable(error)
    return pictures


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a size of the same shape that fits a square of this side."""
    factor = min(1.0, side / max(size))
    return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def _undrawable(error: Exception) -> str:
    return f"scored, but then it could not be read again: {one_line(error)}"

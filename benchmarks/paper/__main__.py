"""The paper's Tables 1-10 and Figures 2-3, with ours beside them.

A run may be interrupted: finished cells (class x setup x trial) are kept in the file of --state and not run again.
docs/paper_experiments.md has one command per table, and the differences from the paper.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.reports import argument_parser, environment, write_results
from benchmarks.paper.figures import draw
from benchmarks.paper.report import Report
from benchmarks.paper.runs import Conditions, Runs
from benchmarks.paper.state import State
from benchmarks.paper.tables import CROP_CLASS, GROUPS, TABLES, TILES

METHOD = """\
Each cell is "paper / ours". The method is the paper's (`distance="mahalanobis", centering="deferred"`, maps not
smoothed): images resized to 256 x 256 (nearest), the centre 224 x 224, ImageNet normalisation, batches of 8. Image
ROCAUC from the maximum of the map, pixel ROCAUC from the map resized bilinearly to the crop. FPS is all images of all
classes over the total time, without reading the images from disk, with resizing them and with the network. Eq. 6 is
`solver="svd"`, Sec. 3.3 `solver="gram_svd"`; k is the number of dimensions. Two things differ: our first step has as
many images as the others (the paper's can have 32), and our training also sets a threshold, from scores of the later
half of the images (where all images are one step: from two more fits, of half of them each)."""


def heading(options: argparse.Namespace, runs: Runs) -> str:
    shared = runs.conditions
    parts = ["# The paper's tables", METHOD, environment() + f"; run on {shared.device}"]
    if shared.backbone is not None:
        parts.append(
            f"**Backbone: ours is {shared.backbone} in every column**, all its features, whatever the column says."
        )
    if (shared.weights, shared.image_size, shared.crop_size) != (paper_weights(shared.backbone), 256, 224):
        parts.append(f"**A trial**: weights {shared.weights}, images {shared.image_size}, crop {shared.crop_size}.")
    if options.note:
        parts.append(f"**{options.note}**")
    missing = [name for name in GROUPS["All"] if name in runs.missing]
    if missing:
        parts.append(f"Classes that are missing and left out: {', '.join(missing)}.")
    return "\n\n".join(parts)


def paper_weights(backbone: str | None) -> str:
    """Return the weights that torchvision had when the paper was written; another backbone has its own."""
    return "IMAGENET1K_V1" if backbone is None else "DEFAULT"


def parse() -> argparse.Namespace:
    parser = argument_parser("benchmarks.paper", __doc__)
    numbers = [table.number for table in TABLES]
    parser.add_argument("--mvtec", type=Path, help="folder of MVTec AD's classes")
    parser.add_argument("--magnetic-tile", type=Path, help="folder of the magnetic tile defects, for Table 10")
    parser.add_argument("--tables", type=int, nargs="*", choices=numbers, default=numbers, metavar="1..10")
    parser.add_argument(
        "--figures", type=int, nargs="*", choices=(2, 3), default=[], help="pages of pictures, in --out"
    )
    parser.add_argument("--backbone", help="replaces the paper's backbone in all tables")
    parser.add_argument(
        "--weights", help="as of the extractor, or none: random (default: IMAGENET1K_V1, as the paper's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--trials", type=int, default=100, help="random crops in Table 5")
    parser.add_argument("--crop-class", default=CROP_CLASS, help="class of Table 5")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--limit", type=int, help="stop after so many new cells; run again to go on")
    parser.add_argument("--note", help="printed in the report, for example which images these are")
    parser.add_argument("--state", type=Path, help="file of finished cells (default: beside the report)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    weights = options.weights or paper_weights(options.backbone)
    conditions = Conditions(options.backbone, weights, options.image_size, options.crop_size, options.device)
    name = "paper" if options.backbone is None else "paper_" + options.backbone.replace(":", "_")
    state = State(options.state or options.out / f"{name}.jsonl")
    runs = Runs(conditions, {"mvtec": options.mvtec, TILES: options.magnetic_tile}, state)
    report = Report(runs, options.trials, options.crop_class)
    tables = [table for table in TABLES if table.number in options.tables]
    try:
        runs.run((cell for table in tables for cell in report.cells(table)), options.limit)
        figures = {number: draw(number, runs, options.out, name) for number in options.figures}
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from here") from None
    parts = [heading(options, runs), *(report.as_markdown(table) for table in tables)]
    parts += [f"## Figure {number}\n\nPages: {'; '.join(told) or 'none'}." for number, told in figures.items()]
    values = {
        "environment": environment(),
        "note": options.note,
        "conditions": asdict(conditions),
        "missing_classes": list(runs.missing),
        "tables": {table.number: report.as_json(table) for table in tables},
        "cells": runs.as_json(),
    }
    write_results(options, name, "\n\n".join(parts), values)


if __name__ == "__main__":
    main()

"""The training images that stand out: in a terminal, and as a page to look through and to tick them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli._predict import draw, rows, side_of_pictures, source_of
from ipca_sklearn.detection._suspects import FALSE_DISCOVERY_RATE
from ipca_sklearn.inspection import HtmlReport, model_card

# Images that are named in a terminal.
_MOST = 5


def print_suspects(suspects: np.ndarray, paths: Sequence[Path]) -> None:
    """Print how many training images stand out, were left out, and are nearly the same as others."""

    def told(what: str, chosen: np.ndarray) -> None:
        names = [printable(paths[index]) for index in suspects["index"][chosen]]
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        listed = f": {', '.join(names[:_MOST])}{more}" if names else ""
        typer.echo(f"{len(names)} of {len(suspects)} training images {what}{listed}")

    told(f"stand out (false discovery rate {FALSE_DISCOVERY_RATE:.0%})", suspects["q_value"] <= FALSE_DISCOVERY_RATE)
    told("were left out", suspects["trimmed"])
    told("are nearly the same as others", suspects["near_duplicate_of"] >= 0)


def write_report(
    report: Path, pipe: Pipeline, paths: Sequence[Path], suspects: np.ndarray, *, model: Path, folders: Sequence[Path]
) -> None:
    """Write the page of the training images with their scores by models that have not learnt them.

    The heat maps are those of the model, which has learnt all images but those that were left out.
    """
    ranked = [paths[index] for index in suspects["index"]]
    with HtmlReport(
        report,
        threshold=pipe[-1].offset_,
        title=f"{model.name}, {len(ranked)} training images",
        picture_size=side_of_pictures(None, len(ranked)),
        normal_scores=pipe[-1].calibration_scores_,
        model=model,
        source=source_of(folders),
        card=model_card(pipe, file=model),
    ) as page:
        for suspect, row in zip(suspects, rows(pipe, ranked), strict=True):
            pictures = draw(pipe, row, False, page)["report"]
            page.add(row["path"], suspect["score"], p_value=suspect["p_value"], error=row["error"], **pictures)

"""`info`: the card of a model."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ipca_sklearn import ProductRouter
from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn.cli._common import ModelFile, Product, of_product, open_whole
from ipca_sklearn.inspection import ModelCard, model_card
from ipca_sklearn.inspection._card_text import text_of


class Format(StrEnum):
    """How the card is printed."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


_FORMAT = typer.Option("--format", help="text: a line for each fact; json: null is infinity, or not known; markdown.")


def info(
    model: ModelFile,
    form: Annotated[Format, _FORMAT] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="What `evaluate MODEL ROOT --json` has printed, for the card."),
    ] = None,
    product: Product = None,
) -> None:
    """Print the card of a model: its training, settings, thresholds, versions, size and licence.

    Nothing is measured here: --figures takes what `evaluate --json` printed, and refuses figures of another file. Of a
    model of several products, the text is a line for each; more of one with --product.
    """
    form = Format.JSON if as_json else form
    measured = None if figures is None else _read(figures)
    whole = open_whole(model, None)
    several = isinstance(whole[-1], ProductRouter) and product is None
    pipe = whole if several else of_product(whole, product, model)
    _check_product(measured, product, figures)
    try:
        card = model_card(pipe, file=model, figures=measured)
    except ValueError as error:
        if figures is None:  # of the model itself
            raise
        raise ValueError(f"--figures {printable(figures)}: {error}") from error
    if form is Format.JSON:
        typer.echo(card.to_json())
    elif form is Format.MARKDOWN:
        typer.echo(card.to_markdown())
    elif several:
        _print_products(card)
    else:
        _print_facts(card)


def _read(path: Path) -> dict[str, Any]:
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


def _check_product(figures: dict[str, Any] | None, product: str | None, path: Path | None) -> None:
    """Refuse figures of another product of the same file."""
    if figures is None:
        return
    of = figures.get("model")
    measured = of.get("product") if isinstance(of, dict) else None
    if measured != product:
        raise ValueError(
            f"--figures {printable(path)}: they are of the product {measured}, and --product is {product}: name the "
            "same one in both, or none"
        )


def _print_facts(card: ModelCard) -> None:
    facts = card.to_dict()
    facts["offset"] = f"{facts['offset']}: images that score lower are anomalous"
    facts["map threshold"] = f"{facts['map threshold']}: patches with larger distances are anomalous"
    for name, value in facts.items():
        if name == "learnt from":
            for record in value:
                sources = printable(", ".join(record["sources"]))
                typer.echo(
                    f"learnt from: {sources}: {record['n_learnt']} of {record['n_images']} images, {record['date']}, "
                    f"ipca_sklearn {record['ipca_sklearn']}, digest of the images {text_of(record['digest'])}"
                )
        elif name == "figures":
            typer.echo("figures: " + ("none were given; see --figures" if value is None else "see --format markdown"))
        elif name not in ("worse scores", "worse map values"):
            typer.echo(f"{name}: {text_of(value)}")


def _print_products(card: ModelCard) -> None:
    for name, one in card.products.items():
        facts = one.to_dict()
        shown = ", ".join(f"{fact} {facts[fact]}" for fact in ("images learnt", "offset", "called unknown"))
        typer.echo(f"{printable(name)}: {shown}")
    typer.echo("more of each by --product NAME")

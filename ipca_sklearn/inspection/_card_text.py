"""The facts of a model card as tables, in Markdown and in HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ipca_sklearn._utils._files import printable

# Characters that mean something in Markdown; an underscore within a word does not.
_MARKS = re.compile(r"[\\`*\[\]<>|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


# Facts that are a height and a width.
_SIZES = ("image size", "inspected", "tiles", "patches")
_DIRECTIONS = ("worse scores", "worse map values")
_OF_PRODUCTS = ("images learnt", "offset", "called unknown")


def as_markdown(title: str, sections: Mapping[str, Mapping[str, Any]], level: int) -> str:
    """Return headings with the tables of their facts."""
    parts = [f"{'#' * level} {_escaped(title)}"]
    for heading, facts in sections.items():
        parts.append(f"{'#' * (level + 1)} {_escaped(heading)}")
        for caption, rows in _tables(facts):
            if caption:
                parts.append(f"{_escaped(caption)}:")
            lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
            parts.append("\n".join([lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]]))
    return "\n\n".join(parts)


def as_text(facts: Mapping[str, Any]) -> str:
    """Return a line for each fact; if there are products, a line for each of them instead."""
    if "products" in facts:
        lines = [
            f"{printable(name)}: {', '.join(f'{fact} {_short(of[fact])}' for fact in _OF_PRODUCTS)}"
            for name, of in facts["products"].items()
        ]
        return "\n".join([*lines, "more of each by --product NAME"])
    return "\n".join(line for name, value in facts.items() if name not in _DIRECTIONS for line in _lines(name, value))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of a fact; directions are said with their thresholds."""
    if name == "offset":
        value = f"{_short(value)}: images that score lower are anomalous"
    elif name == "map threshold":
        value = f"{_short(value)}: patches with larger distances are anomalous"
    elif name == "figures":
        value = "none were given; see --figures" if value is None else "see --format markdown"
    if name != "learnt from":
        yield f"{name}: {text_of(value)}"
        return
    for record in value:
        yield (
            f"learnt from: {printable(', '.join(record['sources']))}: {record['n_learnt']} of {record['n_images']} "
            f"images, {record['date']}, ipca_sklearn {record['ipca_sklearn']}, digest of the images "
            f"{text_of(record['digest'])}"
        )


def as_html(title: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return headings with the tables of their facts."""
    parts = [f"<h2>{html.escape(title)}</h2>"] if title else []
    for heading, facts in sections.items():
        parts.append(f"<h3>{html.escape(heading)}</h3>")
        for caption, rows in _tables(facts):
            named = f"<caption>{html.escape(caption)}</caption>" if caption else ""
            head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
            head = f"<thead><tr>{head}</tr></thead>" if caption else ""  # of a list of facts it would say nothing
            body = "".join(
                f'<tr><th scope="row">{html.escape(row[0])}</th>'
                + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
                + "</tr>"
                for row in rows[1:]
            )
            parts.append(f"<table>{named}{head}<tbody>{body}</tbody></table>")
    return "\n".join(parts)


def text_of(value: Any) -> str:
    """Return a fact as one printable line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(part)}" for name, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ("; " if _is_table(value) else ", ").join(map(text_of, value)) or "none"
    return printable(value)


def _tables(facts: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield captions and rows, the header first: of all facts, and of each list of records, a column for each."""
    figures = facts.get("figures")
    if isinstance(figures, Mapping):  # their names are those of the measures
        facts = {name: value for name, value in facts.items() if name != "figures"} | dict(figures)
    elif "figures" in facts:
        facts = {**facts, "figures": "none were given"}
    plain = {name: value for name, value in facts.items() if not _is_table(value)}
    if plain:
        yield "", [["fact", "value"], *([name, _fact(name, value)] for name, value in plain.items())]
    for name, value in facts.items():
        if _is_table(value):
            yield name, _columns(value)


def _fact(name: str, value: Any) -> str:
    return " x ".join(map(str, value)) if value and name in _SIZES else text_of(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(part, Mapping) for part in value)


def _columns(records: Any) -> list[list[str]]:
    """Return a row for each name in the records; intervals stand behind their values."""
    names = list(dict.fromkeys(name for record in records for name in record if name != "intervals"))
    return [[name, *(_cell(record, name) for record in records)] for name in names]


def _cell(record: Mapping[str, Any], name: str) -> str:
    ends = (record.get("intervals") or {}).get(name)
    interval = "" if ends is None else f" ({text_of(ends[0])} to {text_of(ends[1])})"
    return f"{text_of(record.get(name))}{interval}"


def _escaped(text: str) -> str:
    return _MARKS.sub(lambda match: f"\\{match[0]}", printable(text))

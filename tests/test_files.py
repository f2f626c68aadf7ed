"""Names of files that are printed, and files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipca_sklearn._utils._files import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("Größe-部品-кот.png", "Größe-部品-кот.png"),
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("two\nlines\r\tmore", r"two\nlines\r\tmore"),
        ("c1\x9b2J", r"c1\x9b2J"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"),  # turns the direction of what follows
        (b"caf\xe9.png", r"caf\xe9.png"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        (Path("folder", "a\x7f.png"), os.path.join("folder", r"a\x7f.png")),
        (ValueError("of \x1b[0m"), r"of \x1b[0m"),
    ],
)
def test_a_printed_name_has_no_control_characters(name: object, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).isprintable()
    printable(name).encode("utf-8")

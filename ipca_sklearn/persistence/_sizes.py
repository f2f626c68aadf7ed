"""Sizes that a skops file claims, checked before anything is allocated: a small file can claim to be huge."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from typing import Any, BinaryIO

import numpy as np

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._typing import PathLike

# Arrays of a model compress by 1.1, with constant patches by a few times; files of zeros by a thousand.
_MAX_RATIO = 20
_ALWAYS_ALLOWED = 64 << 20
# The description of a model is read as JSON, which takes up to 20 times its size as Python objects.
_MAX_SCHEMA = 16 << 20
_SCHEMA = "schema.json"


class ClaimedSizeError(ValueError):
    """A file claims to hold much more than it has room for."""


def check_sizes(file: BinaryIO, path: PathLike) -> None:
    """Refuse a skops file whose content would take far more memory than the file has bytes; the position is kept at 0.

    A ClaimedSizeError says that members, or arrays that are used many times, are together larger than 20 times the file
    (and 64 MB), that an array has another size than its header says, or that the description is larger than 16 MB.
    """
    limit = max(_ALWAYS_ALLOWED, _MAX_RATIO * file.seek(0, 2))
    name = printable(path)
    with zipfile.ZipFile(file) as archive:
        _require(
            sum(info.file_size for info in archive.infolist()) <= limit, name, f"unpacks to more than {limit} bytes"
        )
        n_schema = archive.getinfo(_SCHEMA).file_size
        _require(n_schema <= _MAX_SCHEMA, name, f"has a description of {n_schema} bytes, more than {_MAX_SCHEMA}")
        uses = _uses(json.loads(archive.read(_SCHEMA)))
        sizes = {member: archive.getinfo(member).file_size for member in uses}
        total = sum(sizes[member] * n_uses for member, n_uses in uses.items())
        _require(total <= limit, name, f"has arrays of {total} bytes, as some are used many times")
        for member in uses:
            _check_member(archive, member, name, limit)
    file.seek(0)


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise ClaimedSizeError(
            f"{name} is refused: it {what}. No model that save_skops writes does so; get the file again from a source "
            "that you trust"
        )


def _uses(schema: Any) -> Counter[str]:
    """Return how often each member of the archive is read: skops reads it for every node that names it."""
    found: Counter[str] = Counter()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("file"), str):
                found[node["file"]] += 1
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _check_member(archive: zipfile.ZipFile, member: str, name: str, limit: int) -> None:
    with archive.open(member) as content:
        start = content.read(8)
        if start.startswith(b"PK"):  # a sparse matrix is an archive of arrays
            content.seek(0)
            with zipfile.ZipFile(content) as inner:
                size = sum(info.file_size for info in inner.infolist())
                _require(size <= limit, name, f"has an archive {printable(member)} that unpacks to {size} bytes")
                for one in inner.namelist():
                    _check_member(inner, one, name, limit)
        elif start.startswith(np.lib.format.MAGIC_PREFIX):
            content.seek(0)
            version = np.lib.format.read_magic(content)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
                version
            )
            _require(read is not None, name, f"has an array {printable(member)} of an unknown version")
            assert read is not None
            shape, _, dtype = read(content)
            claimed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - content.tell()
            _require(
                claimed == there,
                name,
                f"has an array {printable(member)} of {there} bytes that claims to have {claimed}",
            )

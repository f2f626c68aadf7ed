"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4


@contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """Open a file to be written that takes the place of `path` when the block ends without an error.

    Whatever happens before - an error, Ctrl-C, `kill -9`, a power cut - the old file is intact. The new one is written
    beside it and removed after an error; only a kill leaves it there, see `remove_leftovers`.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    """
    target = Path(path).resolve()  # of a symbolic link the file it points to is replaced, not the link
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}")
    written = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        with open(written, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the name could reach the disk before the content
        os.replace(written, target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    # The new name is on the disk when the folder is; some systems and file systems cannot sync one.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(path: Any, *, older_than: float = 0) -> None:
    """Remove what processes that were killed while writing `path` have left beside it `older_than` seconds ago."""
    target = Path(path).resolve()
    for file in target.parent.iterdir() if target.parent.is_dir() else ():
        if file.name.startswith(f".{target.name}.") and file.suffix == ".tmp":
            with suppress(FileNotFoundError):  # its process has just put it in place
                if time.time() - file.stat().st_mtime >= older_than:
                    file.unlink()

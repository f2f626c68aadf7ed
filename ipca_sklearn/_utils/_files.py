"""Files that are complete or not there at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ipca_sklearn._utils._typing import PathLike


@contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends without an error.

    The old file is intact after an error, Ctrl-C, `kill -9` or a power cut in the block. The new file is written beside
    it, and removed after an error. Only a kill leaves it there; see `remove_leftovers`.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    """
    target = Path(path).resolve()  # replaces the file that a symbolic link points to, not the link
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
    # The new name is on the disk when its folder is. Some systems and file systems cannot sync a folder.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(path: PathLike, *, older_than: float = 0) -> None:
    """Remove unfinished files of `path`, left by killed processes and unchanged for `older_than` seconds."""
    target = Path(path).resolve()
    for file in target.parent.iterdir() if target.parent.is_dir() else ():
        if file.name.startswith(f".{target.name}.") and file.suffix == ".tmp":
            with suppress(FileNotFoundError):  # its process has finished it in the meantime
                if time.time() - file.stat().st_mtime >= older_than:
                    file.unlink()

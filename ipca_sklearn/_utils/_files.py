"""Files that are complete or not there at all, and names of files that are safe to print."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ipca_sklearn._utils._typing import PathLike


def printable(name: object) -> str:
    r"""Return a name or a message with everything that is not printable escaped, for errors, warnings and terminals.

    A file name may hold any byte. Printed raw, control characters move the cursor or change the terminal, and bytes
    that are not UTF-8 cannot be printed at all. Letters of all languages stay as they are.

    Parameters
    ----------
    name : str, bytes, path-like or object
        Paths are taken by their names, other objects by `str`.

    Returns
    -------
    str
        One line, that every terminal and every encoding with these letters can show.

    Examples
    --------
    >>> printable("tile\x1b[2J\n.png")
    'tile\\x1b[2J\\n.png'
    >>> printable(b"caf\xe9 \xc3\xa9.png")
    'caf\\xe9 é.png'
    """
    text = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as os.fsdecode gives it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


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

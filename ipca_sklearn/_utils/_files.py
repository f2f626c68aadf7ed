"""Atomic writing of files, and names of files that are safe to print."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:  # it imports torch, and the help of the command line needs none
    from ipca_sklearn._utils._typing import PathLike

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed, so that no lock is needed
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 200  # bytes; most file systems allow 255


def shown_bytes(n_bytes: float) -> str:
    """Format bytes as MB or GB."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def printable(name: object) -> str:
    r"""Return a name or a message in one line with everything that is not printable escaped.

    Control characters of a file name move the cursor of a terminal, and bytes that are not UTF-8 cannot be printed.

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


def status_of(path: PathLike) -> tuple[int, int] | None:
    """Return size and time of change of a file, or None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def identity_of(path: PathLike) -> tuple[int, int]:
    """Return device and inode of a file or a folder: the same by any path or link."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def file_digest(path: PathLike) -> str:
    """Return the SHA-256 digest of the bytes of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(key: Iterable[object]) -> bytes:
    """Return 16 bytes that identify a file, from its path, size and time of change, say."""
    text = "\0".join(map(str, key))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Add the path to an OSError of the block that has none: a full disk says which file it had no room for."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), os.fspath(path)) from error


@contextmanager
def replacing(path: PathLike, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing bytes that replaces `path`, with its permissions, when the block ends without an error.

    Else, after `kill -9` or a power cut too, the old file is intact; the next writer of the path removes what a kill
    has left beside it. Links are followed. `durable=False`, for many small files, skips syncing and that removal.
    """
    target = writable_target(path)
    if durable:
        remove_leftovers(path)
    file, lock = _make_beside(target, path)
    try:
        with file:
            yield file
            file.flush()
            if durable:
                with naming(path):
                    os.fsync(file.fileno())  # else the name could reach the disk before the content
        os.replace(file.name, target)
    except BaseException:
        with suppress(OSError):
            file.close()
        Path(file.name).unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:  # held until the file has its name: nobody takes it for a leftover
            os.close(lock)
    if durable:
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names of new files in a folder to the disk. Some systems and file systems cannot do that."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def writable_target(path: PathLike) -> Path:
    """Return the file that writing to `path` would replace or make, links followed; OSErrors name the path."""
    name = printable(path)
    try:
        target = Path(path).resolve()
    except (RuntimeError, ValueError) as error:  # links that lead round before Python 3.13; a null character
        raise OSError(f"{name} cannot be written: {printable(error)}") from error
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name} cannot be written: there is no folder {printable(target.parent)}")
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name} cannot be written: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise OSError(f"{name} cannot be written: it is no regular file, and only these are replaced")
    return target


def remove_leftovers(path: PathLike) -> None:
    """Remove unfinished files of `path` whose writers are gone. Those that are being written are locked, and stay."""
    target = Path(path).resolve()
    ours = re.compile(re.escape(_beginning(target)) + r"[0-9a-f]{32}\.tmp")
    for name in os.listdir(target.parent) if target.parent.is_dir() else ():
        if ours.fullmatch(name):
            with suppress(OSError):  # its writer lives, or has finished it, or it belongs to somebody else
                _remove_unlocked(target.with_name(name))


def _remove_unlocked(file: Path) -> None:
    if fcntl is None:
        file.unlink()
        return
    opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISREG(os.fstat(opened).st_mode):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
    finally:
        os.close(opened)


def _beginning(target: Path) -> str:
    """Return how the names of unfinished files of `target` begin."""
    encoded = os.fsencode(target.name)
    if len(encoded) > _LONGEST_NAME:
        return f".{hashlib.blake2b(encoded, digest_size=20).hexdigest()}."
    return f".{target.name}."


class _NewFile(io.FileIO):
    """A file that was not there before. Its errors name the file that it is written for."""

    def __init__(self, path: Path, target: PathLike, mode: int) -> None:
        self._target = target
        flags = getattr(os, "O_NOFOLLOW", 0)
        try:
            super().__init__(os.fspath(path), "xb", opener=lambda name, wanted: os.open(name, wanted | flags, mode))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error

    def write(self, content: Any) -> int:
        with naming(self._target):
            return super().write(content) or 0


def _make_beside(target: Path, path: PathLike) -> tuple[BinaryIO, int | None]:
    """Make a file beside `target`, with its permissions, and lock it; return it and what holds the lock."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        old = None
    while True:
        new = target.with_name(f"{_beginning(target)}{secrets.token_hex(16)}.tmp")
        file = cast(BinaryIO, io.BufferedWriter(_NewFile(new, path, 0o666 if old is None else 0o600)))
        if fcntl is None:
            return file, None
        try:
            # A descriptor of its own keeps the lock when the file is closed. Some file systems cannot lock.
            lock = os.dup(file.fileno())
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if old is not None:
                with suppress(OSError):  # the owner and the group of another user cannot be set
                    os.fchown(lock, old.st_uid, old.st_gid)
                os.fchmod(lock, stat.S_IMODE(old.st_mode))
        except BaseException:
            file.close()
            new.unlink(missing_ok=True)
            raise
        if os.fstat(lock).st_nlink > 0:
            return file, lock
        file.close()  # taken for a leftover before it was locked
        os.close(lock)

"""Compiled networks on disk, so that another process need not compile them: one file each in the user's cache folder.

A file that is damaged, foreign or of another version is not read, and a folder that cannot be written is left alone:
the network is compiled anew. Only a message of the level DEBUG says so.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from hashlib import blake2b
from pathlib import Path

from ipca_sklearn._utils._files import printable, replacing

# Names another folder; empty: nothing is kept.
VARIABLE = "IPCA_SKLEARN_ENGINE_CACHE"
# The files that were used last stay, up to this size in all.
MAX_BYTES = 1_000_000_000
_MAGIC = b"ipca_sklearn engine 1\n"
_N_CHECKSUM = 32
_SUFFIX = ".engine"
_logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return the folder of compiled networks: the platform's place for caches, or the one that `VARIABLE` names."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            base = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            named = os.environ.get("XDG_CACHE_HOME", "")
            base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return base / "ipca_sklearn" / "engines"


def read(key: str) -> bytes | None:
    """Return what was stored for a key, or None."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}{_SUFFIX}"
    try:
        content = _read_own(path)
        if content is None:
            return None
        head = len(_MAGIC) + _N_CHECKSUM
        if content[:head] != _MAGIC + _checksum(key, content[head:]):
            _logger.debug("%s is no compiled network, or damaged: it is not used", printable(path))
            return None
        os.utime(path)
    except (OSError, ValueError) as error:
        _logger.debug("%s is not used: %s", printable(path), printable(error))
        return None
    return content[head:]


def write(key: str, content: bytes) -> None:
    """Store a compiled network, and remove those that were used longest ago where there are too many."""
    folder = cache_folder()
    if folder is None or len(content) > MAX_BYTES:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(folder / f"{key}{_SUFFIX}") as file:
            file.write(_MAGIC + _checksum(key, content))
            file.write(content)
        _remove_oldest(folder)
    except (OSError, ValueError) as error:
        _logger.debug("a compiled network is not kept in %s: %s", printable(folder), printable(error))


def _read_own(path: Path) -> bytes | None:
    """Read a regular file of this user's: what others have put there is not run."""
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    with open(opened, "rb") as file:
        status = os.fstat(opened)
        is_own = not hasattr(os, "getuid") or status.st_uid in (os.getuid(), 0)
        if not stat.S_ISREG(status.st_mode) or not is_own:
            _logger.debug("%s is no file of this user: it is not used", printable(path))
            return None
        return file.read()


def _remove_oldest(folder: Path) -> None:
    files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.glob(f"*{_SUFFIX}")]
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


def _checksum(key: str, content: bytes) -> bytes:
    digest = blake2b(key.encode(), digest_size=_N_CHECKSUM)
    digest.update(content)
    return digest.digest()

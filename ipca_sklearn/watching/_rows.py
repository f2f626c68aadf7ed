"""RowFile: a table that grows by one durable row at a time, and can be continued after any end."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipca_sklearn._utils._files import naming, printable, sync_folder, writable_target
from ipca_sklearn._utils._tables import RowFormat, columns_of
from ipca_sklearn._utils._typing import PathLike

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# More after the last whole row is no row that was cut while it was written.
_LONGEST_ROW = 65_536


class RowFile:
    """A table of scored images to which rows are appended, each on the disk before `append` returns.

    If the table exists, it is continued; a last row that was cut by a kill or a power cut is removed, with a warning.
    Only one process at a time can open it (on systems with `flock`).

    Parameters
    ----------
    path : str or path-like
        Ends in .csv or .jsonl. The columns are those of `ipca-sklearn watch`.

    Raises
    ------
    ValueError
        Another suffix, a table with other columns, or a damaged one.
    OSError
        It cannot be written, or another process writes to it.

    Notes
    -----
    A row is one write and one `fsync`. Bytes of file names that are not UTF-8 are written as they are to CSV, and as
    lone surrogates to JSON. In CSV, text that a spreadsheet would run as a formula gets a ``'`` before it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from ipca_sklearn.watching import RowFile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RowFile(Path(folder, "rows.csv")) as rows:
    ...         rows.append({"path": "/in/a.png", "n_bytes": 10, "modified_ns": 5, "score": -1.5, "label": 1})
    ...         list(rows.image_keys())
    [('/in/a.png', 10, 5)]
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in (".csv", ".jsonl"):
            raise ValueError(f"{printable(path)} ends in neither .csv nor .jsonl: give it the name of what is written")
        self._format = RowFormat(suffix, columns_of("watch"))
        self._header = self._format.header.encode()
        target = writable_target(path)
        with naming(path):
            self._file = io.FileIO(os.fspath(target), "ab+")
        try:
            self._lock()
            self._repair()
        except BaseException:
            self._file.close()
            raise

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._format.names)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, for another process to continue it."""
        self._file.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, and return when it is on the disk.

        Parameters
        ----------
        row : mapping
            By the names of the columns; what is missing is empty, and other names are left out.

        Raises
        ------
        OSError
            The disk is full, or the file was moved or removed. The table is as before.
        """
        try:
            here = os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            here = False
        if not here:
            raise OSError(f"{printable(self.path)} was moved or removed while rows are appended to it: start again")
        self._write(self._format.line(row).encode("utf-8", "surrogateescape"))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows from the first to the last, read from the disk."""
        for number, record in enumerate(self._records()):
            if self._format.is_csv and number == 0:
                continue
            try:
                yield self._format.parse(record.decode("utf-8", "surrogateescape"))
            except (ValueError, KeyError, csv.Error) as error:
                position = number + (not self._format.is_csv)
                raise ValueError(
                    f"row {position} of {printable(self.path)} is damaged ({printable(error)}): "
                    "mend it, remove it, or name another file"
                ) from error

    def image_keys(self) -> Iterator[tuple[str, int, int]]:
        """Yield path, size and time of change (`NewImage.key`) of the images that have rows."""
        for row in self:
            yield row["path"], row["n_bytes"], row["modified_ns"]

    def _records(self) -> Iterator[bytes]:
        """Yield the whole records, the header of CSV included: what follows the last one is left out."""
        with open(self.path, "rb") as file:
            record = b""
            for line in file:
                record += line
                # A line break within quotes belongs to the name of a file.
                if record.endswith(b"\n") and not (self._format.is_csv and record.count(b'"') % 2):
                    yield record
                    record = b""
                elif len(record) > _LONGEST_ROW:
                    return

    def _repair(self) -> None:
        """Write the header of a new table, and cut what a killed writer has left."""
        size, end, name = os.fstat(self._file.fileno()).st_size, 0, printable(self.path)
        for record in self._records():
            if end == 0 and self._header and record.rstrip() != self._header.rstrip():
                raise ValueError(f"{name} has other columns than {','.join(self.columns)}: name another file")
            end += len(record)
        if end == 0 and size:  # the first write was cut, or this is no table
            with open(self.path, "rb") as file:
                start = file.read(len(self._header) or 1)
            if not (self._header.startswith(start) if self._header else start == b"{"):
                raise ValueError(f"{name} is no table of `ipca-sklearn watch`: name another file")
        if size - end > _LONGEST_ROW:
            raise ValueError(f"{name} is damaged after byte {end}: mend it, or name another file")
        if size > end:
            warnings.warn(
                f"{name}: the last row was cut after {size - end} bytes, and is removed; its image is scored again",
                UserWarning,
                stacklevel=4,
            )
            os.ftruncate(self._file.fileno(), end)
        if end == 0:
            self._write(self._header)
            sync_folder(self.path.resolve().parent)

    def _write(self, content: bytes) -> None:
        number = self._file.fileno()
        end = os.fstat(number).st_size
        try:
            with naming(self.path):
                rest = memoryview(content)
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
                os.fsync(number)
        except OSError:
            with suppress(OSError):
                os.ftruncate(number, end)
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{printable(self.path)} is written by another process: name another file") from error
        except OSError:  # a file system without locks
            pass

"""FolderWatcher: the images of a folder that are new and complete."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

from ipca_sklearn._utils._files import digest_of, identity_of, printable, status_of
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.datasets import list_images
from ipca_sklearn.watching._events import FolderEvents, is_image_name

Key = tuple[str, int, int]

# Why not watchdog's PollingObserver: it is optional, keeps path and status of every file (not 16 bytes), and does not
# give what lies there at the start or was missed. test_what_is_remembered_is_what_lies_in_the_folder holds it here.
# Seconds between listings of a folder with events: a listing finds what these have missed.
_BETWEEN_LISTINGS = 30.0
# Listings take at most a fifth of the time.
_PAUSE_PER_LISTING = 4
# Seconds that an event may take to arrive before there are taken to be none.
_EVENT_DELAY = 5.0
# Seconds for which the images of a folder that is away, or cannot be listed, are remembered.
_LONGEST_ABSENCE = 600.0
_RETRY = 0.5  # seconds, doubled with each try


class NewImage(NamedTuple):
    """An image file that is complete.

    Parameters
    ----------
    path : str
        Absolute.
    n_bytes, modified_ns : int
        Size, and time of the last change in nanoseconds since 1970.
    tries : int
        How often it was given before, see `FolderWatcher.retry`.
    """

    path: str
    n_bytes: int
    modified_ns: int
    tries: int = 0

    @property
    def key(self) -> Key:
        """Identity of this content of this file: path, size and time of change."""
        return self[:3]


class FolderWatcher:
    """Find new images in a folder and its subfolders as they appear, when they are complete.

    An image is complete after `settle` seconds without a change of size or time. A file that is moved or renamed into
    the folder is new, and so is one whose content is replaced. Images that are there at the start come first, the
    oldest first. Names that begin with a dot are left out: the safest way to hand over an image is to write it under
    such a name and to rename it.

    Parameters
    ----------
    folder : str or path-like
        It must exist.
    settle : float, default=1.0
        Seconds without change before a file counts as complete. 0 is for folders into which complete files are renamed.
    interval : float, default=1.0
        Seconds between listings of the folder where there are no events. Listings take at most a fifth of the time, so
        a folder of very many files is listed less often.
    tries : int, default=3
        How often an image is given that cannot be read, see `retry`.
    batch_size : int, default=16
        Most images at a time.
    events : bool, default=True
        Take change events from the operating system, by watchdog (``pip install watchdog``), and list the folder every
        30 seconds only. Without watchdog, or without events (network drives, folders behind links), a warning says so
        and the folder is listed every `interval` seconds.
    done : callable or None, default=None
        Returns the keys (`NewImage.key`) of images that are not to be given, as `RowFile.image_keys` does. It is called
        at the start, and again if another folder takes the place of this one (a disk is mounted, a link is changed).

    Attributes
    ----------
    folder : Path
        Absolute.
    stopped : bool
        Whether `stop` was called.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    ValueError
        A parameter is out of its range.

    See Also
    --------
    watch : Scores them.

    Notes
    -----
    A digest of 16 bytes is kept for each image that was given and lies in the folder: with 100,000 images a process
    took 51 MB more at most, and with 100,000 that came and left, 100 at a time, 4 MB. Images that have left are
    forgotten with the next listing; one that comes back later is new. The images of a subfolder that cannot be listed
    (a network drive) are remembered for ten minutes. Two files of one path, size and time of change are taken to be the
    same: the content is not read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from ipca_sklearn.watching import FolderWatcher
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (8, 8)).save(Path(folder, "a.png"))
    ...     with FolderWatcher(folder, settle=0, events=False) as watcher:
    ...         for batch in watcher.batches():
    ...             print([Path(image.path).name for image in batch])
    ...             watcher.stop()
    ['a.png']
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        settle: float = 1.0,
        interval: float = 1.0,
        tries: int = 3,
        batch_size: int = 16,
        events: bool = True,
        done: Callable[[], Iterable[Key]] | None = None,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        if not self.folder.is_dir():
            kind = NotADirectoryError if self.folder.exists() else FileNotFoundError
            raise kind(f"{printable(folder)} is no folder: name the folder in which the images appear")
        for name, value, least in (("settle", settle, 0), ("tries", tries, 1), ("batch_size", batch_size, 1)):
            if not least <= value < inf:
                raise ValueError(f"{name}={value}: it must be finite, and at least {least}")
        if not 0 < interval < inf:
            raise ValueError(f"interval={interval}: it must be finite, and larger than 0")
        self.settle, self.interval, self.tries, self.batch_size = settle, interval, tries, batch_size
        self.done = done
        self.stopped = False
        self._with_events = events
        self._events: FolderEvents | None = None
        self._identity: tuple[int, int] | None = None  # of the folder, as it was listed last
        self._is_away = False
        self._next_listing = -inf
        self._waiting: dict[str, tuple[float, NewImage]] = {}  # until when they must not change
        self._given: dict[bytes, str] = {}  # digest of an image, and the folder that it lies in
        self._missed: dict[str, float] = {}  # folders of these that are away, and since when
        self._without_event: dict[str, float] = {}  # what a listing has found before an event came, and when

    def __enter__(self) -> FolderWatcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread that waits for events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def stop(self) -> None:
        """End `batches` when it is asked for the next images, or within 0.2 s if it waits. A signal handler may."""
        self.stopped = True

    def batches(self, idle: Callable[[], object] | None = None) -> Iterator[list[NewImage]]:
        """Yield lists of new images that are complete, and wait for them, until `stop` is called.

        Parameters
        ----------
        idle : callable or None, default=None
            Called when there is nothing to do, at least every `interval` seconds.

        Yields
        ------
        list of NewImage
            From 1 to `batch_size`, oldest first.

        Warns
        -----
        UserWarning
            The folder is listed because there are no events; it has gone; it holds images of formats that are not read.
        """
        while not self.stopped:
            images = self.look()
            for start in range(0, len(images), self.batch_size):
                # While others were scored, some may have been replaced.
                batch = [image for image in images[start : start + self.batch_size] if self._is_unchanged(image)]
                if batch:
                    yield batch
                if self.stopped:
                    return
            if not images:
                if idle is not None:
                    idle()
                self._wait()

    def look(self, now: float | None = None) -> list[NewImage]:
        """Return the images that have become complete since the last call, oldest first, without waiting.

        Parameters
        ----------
        now : float or None, default=None
            Seconds of a clock that never goes back; None is `time.monotonic`.

        Returns
        -------
        list of NewImage
        """
        now = time.monotonic() if now is None else now
        changed = self._events.take() if self._events is not None else set()
        if changed is None or now >= self._next_listing:
            self._list(now, after_events=changed is not None and self._events is not None)
        for path in changed or ():
            self._without_event.pop(path, None)
            is_image = is_image_name(path) and not os.path.isdir(path)
            for image in _images([path] if is_image else _list_quietly(Path(path))):
                self._without_event.pop(image.path, None)
                self._notice(image, now)
        if any(now - found > _EVENT_DELAY for found in self._without_event.values()):
            self._stop_events(f"no event came for {printable(next(iter(self._without_event)))}", now)
        return self._complete(now)

    def retry(self, image: NewImage, now: float | None = None) -> bool:
        """Have an image given once more, because it cannot be read: perhaps it is not complete after all.

        Parameters
        ----------
        image : NewImage
            As it was given.
        now : float or None, default=None
            As in `look`.

        Returns
        -------
        bool
            False if it was given `tries` times, or has gone: it will not come again.
        """
        tries = image.tries + 1
        if tries >= self.tries or status_of(image.path) is None:
            return False
        self._given.pop(digest_of(image.key), None)
        now = time.monotonic() if now is None else now
        due = now + max(self.settle, _RETRY) * 2**image.tries
        self._waiting[image.path] = due, image._replace(tries=tries)
        return True

    def _notice(self, image: NewImage, now: float) -> None:
        """Wait for an image that is new, or has changed while it waits."""
        known = self._waiting.get(image.path)
        if digest_of(image.key) not in self._given if known is None else known[1].key != image.key:
            self._waiting[image.path] = now + self.settle, image

    def _complete(self, now: float) -> list[NewImage]:
        """Return the images whose time has come and that have not changed, as given."""
        complete = []
        for path, image in [(path, image) for path, (due, image) in self._waiting.items() if now >= due]:
            del self._waiting[path]
            current = next(_images([path]), None)
            if current is not None and current.key != image.key:
                self._waiting[path] = now + self.settle, current
            elif current is not None or image.tries:  # it was given before, and its user waits for it
                complete.append(image)
        self._given.update((digest_of(image.key), _folder_of(image.path)) for image in complete)
        return sorted(complete, key=lambda image: (image.modified_ns, image.path))

    def _is_unchanged(self, image: NewImage) -> bool:
        """Return whether an image has not changed since it was found (or has gone); else it waits again."""
        current = next(_images([image.path]), image)
        if current.key == image.key:
            return True
        self._given.pop(digest_of(image.key), None)
        self._notice(current, time.monotonic())
        return False

    def _list(self, now: float, *, after_events: bool) -> None:
        """Find what is new in the whole folder, and forget what is no longer there."""
        start = time.monotonic()
        self._next_listing = now + self.interval
        try:
            identity = identity_of(self.folder)
        except OSError:
            if not self._is_away:
                _warn(f"{printable(self.folder)} is not there: waiting for it")
            self._is_away = True  # nothing is forgotten
            return
        self._is_away = False
        is_first = identity != self._identity
        if is_first:
            self._begin(identity, now)
        there: set[bytes] = set()
        away = self._folders_away()  # before and after the listing, which may have come between
        for image in _images(_list_quietly(self.folder)):
            digest = digest_of(image.key)
            if digest in self._given:
                there.add(digest)
                continue
            if after_events and not is_first and image.path not in self._waiting:
                self._without_event.setdefault(image.path, now)  # until its event comes
            self._notice(image, now)
        away |= self._folders_away()
        self._missed = {folder: self._missed.get(folder, now) for folder in away}
        short = {folder for folder, since in self._missed.items() if now - since <= _LONGEST_ABSENCE}
        self._given = {digest: folder for digest, folder in self._given.items() if digest in there or folder in short}
        seconds = self.interval if self._events is None else max(self.interval, _BETWEEN_LISTINGS)
        self._next_listing = now + max(seconds, _PAUSE_PER_LISTING * (time.monotonic() - start))

    def _folders_away(self) -> set[str]:
        """Return the folders of images that were given which cannot be listed now."""
        return {folder for folder in set(self._given.values()) if not _can_be_listed(folder)}

    def _begin(self, identity: tuple[int, int], now: float) -> None:
        """Start with a folder: observe it, then learn what is done of what is there."""
        self.close()
        if self._with_events:
            try:
                self._events = FolderEvents(self.folder)
            except ImportError:
                self._stop_events("watchdog is not installed (pip install watchdog)", now)
            except OSError as error:
                self._stop_events(printable(error), now)
        self._waiting.clear()
        self._without_event.clear()
        self._given = {}
        paths = list_images(self.folder, recursive=True)  # the only one whose warnings are shown
        if self.done is not None:
            there = {digest_of(image.key) for image in _images(map(str, paths))}
            self._given = {digest: _folder_of(key[0]) for key in self.done() if (digest := digest_of(key)) in there}
        self._identity = identity

    def _stop_events(self, reason: str, now: float) -> None:
        _warn(f"{reason}: {printable(self.folder)} is listed every {self.interval:g} s instead")
        self._with_events = False
        self._without_event.clear()
        self._next_listing = min(self._next_listing, now + self.interval)
        self.close()

    def _wait(self) -> None:
        """Wait for an event, or until something is due."""
        now = time.monotonic()
        due = min((due for due, _ in self._waiting.values()), default=inf)
        until = min(due, self._next_listing, now + self.interval)
        while not self.stopped and (left := until - time.monotonic()) > 0:
            if self._events is None:
                time.sleep(min(left, 0.2))
            elif self._events.wait(min(left, 0.2)):
                time.sleep(0.02)  # events come in groups
                return


def _images(paths: Iterable[str]) -> Iterator[NewImage]:
    """Yield files as they are now, without those that have gone and links to files that are yet to come."""
    for path in paths:
        status = status_of(path)
        if status is not None:
            yield NewImage(path, *status)


def _folder_of(path: str) -> str:
    return sys.intern(os.path.dirname(path))  # one string for all of its images


def _can_be_listed(folder: str) -> bool:
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def _list_quietly(folder: Path) -> Iterator[str]:
    """Yield the images of a folder and its subfolders, without the warnings that were shown at the start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = list_images(folder, recursive=True)
    yield from map(str, images)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)

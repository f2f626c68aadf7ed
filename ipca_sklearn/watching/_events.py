"""Change events of a folder, through watchdog."""

from __future__ import annotations

import os
import threading
from pathlib import Path, PurePath
from typing import Any

from ipca_sklearn.datasets import IMAGE_SUFFIXES

# Not "opened" and "closed_no_write": reading an image does not change it.
_CHANGES = ("created", "modified", "moved", "closed")
# More paths than this are not kept until the next call of `take`; the folder is then listed.
_MOST_PATHS = 10_000


class FolderEvents:
    """Paths of a folder, searched through all levels but not through links, that something has happened to."""

    def __init__(self, folder: Path) -> None:
        from watchdog.observers import Observer

        self._folder = str(folder)
        self._real = os.path.realpath(folder)
        self._paths: set[str] = set()
        self._too_many = False
        self._lock = threading.Lock()
        self._changed = threading.Event()
        # Any: mypy runs with and without watchdog, whose class of handlers cannot be a base of this one.
        make_observer: Any = Observer
        self._observer = make_observer()
        self._observer.schedule(self, self._real, recursive=True)
        self._observer.start()

    def close(self) -> None:
        """End the thread that waits for events."""
        self._observer.stop()
        self._observer.join()

    def wait(self, seconds: float) -> bool:
        """Return whether something has changed, as soon as it has."""
        return self._changed.wait(seconds)

    def take(self) -> set[str] | None:
        """Return the paths of images and folders that have changed since the last call; None if they are too many."""
        with self._lock:
            paths, too_many = self._paths, self._too_many
            self._paths, self._too_many = set(), False
            self._changed.clear()
        return None if too_many else paths

    def dispatch(self, event: Any) -> None:
        """Take an event; watchdog calls this in a thread of its own."""
        if event.event_type not in _CHANGES or (event.is_directory and event.event_type == "modified"):
            return
        for name in (event.src_path, event.dest_path):
            within = os.path.relpath(os.fsdecode(name), self._real) if name else ".."
            if is_visible(within) and (event.is_directory or is_image_name(within)):
                with self._lock:
                    self._too_many = self._too_many or len(self._paths) >= _MOST_PATHS
                    if not self._too_many:
                        self._paths.add(os.path.join(self._folder, within))
                    self._changed.set()


def is_visible(within: str) -> bool:
    """Return whether no part of a path within a folder begins with a dot; the folder itself and others do."""
    return not any(part.startswith(".") for part in PurePath(within).parts or (".",))


def is_image_name(name: str) -> bool:
    """Return whether a name ends like that of an image that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES

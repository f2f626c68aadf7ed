"""watch: from new images to durable rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

from ipca_sklearn.watching._folder import FolderWatcher
from ipca_sklearn.watching._rows import RowFile

if TYPE_CHECKING:
    from ipca_sklearn.monitoring import DriftMonitor

_SCORES_AT_ONCE = 10_000


def watch(
    score: Callable[[Sequence[str]], Iterable[dict[str, Any]]],
    watcher: FolderWatcher,
    rows: RowFile,
    *,
    monitor: DriftMonitor | None = None,
    idle: Callable[[], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """Score the images of a folder as they appear, and append a row for each; yield the rows that are on the disk.

    Every content of every image has one row, also after a kill or a power cut: images of the table are not scored
    again, and those that came meanwhile are scored at the start.

    Parameters
    ----------
    score : callable
        Takes paths of images and returns an iterable of as many dicts, with the columns that are known: `score`,
        `p_value`, `label`, ... An image that cannot be read has an `error` and no `score`.
    watcher : FolderWatcher
        Its `stop` ends this, after the row in work. Its `done` is set to the keys of the table.
    rows : RowFile
        Use one for each model: images that have a row of another model are not scored again.
    monitor : DriftMonitor or None, default=None
        Gets the scores in the order of the rows, first those that the table has. Its alarm is the column `drift`. With
        the same `random_state` it is in the same state after a restart.
    idle : callable or None, default=None
        Called when there is nothing to do, at least every `watcher.interval` seconds.

    Yields
    ------
    dict
        The columns of the row, and what else `score` has put into it.

    Raises
    ------
    OSError, ValueError
        As `RowFile`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from ipca_sklearn.watching import FolderWatcher, RowFile, watch
    >>> def score(paths):  # with a model: [{"score": value} for value in pipe.score_samples(paths)]
    ...     return [{"score": -1.0} for path in paths]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (8, 8)).save(Path(folder, "a.png"))
    ...     watcher = FolderWatcher(folder, settle=0, events=False)
    ...     with watcher, RowFile(Path(folder, "rows.csv")) as rows:
    ...         for row in watch(score, watcher, rows):
    ...             print(Path(row["path"]).name, row["score"])
    ...             watcher.stop()
    a.png -1.0
    """
    watcher.done = rows.image_keys
    if monitor is not None:  # to where it was after the last row
        scores = map(_score_of, rows)
        while some := list(itertools.islice(scores, _SCORES_AT_ONCE)):
            monitor.update_scores(some)
    for images in watcher.batches(idle):
        for image, scored in zip(images, score([image.path for image in images]), strict=True):
            if scored.get("score") is None and scored.get("error") is not None and watcher.retry(image):
                continue
            drift = None
            if monitor is not None:
                monitor.update_scores(_score_of(scored))
                drift = int(monitor.alarm_)
            of_file = {"path": image.path, "n_bytes": image.n_bytes, "modified_ns": image.modified_ns}
            row = scored | of_file | {"drift": drift}
            rows.append(row)
            yield row
            if watcher.stopped:
                return


def _score_of(row: dict[str, Any]) -> float:
    score = row.get("score")
    return nan if score is None else score

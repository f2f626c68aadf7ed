"""What an extractor remembers of its training images: which could not be read, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ipca_sklearn._utils._versions import VersionedMixin
from ipca_sklearn.features._remarks import SkippedImages


class TrainingRecordMixin(VersionedMixin):
    """Keep the record of skipped images, in pickles as plain data; a fitted extractor leaves its cache behind there."""

    _training_record: SkippedImages

    @property
    def skipped_(self) -> dict[int, str]:
        """Images that could not be read in training: positions in X, and reasons."""
        return self._training_record.reasons

    def _begin_record(self) -> None:
        self._training_record = SkippedImages()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_training_record" in state:  # fitted
            state |= {"cache": None, "_training_record": self.skipped_}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_training_record" in state:
            self._training_record = SkippedImages(state["_training_record"])


@contextmanager
def unchanged_after_error(estimator: Any) -> Iterator[None]:
    """Restore the attributes of an estimator if the block raises."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise

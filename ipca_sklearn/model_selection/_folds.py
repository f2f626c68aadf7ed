"""Splits in which only normal samples are learnt."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, column_or_1d

from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._sklearn_compat import num_samples
from ipca_sklearn._utils._typing import ArrayLike

RandomState: TypeAlias = int | np.random.RandomState | None


class OneClassKFold(BaseCrossValidator):
    """K-fold splits for learning from normal samples only: anomalous samples are tested and never learnt.

    The normal samples are split as by :class:`sklearn.model_selection.KFold`. Each fold is tested together with all
    anomalous samples, so every anomalous sample is tested `n_splits` times, and every fold has an ROC curve.
    Use it as `cv` of :class:`sklearn.model_selection.GridSearchCV` and the other searches.

    Parameters
    ----------
    n_splits : int, default=5
        Folds, at least 2.
    shuffle : bool, default=False
        Shuffle the normal samples before they are split. Otherwise a fold holds consecutive images: a harder and often
        more honest test if images of one shift look alike.
    random_state : int, RandomState or None, default=None
        For `shuffle`. The halving searches need an integer.

    See Also
    --------
    RepeatedOneClassKFold : The same several times, shuffled differently.
    ipca_sklearn.FeatureCache : Keeps features on disk, so that a search runs the network once per image.

    Notes
    -----
    With `groups` (images of one part, or of one roll), no group is on both sides: those of the normal samples are split
    as by :class:`sklearn.model_selection.GroupKFold`. An anomalous sample is tested only in folds with training samples
    of other groups: in one fold if its group has normal samples, else in all. A search runs the network once per image
    if the extractor has a :class:`ipca_sklearn.FeatureCache`.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn.model_selection import OneClassKFold
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> for train, test in OneClassKFold(n_splits=2).split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4 5]
    [0 1] [2 3 4 5]
    """

    # scikit-learn's metadata routing passes groups on without a request, as to its own splitters of groups.
    __metadata_request__split = {"groups": True}  # noqa: RUF012

    def __init__(self, n_splits: int = 5, *, shuffle: bool = False, random_state: RandomState = None) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits; the arguments are ignored."""
        return self.n_splits

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of the training and of the test samples of each fold.

        Parameters
        ----------
        X : sequence of n samples
            Only its length is used.
        y : array-like of shape (n,), default=None
            +1 for normal, -1 for anomalous samples; None if all are normal. 0 and 1 are refused: scikit-learn's
            scorers, which get the same y, take 1 for the normal class whatever 0 means.
        groups : array-like of shape (n,), default=None
            Samples with the same value belong together.

        Yields
        ------
        train, test : ndarray of int
            Ascending.

        Raises
        ------
        ValueError
            Other labels, `n_splits` below 2, fewer normal samples (or groups of them) than splits.
        """
        check_consistent_length(X, y, groups)
        if not isinstance(self.n_splits, Integral) or self.n_splits < 2:
            raise ValueError(f"n_splits={self.n_splits!r}: an integer of at least 2")
        n_samples = num_samples(X)
        labels = np.ones(n_samples, dtype=int) if y is None else check_labels(y)
        normal, anomalous = np.flatnonzero(labels == 1), np.flatnonzero(labels == -1)
        if groups is None:
            if len(normal) < self.n_splits:
                raise ValueError(f"n_splits={self.n_splits} of {len(normal)} normal samples: lower it")
            folds = KFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state).split(normal)
            for train, test in folds:
                yield normal[train], np.sort(np.concatenate([normal[test], anomalous]))
            return
        of_group = column_or_1d(groups)
        n_groups = len(np.unique(of_group[normal]))
        if n_groups < self.n_splits:
            raise ValueError(f"n_splits={self.n_splits} of {n_groups} groups of normal samples: lower it")
        grouped = GroupKFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)
        for train, test in grouped.split(normal, groups=of_group[normal]):
            apart = anomalous[~np.isin(of_group[anomalous], of_group[normal[train]])]
            yield normal[train], np.sort(np.concatenate([normal[test], apart]))


class RepeatedOneClassKFold(OneClassKFold):
    """`n_repeats` times :class:`OneClassKFold`, each time shuffled differently.

    Parameters
    ----------
    n_splits : int, default=5
        Folds of each repetition.
    n_repeats : int, default=10
        Repetitions.
    random_state : int, RandomState or None, default=None
        An integer gives the same splits in every call; the halving searches need that.

    Examples
    --------
    >>> from ipca_sklearn.model_selection import RepeatedOneClassKFold
    >>> cv = RepeatedOneClassKFold(n_splits=2, n_repeats=3, random_state=0)
    >>> cv.get_n_splits(), len(list(cv.split([0, 1, 2, 3], [1, 1, 1, -1])))
    (6, 6)
    """

    def __init__(self, n_splits: int = 5, *, n_repeats: int = 10, random_state: RandomState = None) -> None:
        self.n_splits = n_splits
        self.n_repeats = n_repeats
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits, of all repetitions; the arguments are ignored."""
        return self.n_splits * self.n_repeats

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the folds of one repetition after the other; see :meth:`OneClassKFold.split`."""
        if not isinstance(self.n_repeats, Integral) or self.n_repeats < 1:
            raise ValueError(f"n_repeats={self.n_repeats!r}: an integer of at least 1")
        rng = check_random_state(self.random_state)
        for _ in range(self.n_repeats):
            once = OneClassKFold(self.n_splits, shuffle=True, random_state=rng.randint(2**31 - 1))
            yield from once.split(X, y, groups)

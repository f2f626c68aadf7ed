"""Decorators of an estimator's methods: those that change it take turns, and those that read it see one state.

Both compute in `own_surroundings`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ipca_sklearn._utils._surroundings import own_surroundings

_Method = TypeVar("_Method", bound=Callable[..., Any])

# Not attributes of the estimators: locks cannot be pickled, and a copy of an estimator has turns of its own.
_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_making = threading.Lock()


def _forget() -> None:
    """In a child process: the threads that held locks when it was forked do not live on there."""
    global _making
    _making = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def in_turn(method: _Method) -> _Method:
    """Decorate a method that changes its estimator: one thread at a time is in such a method."""

    @wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _making:
            lock = _locks.setdefault(self, threading.RLock())
        with lock, own_surroundings():
            return method(self, *args, **kwargs)

    return waiting  # type: ignore[return-value]


def of_one_state(method: _Method) -> _Method:
    """Decorate a method that reads its estimator: it sees the fitted attributes of the start of the call."""

    @wraps(method)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        with own_surroundings():
            return method(snapshot(self), *args, **kwargs)

    return reading  # type: ignore[return-value]


def snapshot(estimator: Any) -> Any:
    """Return an estimator that keeps the present attributes: a fit replaces them, and changes none in place."""
    view = object.__new__(type(estimator))
    view.__dict__ = estimator.__dict__.copy()
    return view

"""Several threads and one estimator: those that change it take turns, and those that read it see one state of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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
    """Let a method that changes its estimator wait until no other thread is in such a method of the same estimator."""

    @wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _making:
            lock = _locks.setdefault(self, threading.RLock())
        with lock:
            return method(self, *args, **kwargs)

    return waiting  # type: ignore[return-value]


def of_one_state(method: _Method) -> _Method:
    """Let a method that reads its estimator see what it has learnt at the start of the call, until its end."""

    @wraps(method)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(snapshot(self), *args, **kwargs)

    return reading  # type: ignore[return-value]


def snapshot(estimator: Any) -> Any:
    """Return an estimator that shares all attributes, and keeps them when a fit replaces those of `estimator`.

    All that is learnt is replaced at once (`set_learnt`), and never changed in place.
    """
    view = object.__new__(type(estimator))
    view.__dict__ = estimator.__dict__.copy()
    return view

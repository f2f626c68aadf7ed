"""A constructor parameter and a method of one name."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any


class MethodAndParameter:
    """A method that shares its name with a constructor parameter.

    Which distance is the score is the parameter `score`, and `score(X)` is what scikit-learn's model selection calls.
    The instance dictionary holds the parameter (`get_params` and `set_params` see it), the attribute is the method.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self._method, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._method.__name__] = value

"""What scikit-learn's `set_output` and `set_config(transform_output=...)` mean for samples that are no rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ipca_sklearn._utils._sklearn_compat import fit_transform, in_container


class TableOutputMixin:
    """Mixin for transformers whose output becomes a data frame only if it is a numpy array without patches.

    scikit-learn's own wrapper takes every output for a table, and fails on patches, tensors and lazily read features.
    The class has `patch_shape_` and names this one before `TransformerMixin`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("transform", "fit_transform"):
            # scikit-learn has just wrapped the methods of the class in its own way.
            if name in vars(cls) and "transform" in cls._sklearn_auto_wrap_output_keys:  # type: ignore[attr-defined]
                setattr(cls, name, _tables_in_containers(vars(cls)[name].__wrapped__))

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit, and transform X.

        Parameters
        ----------
        X, y, **fit_params
            As `fit` takes them.

        Returns
        -------
        array
            As `transform` returns it.
        """
        return fit_transform(self, X, y, **fit_params)


def _tables_in_containers(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def transforming(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        output = method(self, X, *args, **options)
        is_table = isinstance(output, np.ndarray) and self.patch_shape_ == ()
        return in_container("transform", output, X, self) if is_table else output

    return transforming

"""Every name of scikit-learn and joblib that this package uses and that they do not document, in one place.

Seen in scikit-learn 1.6 to 1.9 and joblib 1.5 and 1.6. If a new version moves one of them, this is the only file to
change.
"""

from __future__ import annotations

from typing import Any

from joblib.externals.loky import ProcessPoolExecutor  # a pool whose workers survive a fork of torch's threads
from joblib.parallel import LokyBackend, get_active_backend  # the backend that `joblib.parallel_config` names
from sklearn.base import TransformerMixin
from sklearn.base import _fit_context as fit_context  # validates parameters and runs callbacks around `fit`
from sklearn.utils._optional_dependencies import check_matplotlib_support  # the error of scikit-learn's displays
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions, validate_params  # declared constraints
from sklearn.utils._set_output import _wrap_data_with_container as in_container  # a data frame, if one is asked for
from sklearn.utils.validation import _get_feature_names as feature_names  # the names of columns, or None
from sklearn.utils.validation import _num_samples as num_samples  # the length of whatever is an X

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for the class that takes callbacks, where scikit-learn has none."""


fit_transform = TransformerMixin.fit_transform.__wrapped__  # without the wrapper that makes data frames


def validate_parameters(estimator: Any) -> None:
    """Raise scikit-learn's InvalidParameterError (a ValueError) if a parameter does not meet its constraints."""
    estimator._validate_params()


class FitProgress:
    """Report a fit, decorated with `fit_context`, and at most `n_steps` of it to scikit-learn's callbacks, if any."""

    def __init__(self, estimator: Any, n_steps: int, X: Any, y: Any) -> None:
        self._callback_data = {"estimator": estimator, "X": X, "y": y}
        self._context = None
        if getattr(estimator, "_skl_callbacks", None) or hasattr(estimator, "_parent_callback_ctx"):
            self._context = estimator._init_callback_context(max_subtasks=n_steps)
            self._context.call_on_fit_task_begin(**self._callback_data)

    @property
    def is_watched(self) -> bool:
        """Whether there are callbacks."""
        return self._context is not None

    def step(self) -> None:
        """Report a learnt step. Stop requests are ignored: unread images could not set the threshold."""
        if self._context is not None:
            step = self._context.subcontext(task_name="step").call_on_fit_task_begin(**self._callback_data)
            step.call_on_fit_task_end(**self._callback_data)

    def end(self) -> None:
        """Report the end of the fit."""
        if self._context is not None:
            self._context.call_on_fit_task_end(**self._callback_data)

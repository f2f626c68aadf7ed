"""Errors and warnings of the package in the words of the command line: `step_size=0` is `--step 0`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# What options are called in Python, where it is another name.
_IN_PYTHON = {
    "k": "n_components",
    "gaussians": "n_gaussians",
    "step": "step_size",
    "jobs": "n_jobs",
    "seed": "random_state",
}
# Of `fit`, but later commands warn of it.
_OF_MODELS = {"false_positive_rate": "--false-positive-rate"}
_PHRASES = (
    ("timm has no model", "--backbone: timm has no model"),
    ("see timm.list_models()", "`--backbone 'timm:*'` prints which there are"),
    ("call calibrate with normal images", "choose it by `ipca-sklearn threshold` with normal images"),
    ("set_threshold", "`ipca-sklearn threshold`"),
    ("'auto' or None", "or 'auto'"),
)


class OptionNames:
    """Puts the names of a command's options in the place of those of parameters.

    Parameters
    ----------
    parameters : iterable of click parameters
        Of the command.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        self._options = dict(_OF_MODELS)
        for parameter in parameters:
            long = [name for name in parameter.opts if name.startswith("--")]
            if long:  # else it is an argument
                self._options[_IN_PYTHON.get(parameter.name, parameter.name)] = long[0]
        names = "|".join(sorted(self._options, key=len, reverse=True))
        # Names alone are words of the language too, unless they have an underscore; and no path is changed.
        long_names = "|".join(name for name in self._options if "_" in name)
        self._patterns = (
            re.compile(rf"(?:The )?'({names})' parameter of \w+()"),
            re.compile(rf"(?<![\w./\\-])({names})=(?=[\s,;.)]|$)()"),
            re.compile(rf"(?<![\w./\\-])({names})( == |=)"),
            re.compile(rf"^({names})(?=: )()"),
            re.compile(rf"(?<![\w./\\-])({long_names})(?![\w/=]|\.\w)()"),
        )

    def __call__(self, text: object) -> str:
        """Return a message with the names of options."""
        message = str(text)
        for phrase, words in _PHRASES:
            message = message.replace(phrase, words)
        for pattern in self._patterns:
            message = pattern.sub(lambda found: self._options[found[1]] + (" " if found[2] else ""), message)
        return message

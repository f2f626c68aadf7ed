"""What a page says about itself: which model, of which images, when, and by which version."""

from __future__ import annotations

import html
import os
from datetime import datetime
from typing import Any

import joblib
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._files import file_digest, printable
from ipca_sklearn._version import __version__

N_DIGITS = 12  # of a digest: enough to tell the models of a line apart


def describe_model(model: Any) -> str:
    """Return a text that tells a model from others; a str is the text itself.

    A file is described by its name and by the first digits of the SHA-256 digest of its bytes, as `sha256sum` prints
    it; an estimator by its classes and by a digest of what its last step has learnt.
    """
    if isinstance(model, str):
        return printable(model)
    if isinstance(model, os.PathLike):
        return f"{printable(os.path.basename(model))} (SHA-256 {file_digest(model)[:N_DIGITS]})"
    if not isinstance(model, BaseEstimator):
        raise TypeError(f"model is a {type(model).__name__}; give its file as a Path, a fitted estimator, or a text")
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    classes = ", ".join(type(step).__name__ for step in steps)
    # The last step alone: an extractor keeps more while it is used, so its digest would change without any learning.
    return f"{classes} (digest {joblib.hash(steps[-1])[:N_DIGITS]})"


def provenance(model: str | None, source: str | None, n_images: int, written: datetime) -> str:
    """Return the line of a page that says what it is, as HTML."""
    counted = f"{n_images} image{'' if n_images == 1 else 's'}"
    parts = [
        "" if model is None else f"Model: <b>{html.escape(model)}</b>",
        html.escape(counted if source is None else f"{counted}: {source}"),
        f'<time datetime="{written.isoformat(timespec="seconds")}">{written.strftime("%Y-%m-%d %H:%M %z")}</time>',
        f"ipca_sklearn {__version__}",
    ]
    return " · ".join(f"<span>{part}</span>" for part in parts if part)

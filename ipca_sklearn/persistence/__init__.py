"""Fitted estimators and pipelines on disk: whole or not at all, in files that can execute code or in files that cannot.

`save` and `load` write and read joblib files, `save_skops` and `load_skops` files that are safe to load from others.
"""

from ipca_sklearn.persistence._model_files import fit_resumable, load, load_skops, save, save_skops, trusted_types

__all__ = ["fit_resumable", "load", "load_skops", "save", "save_skops", "trusted_types"]

"""Fitted estimators and pipelines on disk, and long fits that survive an interruption. Files are complete or not there.

`save` and `load` write and read joblib files, which can execute code. `save_skops` and `load_skops` write and read
files that cannot, for models from others. `fit_resumable` saves checkpoints while it fits.
`record_training` keeps with a model which images it has learnt; `new_images` tells which others are not among them.
"""

from ipca_sklearn.persistence._checkpoints import fit_resumable
from ipca_sklearn.persistence._image_digests import digest_images, noting_pixels, pixel_numbers
from ipca_sklearn.persistence._joblib import load, save
from ipca_sklearn.persistence._skops import load_skops, save_skops, trusted_types
from ipca_sklearn.persistence._training import new_images, record_training

__all__ = [
    "digest_images",
    "fit_resumable",
    "load",
    "load_skops",
    "new_images",
    "noting_pixels",
    "pixel_numbers",
    "record_training",
    "save",
    "save_skops",
    "trusted_types",
]

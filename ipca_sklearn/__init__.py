"""Visual anomaly detection with thousands of small incremental PCAs, as scikit-learn estimators."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ipca_sklearn._version import __version__

if TYPE_CHECKING:
    from ipca_sklearn.decomposition import BatchedIncrementalPCA
    from ipca_sklearn.detection import PatchGaussianDetector
    from ipca_sklearn.exceptions import FewImagesWarning, ImageReadError, SkippedImagesWarning
    from ipca_sklearn.features import FeatureCache, PatchFeatureExtractor, PatchFeatures
    from ipca_sklearn.products import ProductRouter

__all__ = [
    "BatchedIncrementalPCA",
    "FeatureCache",
    "FewImagesWarning",
    "ImageReadError",
    "PatchFeatureExtractor",
    "PatchFeatures",
    "PatchGaussianDetector",
    "ProductRouter",
    "SkippedImagesWarning",
    "__version__",
]

# Imported on first use: a PCA needs neither torchvision nor Pillow, and `ipca-sklearn --help` needs neither torch
# nor scikit-learn.
_ROOMS = {
    "BatchedIncrementalPCA": "decomposition",
    "FeatureCache": "features",
    "FewImagesWarning": "exceptions",
    "ImageReadError": "exceptions",
    "PatchFeatureExtractor": "features",
    "PatchFeatures": "features",
    "PatchGaussianDetector": "detection",
    "ProductRouter": "products",
    "SkippedImagesWarning": "exceptions",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})

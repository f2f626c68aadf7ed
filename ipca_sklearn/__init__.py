"""Visual anomaly detection with thousands of small incremental PCAs, as scikit-learn estimators."""

from ipca_sklearn._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn._images import ImageReadError, SkippedImagesWarning
from ipca_sklearn._lazy_features import PatchFeatures
from ipca_sklearn._patch_features import PatchFeatureExtractor
from ipca_sklearn._patch_gaussian import PatchGaussianDetector

__version__ = "0.1.0"

__all__ = [
    "BatchedIncrementalPCA",
    "ImageReadError",
    "PatchFeatureExtractor",
    "PatchFeatures",
    "PatchGaussianDetector",
    "SkippedImagesWarning",
]

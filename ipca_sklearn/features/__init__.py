"""Images to features: a grid of patches, each described by the layers of a frozen network."""

from ipca_sklearn.features._cache import FeatureCache
from ipca_sklearn.features._extractor import PatchFeatureExtractor
from ipca_sklearn.features._lazy import PatchFeatures
from ipca_sklearn.features.backbones._catalogue import list_backbones, weights_license

__all__ = ["FeatureCache", "PatchFeatureExtractor", "PatchFeatures", "list_backbones", "weights_license"]

"""What is learnt to anomaly maps, scores and labels."""

from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector

__all__ = ["PatchGaussianDetector"]

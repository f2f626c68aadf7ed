"""What is learnt to anomaly maps, scores, labels and lists of defects."""

from ipca_sklearn.detection._patch_gaussian import PatchGaussianDetector
from ipca_sklearn.detection._regions import Defect, find_defects

__all__ = ["Defect", "PatchGaussianDetector", "find_defects"]

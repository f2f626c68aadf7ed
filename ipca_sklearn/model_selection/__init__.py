"""Choosing parameters: a search that learns once for many candidates, splits of normal samples, scorers."""

from ipca_sklearn.model_selection._folds import OneClassKFold, RepeatedOneClassKFold
from ipca_sklearn.model_selection._scorers import ReadableScorer
from ipca_sklearn.model_selection._search import DetectorGridSearchCV

__all__ = ["DetectorGridSearchCV", "OneClassKFold", "ReadableScorer", "RepeatedOneClassKFold"]

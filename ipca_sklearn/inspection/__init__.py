"""Pictures of what a detector sees and has learnt, in scikit-learn's Display convention, and a report in HTML."""

from ipca_sklearn.inspection._anomaly_maps import AnomalyMapDisplay
from ipca_sklearn.inspection._explained_variance import ExplainedVarianceDisplay
from ipca_sklearn.inspection._report import HtmlReport
from ipca_sklearn.inspection._threshold import ThresholdDisplay

__all__ = ["AnomalyMapDisplay", "ExplainedVarianceDisplay", "HtmlReport", "ThresholdDisplay"]

"""Pictures of what a detector sees and has learnt: Display objects as in scikit-learn, heat maps, an HTML report."""

from ipca_sklearn.inspection._anomaly_maps import AnomalyMapDisplay
from ipca_sklearn.inspection._drift import DriftDisplay
from ipca_sklearn.inspection._explained_variance import ExplainedVarianceDisplay
from ipca_sklearn.inspection._model_card import ModelCard, model_card
from ipca_sklearn.inspection._pictures import defect_mask, heat_layer, hottest_box, map_of_pixels, open_upright, overlay
from ipca_sklearn.inspection._pimo import PimoDisplay
from ipca_sklearn.inspection._report import HtmlReport
from ipca_sklearn.inspection._threshold import ThresholdDisplay

__all__ = [
    "AnomalyMapDisplay",
    "DriftDisplay",
    "ExplainedVarianceDisplay",
    "HtmlReport",
    "ModelCard",
    "PimoDisplay",
    "ThresholdDisplay",
    "defect_mask",
    "heat_layer",
    "hottest_box",
    "map_of_pixels",
    "model_card",
    "open_upright",
    "overlay",
]

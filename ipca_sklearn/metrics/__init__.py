"""Measures of anomaly detectors on images, pixels and defect regions, with confidence intervals.

There are two directions, as everywhere in this package. *Scores* of images (``score_samples``) are higher for more
normal images, with scikit-learn's outlier labels +1 (normal) and -1 (anomalous). Anomaly *maps* are larger where a
pixel is more anomalous, with masks that are true on the defects.
"""

from ipca_sklearn.metrics._aupimo import PimoCurves, aupimo_score, pimo_curves
from ipca_sklearn.metrics._comparison import compare_scores
from ipca_sklearn.metrics._images import image_average_precision_score, image_f1_max_score, image_roc_auc_score
from ipca_sklearn.metrics._inputs import resize_maps
from ipca_sklearn.metrics._intervals import confidence_interval
from ipca_sklearn.metrics._pixels import (
    aupro_score,
    pixel_average_precision_score,
    pixel_f1_max_score,
    pixel_f1_score,
    pixel_roc_auc_score,
)
from ipca_sklearn.metrics._regions import found_by_size, pro_score, region_f1_score
from ipca_sklearn.metrics._report import evaluation_report

__all__ = [
    "PimoCurves",
    "aupimo_score",
    "aupro_score",
    "compare_scores",
    "confidence_interval",
    "evaluation_report",
    "found_by_size",
    "image_average_precision_score",
    "image_f1_max_score",
    "image_roc_auc_score",
    "pimo_curves",
    "pixel_average_precision_score",
    "pixel_f1_max_score",
    "pixel_f1_score",
    "pixel_roc_auc_score",
    "pro_score",
    "region_f1_score",
    "resize_maps",
]

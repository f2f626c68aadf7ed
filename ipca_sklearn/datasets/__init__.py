"""Data sets for visual anomaly detection: folders on disk, one download, and generated surfaces that need neither.

Labels follow scikit-learn's outlier convention everywhere: +1 is normal, -1 is anomalous.
"""

from __future__ import annotations

from ipca_sklearn.datasets._folders import IMAGE_SUFFIXES, list_images
from ipca_sklearn.datasets._magnetic_tile import fetch_magnetic_tile, load_magnetic_tile
from ipca_sklearn.datasets._mvtec import load_mvtec_ad, load_test_images
from ipca_sklearn.datasets._textures import make_textures

__all__ = [
    "IMAGE_SUFFIXES",
    "fetch_magnetic_tile",
    "list_images",
    "load_magnetic_tile",
    "load_mvtec_ad",
    "load_test_images",
    "make_textures",
]

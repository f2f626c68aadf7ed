"""Detect drift of the scores of a running line."""

from ipca_sklearn.monitoring._drift import DriftMonitor

__all__ = ["DriftMonitor"]

"""What is watched while a line runs: whether its scores are still what they were."""

from ipca_sklearn.monitoring._drift import DriftMonitor

__all__ = ["DriftMonitor"]

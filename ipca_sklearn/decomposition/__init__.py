"""Features to what is learnt: thousands of small PCAs, updated together one step of samples at a time."""

from ipca_sklearn.decomposition._base import MemoryNeed
from ipca_sklearn.decomposition._batched_ipca import BatchedIncrementalPCA
from ipca_sklearn.decomposition._full_covariance import FullCovariance

__all__ = ["BatchedIncrementalPCA", "FullCovariance", "MemoryNeed"]

"""Eigensolvers for many small symmetric matrices, and the choice between them."""

from ipca_sklearn.linalg.eigh._alone import Decomposition, failures, one_at_a_time, solve_failures_alone, svd_alone
from ipca_sklearn.linalg.eigh._choice import EIGENSOLVERS, Eigensolver, choose_eigensolver, scatter_eigensolver

__all__ = [
    "EIGENSOLVERS",
    "Decomposition",
    "Eigensolver",
    "choose_eigensolver",
    "failures",
    "one_at_a_time",
    "scatter_eigensolver",
    "solve_failures_alone",
    "svd_alone",
]

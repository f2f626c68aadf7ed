"""Eigensolvers for many small symmetric matrices, and the choice between them."""

from ipca_sklearn.linalg.eigh._alone import Decomposition, marking_failures, solving_failures_alone, svd_alone
from ipca_sklearn.linalg.eigh._choice import EIGENSOLVERS, Eigensolver, choose_eigensolver, scatter_eigensolver

__all__ = [
    "EIGENSOLVERS",
    "Decomposition",
    "Eigensolver",
    "choose_eigensolver",
    "marking_failures",
    "scatter_eigensolver",
    "solving_failures_alone",
    "svd_alone",
]

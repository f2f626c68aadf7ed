"""Eigensolvers for many small symmetric matrices, and the choice between them."""

from ipca_sklearn.linalg.eigh._choice import EIGENSOLVERS, Eigensolver, choose_eigensolver, scatter_eigensolver

__all__ = ["EIGENSOLVERS", "Eigensolver", "choose_eigensolver", "scatter_eigensolver"]

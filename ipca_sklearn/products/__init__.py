"""Several products on one line: a detector for each, and which of them an image shows."""

from ipca_sklearn.products._router import ProductRouter, RoutedImages

__all__ = ["ProductRouter", "RoutedImages"]

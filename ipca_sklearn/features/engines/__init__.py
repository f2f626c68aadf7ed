"""Engines: libraries that run the network on a CPU faster than eager torch, with the same features."""

from ipca_sklearn.features.engines._choice import ENGINES, Choice, choose, require

__all__ = ["ENGINES", "Choice", "choose", "require"]

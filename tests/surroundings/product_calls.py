"""Public calls of a detector for each product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ipca_sklearn import PatchGaussianDetector, ProductRouter
from tests.surroundings.world import World


def product_calls(w: World) -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""

    products = np.arange(len(w.X)) % 2

    def blank() -> ProductRouter:
        return ProductRouter(PatchGaussianDetector(4), rejection_rate=0.1)

    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: blank().fit(w.X, products),
        "fit_transform": lambda: blank().fit_transform(w.X, products),
        "partial_fit": lambda: w["router"].partial_fit(w.new, np.arange(len(w.new)) % 2),
        "products_": lambda: w["router"].products_,
        "rejection_rates_": lambda: w["router"].rejection_rates_,
        "route": lambda: w["router"].route(w.new),
        "route tensor": lambda: w["router"].route(w.cpu_new),
        "predict_product": lambda: [str(name) for name in w["router"].predict_product(w.new)],
        "predict": lambda: w["router"].predict(w.new),
        "predict given": lambda: w["router"].predict(w.new, 1),
        "score_samples": lambda: w["router"].score_samples(w.new),
        "decision_function": lambda: w["router"].decision_function(w.new),
        "transform": lambda: w["router"].transform(w.new),
    }
    return {f"ProductRouter.{name}": call for name, call in calls.items()}

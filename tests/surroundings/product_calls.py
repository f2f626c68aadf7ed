"""Public calls of a detector for each product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ipca_sklearn import PatchGaussianDetector, ProductRouter
from tests.surroundings.world import World


def product_calls(w: World) -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""

    def fitted() -> ProductRouter:
        return ProductRouter(PatchGaussianDetector(4), rejection_rate=0.1).fit(w.X, np.arange(len(w.X)) % 2)

    calls: dict[str, Callable[[], Any]] = {
        "fit": fitted,
        "fit_transform": lambda: ProductRouter(PatchGaussianDetector(4), rejection_rate=0.1).fit_transform(
            w.X, np.arange(len(w.X)) % 2
        ),
        "partial_fit": lambda: fitted().partial_fit(w.new, np.arange(len(w.new)) % 2),
        "products_": lambda: fitted().products_,
        "rejection_rates_": lambda: fitted().rejection_rates_,
        "route": lambda: fitted().route(w.new),
        "route tensor": lambda: fitted().route(w.cpu_new),
        "predict_product": lambda: [str(name) for name in fitted().predict_product(w.new)],
        "predict": lambda: fitted().predict(w.new),
        "predict given": lambda: fitted().predict(w.new, 1),
        "score_samples": lambda: fitted().score_samples(w.new),
        "decision_function": lambda: fitted().decision_function(w.new),
        "transform": lambda: fitted().transform(w.new),
    }
    return {f"ProductRouter.{name}": call for name, call in calls.items()}

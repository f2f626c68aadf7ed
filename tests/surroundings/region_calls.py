"""Public calls that find defects in maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipca_sklearn import detection
from tests.surroundings.world import World


def region_calls(w: World) -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""

    def defect() -> detection.Defect:
        defects = detection.find_defects(w.maps[:1], 0.5, image_sizes=(80, 60), merge_distance=3)[0]
        assert defects
        return defects[0]

    return {
        "detection.find_defects": lambda: detection.find_defects(w.maps, 0.7, normal_maxima=w.maps[:, 0, 0]),
        "Defect.mask": lambda: defect().mask,
        "Defect.outlines": lambda: defect().outlines,
        "Defect.as_dict": lambda: defect().as_dict(),
    }

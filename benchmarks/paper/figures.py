"""The paper's Figures 2 and 3: heat maps of defects on the texture classes, and of the worst false positives.

The pictures show images of the data sets. Their licences forbid passing them on, so pictures are never committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch

from benchmarks.paper.runs import Conditions, Runs, make_detector, make_extractor
from benchmarks.paper.tables import GROUPS, TEXTURES, Setup
from ipca_sklearn.inspection import AnomalyMapDisplay

N_IMAGES = 3


def draw(number: int, runs: Runs, out: Path, name: str) -> list[str]:
    """Write one page per class, `<name>_figure<number>_<class>.png`, and return the outcome of each class."""
    told = []
    for category in TEXTURES if number == 2 else GROUPS["All"]:
        data = runs.paths(category)
        if data is None:
            continue
        try:
            display = draw_class(data, category, number, runs.conditions)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            told.append(f"{category}: not drawn ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            continue
        out.mkdir(parents=True, exist_ok=True)
        display.figure_.savefig(out / f"{name}_figure{number}_{category}.png", dpi=100)
        told.append(category)
        print(f"figure {number}: {category}", file=sys.stderr)
    return told


def draw_class(data: Bunch, category: str, number: int, conditions: Conditions) -> AnomalyMapDisplay:
    """Fit the paper's method to a class and show some of its test images."""
    setup = conditions.resolve(Setup())
    pipe = Pipeline([("features", make_extractor(setup, conditions)), ("detector", make_detector(setup))])
    pipe.fit(data.train_paths)
    chosen = first_of_each_defect(data) if number == 2 else worst_false_positives(data, pipe)
    return AnomalyMapDisplay.from_estimator(
        pipe,
        [data.test_paths[index] for index in chosen],
        masks=[data.mask_paths[index] for index in chosen],
        titles=[f"{category}, {data.defect_types[index]}, {data.test_paths[index].stem}" for index in chosen],
    )


def first_of_each_defect(data: Bunch) -> list[int]:
    """Return the first test image of each of the first types of defect; no result influences the choice."""
    types = sorted(set(data.defect_types[data.test_labels == -1]))[:N_IMAGES]
    return [int(np.flatnonzero(data.defect_types == kind)[0]) for kind in types]


def worst_false_positives(data: Bunch, pipe: Pipeline) -> list[int]:
    """Return the normal test images that look the least normal."""
    normal = np.flatnonzero(data.test_labels == 1)
    scores = np.asarray(pipe.score_samples([data.test_paths[index] for index in normal]))
    return [int(index) for index in normal[np.argsort(scores)[:N_IMAGES]]]

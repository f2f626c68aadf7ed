"""Decide once for all partitions what one fit decides from its first images, and check them before learning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from ipca_sklearn._utils._layouts import Layout
from ipca_sklearn._utils._sklearn_compat import num_samples
from ipca_sklearn.exceptions import ImageReadError, SkippedImagesWarning


@dataclass(frozen=True, eq=False)
class Choices:
    """What the first partition with a readable image decides for all."""

    index: int  # of the partition that decides
    n_samples: int  # in it
    layout: Layout | None  # None for images, which are brought to one size
    # For each step before the last: the size of the first image if it needs no more, or a dict of fitted attributes.
    of_steps: list[Any] = field(default_factory=list)
    dtype: str | None = None  # of the last step; None where the features decide
    seed: int = 0  # for the last step's random choices, if it has no integer for them


def read_partition(partition: Any) -> Any:
    """Return the X of a partition, which may be a callable that returns it."""
    X = partition() if callable(partition) else partition
    return list(X) if isinstance(X, Iterator) else X


def takes_images(model: Any) -> bool:
    """Return whether a step makes features of images: it brings them to one size, and X may be anything."""
    return any(hasattr(step, "training_features") for step in _first_steps(model))


def choose(model: Any, partition: Any, index: int) -> Choices | ImageReadError:
    """Return what a partition decides; or the reason, if no image of it can be read and such images are skipped."""
    X = read_partition(partition)
    of_steps: list[Any] = []
    layout, dtype = (None, None) if takes_images(model) else (Layout.of(X), _floating(X))
    n_samples = num_samples(X)
    for step in _first_steps(model):
        if hasattr(step, "training_features"):
            try:
                of_steps.append(step.first_size(X))
            except ImageReadError as error:
                if step.on_error == "skip":
                    return error
                raise
            break  # later steps see no images
        X, learnt = _fit_step(clone(step), X)
        of_steps.append(learnt)
    parameters = (model[-1] if isinstance(model, Pipeline) else model).get_params()
    seed = 0
    if parameters.get("n_random_features") is not None:  # else nothing is drawn, also not by one fit
        seed = int(check_random_state(parameters["random_state"]).randint(2**31 - 1))
    return Choices(index, n_samples, layout, of_steps, dtype, seed)


@contextmanager
def named(index: int, word: str) -> Iterator[None]:
    """Let errors name a partition."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(while {word} {index} was learnt)")
        raise


def chosen(model: Any, partition: Any, index: int) -> Any:
    """Return `choose` of a partition, whose errors name it."""
    with named(index, "partition"):
        return choose(model, partition, index)


def first_choices(partitions: Sequence[Any], choose_from: Callable[[int], Any]) -> Choices | None:
    """Return what the first partition with a readable image decides; None if there is one partition only."""
    if len(partitions) == 1:
        return None
    reason: Any = None
    for index in range(len(partitions)):
        choices = choose_from(index)
        if isinstance(choices, Choices):
            return choices
        reason = reason or choices
    raise reason


def check_layout(choices: Choices, partition: Any, index: int, word: str) -> None:
    """Refuse a partition whose samples have another layout than those of the partition that decided."""
    if choices.layout is not None and index != choices.index:
        layout = partition if isinstance(partition, Layout) else Layout.of(partition)
        choices.layout.check_same(layout, f"{word} {choices.index}", f"{word} {index}")


def check_layouts(model: Any, partitions: Sequence[Any]) -> None:
    """Refuse partitions of different layouts, as far as these are known before any of them is read."""
    known = [
        index for index, each in enumerate(partitions) if not callable(each) and not hasattr(each, "__dask_graph__")
    ]
    if not known or takes_images(model):
        return
    first = Choices(known[0], 0, Layout.of(partitions[known[0]]))
    for index in known[1:]:
        check_layout(first, partitions[index], index, "partition")


def fit_first_steps(model: Any, X: Any, choices: Choices | None, index: int, word: str = "partition") -> Any:
    """Fit the steps before the last as `choices` say, and return the features of X for training."""
    for number, step in enumerate(_first_steps(model)):
        known = choices.of_steps[number] if choices is not None and number < len(choices.of_steps) else None
        if hasattr(step, "training_features"):
            if known is None:
                X = step.fit_transform(X)
            else:  # only the size counts, and zeros of any size take no memory
                X = step.fit([np.broadcast_to(np.uint8(0), (*known, 3))]).training_features(X)
            continue
        X, learnt = _fit_step(step, X)
        if known is not None and choices is not None and (differs := _difference(known, learnt)) is not None:
            raise ValueError(
                f"{type(step).__name__} has learnt another {differs} from {word} {index} than from {word} "
                f"{choices.index}, so their features cannot be learnt together: fit it before, and put it into the "
                "pipeline as sklearn.frozen.FrozenEstimator(it)"
            )
    return X


def chosen_parameters(learner: Any, features: Any, choices: Choices | None) -> dict[str, Any]:
    """Return the parameters of the last step that its first X would have decided."""
    if choices is None:
        return {}
    parameters = learner.get_params()
    chosen: dict[str, Any] = {}
    if "n_components" in parameters and parameters["n_components"] is None:
        in_step = choices.n_samples if parameters["step_size"] is None else parameters["step_size"]
        chosen["n_components"] = min(in_step, choices.n_samples, np.shape(features)[-1])
    if choices.dtype is not None and parameters.get("dtype", "") is None:
        chosen["dtype"] = choices.dtype
    if parameters.get("n_random_features") is not None and not isinstance(
        parameters.get("random_state"), (int, np.integer)
    ):
        chosen["random_state"] = choices.seed
    return chosen


def warn_of_skipped(skipped: dict[int, str], n_all: int, word: str) -> None:
    """Warn of the partitions without a readable image; an ImageReadError if that is all of them."""
    if len(skipped) == n_all:
        raise ImageReadError(f"nothing was learnt from any of the {n_all} {word}s: {next(iter(skipped.values()))}")
    if skipped:
        index, reason = next(iter(skipped.items()))
        warnings.warn(
            f"{len(skipped)} of {n_all} {word}s are skipped, because none of their images could be read; {word} "
            f"{index}: {reason}",
            SkippedImagesWarning,
            stacklevel=3,
        )


def _first_steps(model: Any) -> list[Any]:
    steps = [step for _, step in model.steps[:-1]] if isinstance(model, Pipeline) else []
    return [step for step in steps if step is not None and step != "passthrough"]


def merge_tree(learners: Iterable[Any], merge: Callable[[Any, Any], Any]) -> Any:
    """Merge in a binary tree over the order of the learners; hold at most one of each height."""
    waiting: list[tuple[int, Any]] = []
    for learner in learners:
        height = 0
        while waiting and waiting[-1][0] == height:
            learner = merge(waiting.pop()[1], learner)
            height += 1
        waiting.append((height, learner))
    result = waiting.pop()[1]
    while waiting:
        result = merge(waiting.pop()[1], result)
    return result


def _fit_step(step: Any, X: Any) -> tuple[Any, dict[str, Any]]:
    """Fit a step; return the X for the next one, and what it has learnt."""
    X = step.fit_transform(X) if hasattr(step, "fit_transform") else step.fit(X, None).transform(X)
    learnt = {name: value for name, value in vars(step).items() if name.endswith("_") and not name.startswith("_")}
    return X, {name: value for name, value in learnt.items() if not name.startswith("n_samples_seen")}


def _difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """Return the name of an attribute that differs."""
    for name in sorted(first.keys() | second.keys()):
        try:
            np.testing.assert_equal(second.get(name), first.get(name))
        except AssertionError:
            return name
    return None


def _floating(X: Any) -> str | None:
    """Return the dtype that an estimator computes in for this X; None if X has none."""
    dtype = getattr(X, "dtype", None)
    if dtype is None and hasattr(X, "dtypes") and hasattr(X, "columns"):
        names = {str(each) for each in X.dtypes}
        return "float32" if names == {"float32"} else "float64"
    if dtype is None and isinstance(X, Sequence) and len(X):
        dtype = getattr(X[0], "dtype", np.dtype(np.float64))
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    return "float32" if name in ("float32", "float16", "bfloat16") else "float64"

"""Records of the images that a model has learnt: kept with the detector, and gone when it is fitted anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ipca_sklearn._utils._estimators import installed_versions
from ipca_sklearn._utils._turns import in_turn
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.detection import PatchGaussianDetector
from ipca_sklearn.images._decode import check_images
from ipca_sklearn.images._formats import MAX_PIXELS
from ipca_sklearn.persistence._image_digests import digest_of_numbers, file_numbers, pixel_numbers
from ipca_sklearn.products import ProductRouter


def record_training(model: Any, images: Any, *, source: Any = "", product: Any = None) -> dict[str, Any]:
    """Keep with a model which images it has just learnt, for its :class:`~ipca_sklearn.inspection.ModelCard`.

    Call it after `fit`, and after each `partial_fit`, with the images of that call; `ipca-sklearn fit` and `update` do.
    The model is otherwise the same. A `fit` alone keeps no date and no digest, so two fits of the same images are
    equal.

    Parameters
    ----------
    model : Pipeline or PatchGaussianDetector
        Fitted; a pipeline ends in a :class:`PatchGaussianDetector` or a :class:`ProductRouter`.
    images : sequence of images
        As for :class:`ipca_sklearn.PatchFeatureExtractor`: those of the call, with any that the model has left out
        (`trim`, `calibration`).
    source : str, or list of str, default=""
        Where they come from: a folder, a camera, a batch.
    product : str or None, default=None
        Of a model of several products: which one has learnt the images.

    Returns
    -------
    dict
        The record: `"sources"`; `"n_images"`, the number of the images, and `"n_learnt"`, how many of them were learnt;
        `"digest"` as of :func:`digest_images`, or None where a file has gone since; `"date"` (UTC, ISO 8601);
        `"ipca_sklearn"` and `"versions"`, of this package and of those that it calculates with.

    Raises
    ------
    TypeError, ValueError
        Another kind of model, a product that it has not, no images, or all images that it has learnt are in its records
        already.
    NotFittedError
        The model is not fitted.

    Notes
    -----
    Kept in `learnt_from_` of the detector; `learnt_images_` has 16 bytes for each image, by which `ipca-sklearn
    update`, `threshold` and `evaluate` leave out what was learnt. `partial_fit`, `calibrate` and `merge` keep both,
    `fit` forgets them. Images are decoded once more, unless the fit has decoded them within :func:`noting_pixels`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import Pipeline
    >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    >>> from ipca_sklearn.persistence import record_training
    >>> images = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64)
    >>> pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4, calibration=0.25))]).fit(images)
    >>> record = record_training(pipe, images, source="camera 2, first shift")
    >>> record["n_images"], record["n_learnt"]
    (24, 18)
    """
    detector = _detector(model, product)
    extractor = model[0] if isinstance(model, Pipeline) else None
    checked = check_images(images)
    _n_without_record(detector)  # an error, before images are decoded
    n_jobs = getattr(extractor, "n_jobs", None)
    found = pixel_numbers(checked, getattr(extractor, "max_pixels", MAX_PIXELS), n_jobs)
    of_pixels = [number for number in found if number is not None]
    paths = [image for image in checked if isinstance(image, (str, os.PathLike))] if isinstance(checked, list) else []
    of_files = [number for number in file_numbers(paths, n_jobs) if number is not None]
    versions = installed_versions()
    record = {
        "sources": [source] if isinstance(source, str) else list(map(str, source)),
        "n_images": len(checked),
        "n_learnt": 0,
        "digest": digest_of_numbers(of_pixels) if len(of_pixels) == len(found) else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ipca_sklearn": versions["ipca_sklearn"],
        "versions": versions,
    }
    return _keep(detector, record, np.array([*of_files, *of_pixels], np.uint64))


def new_images(model: Pipeline, paths: Sequence[PathLike]) -> list[PathLike]:
    """Return the images that are in no record of what a model has learnt, wherever their files are now.

    Learnt images look more normal than others: they neither set a threshold nor test a model.

    Parameters
    ----------
    model : Pipeline
        Of a :class:`PatchFeatureExtractor` and a :class:`PatchGaussianDetector`. Without a record of
        :func:`record_training`, all images are new.
    paths : sequence of path-like
        Files of images.

    Returns
    -------
    list of path-like
        Those whose bytes and pixels are not of a learnt image, in the order of `paths`.

    Examples
    --------
    >>> from ipca_sklearn.persistence import new_images
    >>> pipe[-1].partial_fit(pipe[0].transform(new_images(pipe, paths)))  # doctest: +SKIP
    """
    extractor, known = model[0], {int(number) for number in getattr(model[-1], "learnt_images_", ())}
    # Files first: these need no decoding.
    of_files = zip(paths, file_numbers(paths, extractor.n_jobs), strict=True)
    new = [path for path, number in of_files if number not in known]
    of_pixels = zip(new, pixel_numbers(new, extractor.max_pixels, extractor.n_jobs), strict=True)
    return [path for path, number in of_pixels if number not in known]


@in_turn
def _keep(detector: PatchGaussianDetector, record: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
    """Add a record to a detector, while no other thread learns with it."""
    record["n_learnt"] = min(_n_without_record(detector), record["n_images"])
    known = getattr(detector, "learnt_images_", np.empty(0, np.uint64))
    kept = {"learnt_from_": [*getattr(detector, "learnt_from_", []), record]}
    # At once: an interrupt leaves both as they were.
    detector.__dict__ = {**vars(detector), **kept, "learnt_images_": np.union1d(known, numbers)}
    return dict(record)


def _n_without_record(detector: PatchGaussianDetector) -> int:
    """Return how many of the images that were learnt are in no record."""
    n_left = int(detector.n_samples_seen_) - sum(record["n_learnt"] for record in getattr(detector, "learnt_from_", []))
    if n_left <= 0:
        raise ValueError(
            f"the model has learnt {detector.n_samples_seen_} images, and its records are of as many: call "
            "record_training once after each fit or partial_fit, with the images of that call"
        )
    return n_left


def _detector(model: Any, product: Any) -> PatchGaussianDetector:
    """Return the detector that has learnt the images."""
    learner = model.steps[-1][1] if isinstance(model, Pipeline) else model
    if isinstance(learner, ProductRouter):
        check_is_fitted(learner)
        if product not in learner.detectors_:
            names = ", ".join(map(repr, learner.detectors_))
            raise ValueError(f"product={product!r}: the model has {names}; name the one that has learnt the images")
        return learner.detectors_[product]
    if not isinstance(learner, PatchGaussianDetector):
        raise TypeError(f"{type(learner).__name__} keeps no records: pass a PatchGaussianDetector, or its pipeline")
    if product is not None:
        raise ValueError(f"product={product!r}: the model is of one product, which has no name")
    check_is_fitted(learner)
    return learner

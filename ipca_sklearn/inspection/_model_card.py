"""The card of a model: what it was trained on, with what, where its thresholds come from, and what was measured."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ipca_sklearn._utils._estimators import installed_versions
from ipca_sklearn._utils._files import file_digest, printable
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn._utils._turns import snapshot
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.detection import PatchGaussianDetector
from ipca_sklearn.detection._chosen import expected_rate, is_chosen
from ipca_sklearn.detection._few_images import few_images_warning
from ipca_sklearn.features import PatchFeatureExtractor, weights_license
from ipca_sklearn.inspection._card_text import as_html, as_markdown, as_text
from ipca_sklearn.linalg import ScatterState
from ipca_sklearn.products import ProductRouter

_PLAIN = (str, int, float, bool, type(None))
# Parameters that say how this process runs a model: commands set them, and they are no part of it.
_OF_THIS_PROCESS = {"batch_size", "cache", "device", "engine", "max_pixels", "n_jobs", "on_error"}
N_DIGITS = 12  # of a digest: enough to tell the models of a line apart


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model, as facts under headings; :func:`model_card` makes it.

    Parameters
    ----------
    title : str
        Of the model.
    sections : dict of str to dict
        Facts by their names, under the headings of the page. Names are the same under none of them, and values are
        plain: text, numbers, None, lists and dicts of these.
    products : dict of str to ModelCard, default={}
        The card of each product, if the model has several.

    Examples
    --------
    >>> from ipca_sklearn.inspection import ModelCard
    >>> card = ModelCard("bolts", {"Training": {"images learnt": 40}, "Measured figures": {"figures": None}})
    >>> card.to_json()
    '{"images learnt": 40, "figures": null}'
    """

    title: str
    sections: dict[str, dict[str, Any]]
    products: dict[str, ModelCard] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all facts by their names, and under `"products"` those of each product."""
        facts = {name: value for facts in self.sections.values() for name, value in facts.items()}
        products = {name: card.to_dict() for name, card in self.products.items()}
        return facts | ({"products": products} if products else {})

    def to_json(self) -> str:
        """Return the facts of `to_dict` as strict JSON; null is not known, or infinity."""
        return to_json(self.to_dict())

    def to_text(self) -> str:
        """Return a line for each fact; of several products, a line for each of them."""
        return as_text(self.to_dict())

    def to_markdown(self) -> str:
        """Return a page with a table under each heading. Names of files cannot change its layout."""
        cards = [as_markdown(self.title, self.sections, 1)]
        cards += [as_markdown(name, card.sections, 2) for name, card in self.products.items()]
        return "\n\n".join(cards)

    def to_html(self) -> str:
        """Return the tables as HTML, escaped, without a frame of a page: what `HtmlReport(card=...)` shows."""
        cards = [as_html("", self.sections)]
        cards += [as_html(name, card.sections) for name, card in self.products.items()]
        return "\n".join(cards)


def model_card(model: Any, *, file: PathLike | None = None, figures: Mapping[str, Any] | None = None) -> ModelCard:
    """Return the card of a fitted model. It says what is stored and what you pass; nothing else is assumed.

    Parameters
    ----------
    model : Pipeline, PatchGaussianDetector or ProductRouter
        Fitted; a pipeline ends in one of the two.
    file : str, path-like or None, default=None
        The file of the model, for its name, its size and its digest.
    figures : dict or None, default=None
        What was measured with this model, such as an :func:`~ipca_sklearn.metrics.evaluation_report`, or what
        `ipca-sklearn evaluate --json` prints. None: the card says that nothing was measured.

    Returns
    -------
    ModelCard

    Raises
    ------
    TypeError
        Another kind of model, or of figures.
    NotFittedError
        It is not fitted.
    ValueError
        The figures name another file of a model than `file`, by its digest.
    FileNotFoundError
        There is no such file.

    Notes
    -----
    Where the images come from, their digest and the date are known where
    :func:`~ipca_sklearn.persistence.record_training` was called, as `ipca-sklearn fit` and `update` do. The versions
    are those that the card was made with; a record has those of the training. The licence is what the library of the
    weights says, see :func:`~ipca_sklearn.features.weights_license`.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.inspection import model_card
    >>> X = np.random.default_rng(0).normal(size=(200, 6, 8))
    >>> card = model_card(PatchGaussianDetector(2, false_positive_rate=0.05).fit(X))
    >>> card.to_dict()["parameters of the detector"]
    {'false_positive_rate': 0.05, 'n_components': 2}
    >>> card.to_dict()["thresholds from"]
    '104 scores of training images by models that had not learnt them'
    """
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    learner = steps[-1]
    if not isinstance(learner, (PatchGaussianDetector, ProductRouter)):
        raise TypeError(
            f"there is no card of a {type(learner).__name__}: pass a PatchGaussianDetector, a ProductRouter, or a "
            "pipeline that ends in one of them"
        )
    check_is_fitted(learner)
    learner = snapshot(learner)  # another thread may learn with it meanwhile
    sections = {"Model": _of_file(model, file)}
    extractor = steps[0] if isinstance(steps[0], PatchFeatureExtractor) else None
    if extractor is not None:
        sections["Network and images"] = _of_network(extractor)
    products: dict[str, ModelCard] = {}
    if isinstance(learner, ProductRouter):
        products = {
            str(name): ModelCard(str(name), _of_detector(snapshot(one))) for name, one in learner.detectors_.items()
        }
        for name, rate in learner.rejection_rates_.items():
            products[str(name)].sections["Thresholds"]["called unknown"] = round(rate, 4)
        sections["Products"] = {"number of products": len(products), **_changed("the router", learner)}
    else:
        sections |= _of_detector(learner)
    sections["Versions"] = {"versions": installed_versions()}
    sections["Measured figures"] = {"figures": _checked(figures, file)}
    return ModelCard("Model card", sections, products)


def describe_model(model: Any) -> str:
    """Return a text that tells a model from others: of a file, its name and the first digits of its SHA-256 digest.

    Of an estimator, its classes and a digest of what its last step has learnt; a str is the text itself.
    """
    if isinstance(model, str):
        return printable(model)
    if isinstance(model, os.PathLike):
        return f"{printable(os.path.basename(model))} (SHA-256 {file_digest(model)[:N_DIGITS]})"
    if not isinstance(model, BaseEstimator):
        raise TypeError(f"model is a {type(model).__name__}; give its file as a Path, a fitted estimator, or a text")
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    classes = ", ".join(type(step).__name__ for step in steps)
    # The last step alone: an extractor keeps more while it is used, so its digest would change without any learning.
    return f"{classes} (digest {joblib.hash(steps[-1])[:N_DIGITS]})"


def _of_file(model: Any, file: PathLike | None) -> dict[str, Any]:
    if file is None:
        return {"model": describe_model(model)}
    return {
        "model": printable(os.path.basename(file)),
        "SHA-256": file_digest(file),
        "file, MB": round(Path(file).stat().st_size / 1e6, 1),
    }


def _of_network(extractor: PatchFeatureExtractor) -> dict[str, Any]:
    return {
        "backbone": _plain(extractor.backbone),
        "layers": list(map(str, extractor.layers_)),
        "weights": "random" if extractor.weights is None else _plain(extractor.weights),
        "digest of the weights": extractor.weights_digest(),
        "licence of the weights": weights_license(extractor),
        "image size": list(extractor.image_size_),
        "inspected": list(extractor.crop_size_),
        "margin": extractor.margin_,
        "tiles": None if extractor.tile_size_ is None else list(extractor.tile_size_),
        **_changed("the extractor", extractor),
    }


def _of_detector(detector: PatchGaussianDetector) -> dict[str, dict[str, Any]]:
    n_learnt = int(detector.n_samples_seen_)
    records = [dict(record) for record in getattr(detector, "learnt_from_", [])]
    training: dict[str, Any] = {
        "images learnt": n_learnt,
        "images learnt without a record": n_learnt - sum(record["n_learnt"] for record in records),
        "learnt from": records,
    }
    if hasattr(detector, "suspects_"):
        training["images left out as suspects"] = int(detector.suspects_["trimmed"].sum())
    state = detector.pca_.fitted_.state
    n_bytes = sum(part.nbytes for part in vars(state).values() if isinstance(part, Tensor))
    gaussians = {
        "patches": list(detector.patch_shape_),
        "patches in the region of interest": None if detector.region_ is None else int(detector.region_.sum()),
        "features": int(detector.n_features_in_),
        "gaussians": int(detector.n_gaussians_),
        "components": int(detector.pca_.n_components_),
        "learnt by": "exact scatter matrices" if isinstance(state, ScatterState) else "incremental updates",
        "distance": detector.distance,
        "memory of the model, MB": round(n_bytes / 1e6, 1),
        **_changed("the detector", detector),
    }
    chosen = detector.chosen_threshold_
    thresholds = {
        "offset": float(detector.offset_),
        "worse scores": "lower",
        "map threshold": float(detector.map_threshold_),
        "worse map values": "higher",
        "thresholds from": str(chosen) if is_chosen(detector) else _source(detector),
        "chosen threshold": None if chosen is None else str(chosen),
        "false positive rate": detector.false_positive_rate,
        "calibration": detector.calibration,
        "calibrated with images": len(detector.calibration_scores_),
        "expected share of normal images called anomalous": expected_rate(detector),
        "warning": few_images_warning(detector) or None,
    }
    return {"Training": training, "Gaussians": gaussians, "Thresholds": thresholds}


def _source(detector: PatchGaussianDetector) -> str:
    """Return what the scores are from that the learnt thresholds are made of."""
    n_scores = len(detector.calibration_scores_)
    n_given = getattr(detector, "n_calibrated_", 0)
    if n_given:
        later = "" if n_given == n_scores else ", and those of images that were learnt later"
        return f"{n_scores} scores: those of images that calibrate was given{later}"
    if detector.calibration == "prequential":
        return f"{n_scores} scores of training images by models that had not learnt them"
    return f"{n_scores} scores of images that were held out of the training"


def _changed(of: str, estimator: BaseEstimator) -> dict[str, Any]:
    """Return the parameters that differ from the defaults of their class, without those of this process."""
    defaults = {name: one.default for name, one in inspect.signature(type(estimator)).parameters.items()}
    values = estimator.get_params(deep=False)
    changed = {
        name: _plain(value)
        for name, value in values.items()
        if name not in _OF_THIS_PROCESS and _plain(value) != _plain(defaults[name])
    }
    return {f"parameters of {of}": changed}


def _plain(value: Any) -> Any:
    """Return a parameter as plain data; anything else is named by its class and its shape."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, os.PathLike):
        return printable(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {tuple(shape)}"


def _checked(figures: Any, file: PathLike | None) -> Any:
    """Return figures that are not known to be of another model."""
    if figures is None:
        return None
    if not isinstance(figures, Mapping):
        raise TypeError(f"figures is a {type(figures).__name__}: pass a dict, such as what evaluation_report returns")
    of = figures.get("model")
    digest = of.get("SHA-256") if isinstance(of, Mapping) else None
    if file is not None and digest is not None and digest != file_digest(file):
        raise ValueError(
            f"the figures are of a model file with the SHA-256 digest {digest}, and {printable(file)} has another: "
            "evaluate this model"
        )
    return dict(figures)

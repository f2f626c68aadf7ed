"""ProductRouter: a detector for each product, and the nearest one for images whose product is not known."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from ipca_sklearn._utils._arrays import at_patches
from ipca_sklearn._utils._estimators import TableOutputMixin, VersionedMixin, set_learnt
from ipca_sklearn._utils._sklearn_compat import Interval, fit_context, validate_parameters
from ipca_sklearn._utils._turns import in_turn, of_one_state, snapshot
from ipca_sklearn._utils._typing import ArrayLike
from ipca_sklearn.decomposition._batches import read_steps
from ipca_sklearn.detection import PatchGaussianDetector
from ipca_sklearn.detection._calibration import medians
from ipca_sklearn.detection._map_ops import inspected, is_aligned
from ipca_sklearn.exceptions import FewImagesWarning, ImageReadError

_TINY = 1e-30  # has a logarithm, in float32 too


@dataclass(frozen=True)
class RoutedImages:
    """What a :class:`ProductRouter` says of images, each by the detector of one product.

    Parameters
    ----------
    products : ndarray of object, shape (n,)
        The product whose detector was used: the given one, or the nearest.
    product_p_values : ndarray of float64, shape (n,)
        How often a normal image of this product lies as far from it. NaN for images that could not be read.
    is_known : ndarray of bool, shape (n,)
        False where this p-value is too small: the image shows no product that was learnt, or not the given one.
    maps : array or tensor of shape (n, H, W), (n, P) or (n, 1)
        Anomaly maps by that detector.
    scores : ndarray of shape (n,)
        Image scores by it, higher is more normal.
    offsets : ndarray of float64, shape (n,)
        Its `offset_`.
    p_values : ndarray of float64, shape (n,)
        Its `p_values`: how often a normal image of the product scores as low.
    labels : ndarray of int, shape (n,)
        +1 for normal and -1 for anomalous images. Images of an unknown product are -1 where no product was given, and
        so are those that could not be read: someone should look.
    """

    products: np.ndarray
    product_p_values: np.ndarray
    is_known: np.ndarray
    maps: Any
    scores: np.ndarray
    offsets: np.ndarray
    p_values: np.ndarray
    labels: np.ndarray


class ProductRouter(
    VersionedMixin,
    MetaEstimatorMixin,
    TableOutputMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """A detector for each product; images whose product is not given are scored by the nearest one.

    It takes the place of the detector in a pipeline: features are computed once, whatever the number of products.

    Parameters
    ----------
    detector : PatchGaussianDetector
        Cloned for each product. Its parameters take effect when a product is fitted.
    rejection_rate : float in [0, 0.5], default=0.01
        Share of normal images of a product that may be called unknown. A product with fewer than `1 / rejection_rate`
        calibration images has the smallest rate that these allow, see `rejection_rates_`. 0: no image is unknown.
    tolerance : float >= 0, default=0.25
        By how much farther than unseen normal images of a product a new one may be before its p-value falls: new
        photographs differ from those that were learnt, and other products are farther (see Notes).

    Attributes
    ----------
    detectors_ : dict
        The fitted detector of each product. They can be used alone.
    products_ : ndarray of shape (n_products,)
        Their names: those of one call sorted, later ones behind them.
    rejection_rates_ : dict
        Of each product: share of its normal images that is called unknown.
    n_features_in_ : int
        m.
    feature_names_in_ : ndarray of shape (m,)
        Names of the columns, where X had string names.

    See Also
    --------
    PatchGaussianDetector : What is learnt for each product.

    Notes
    -----
    The distance of an image from a product is t, about the median of its map: a defect on less than half of the
    image hardly moves it. With t0 the median of t of unseen normal images, the nearest product is that of the smallest
    ``|log t - log t0|``: images that are much smoother than those of a product lie closer to its mean than they do.
    The p-value is conformal: the share of the unseen normal images, of which each detector keeps the figures, whose t
    is as large as that of the image divided by ``1 + tolerance``. It has this side alone, as the images that were
    learnt have a small t.

    With ``tolerance=0`` the rate of rejections is as exact as the p-values of the detector, but t hardly varies among
    images that were taken together, so the slightest change makes new images unknown. Of eight products, normal images
    of other photographs had a t up to 1.12 times the largest of the unseen ones, and images of a product that was left
    out at least 2.26 times (docs/benchmarks/products.md).

    Cost per image: that of one detector where the product is given, else that of all. Memory: a detector for each
    product, and one step of features.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchGaussianDetector, ProductRouter
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(240, 4, 4, 8))
    >>> X[:120, ..., :4] *= 5                                        # bolts vary in other features than nuts
    >>> X[120:, ..., 4:] *= 5
    >>> router = ProductRouter(PatchGaussianDetector(n_components=4)).fit(X, np.repeat(["bolt", "nut"], 120))
    >>> new = rng.normal(size=(3, 4, 4, 8))
    >>> new[0, ..., :4] *= 5
    >>> new[1, ..., 4:] *= 5
    >>> new[2] *= 50
    >>> router.predict_product(new)
    array(['bolt', 'nut', None], dtype=object)
    >>> router.predict(new)
    array([ 1,  1, -1])
    >>> router.score_samples(new[:1], product="bolt") == router.detectors_["bolt"].score_samples(new[:1])
    array([ True])
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        "detector": [PatchGaussianDetector],
        "rejection_rate": [Interval(Real, 0, 0.5, closed="both")],
        "tolerance": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self, detector: PatchGaussianDetector, *, rejection_rate: float = 0.01, tolerance: float = 0.25
    ) -> None:
        self.detector = detector
        self.rejection_rate = rejection_rate
        self.tolerance = tolerance

    @in_turn
    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: Any) -> ProductRouter:
        """Learn a detector for each product from its normal images, forgetting what was learnt before.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of normal images. PatchFeatures are read one step of one product at a time; of an array the rows of
            one product are copied.
        y : array-like of shape (n,)
            The product of each image: names, or numbers.

        Returns
        -------
        ProductRouter
            This estimator.

        Raises
        ------
        ValueError
            No y, one of another length, missing values in it, a product with a single image, or as
            `PatchGaussianDetector.fit`; the message names the product.
        ImageReadError
            No image of a product could be read.

        Warns
        -----
        FewImagesWarning
            A product has too few images for `rejection_rate`.
        """
        return self._learn(X, y, {})

    @in_turn
    @fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X: ArrayLike, y: Any) -> ProductRouter:
        """Learn more images of some products, or new products, as `fit`; the detectors of others stay as they are.

        A call that fails leaves all of them as they were.
        """
        return self._learn(X, y, dict(getattr(self, "detectors_", {})))

    def _learn(self, X: Any, y: Any, detectors: dict[Any, PatchGaussianDetector]) -> ProductRouter:
        if is_aligned(X):
            raise ValueError(
                "X has features of images that were aligned to one mean image (align=), and products look different: "
                "fit a pipeline for each product, or set align=None"
            )
        steps = read_steps(self, X, reset=not detectors)
        products = _rows_of_products(y, steps.n_samples)
        for name, rows in products.items():
            detector = snapshot(detectors[name]) if name in detectors else clone(self.detector)
            try:
                detectors[name] = detector.partial_fit(steps.source[rows])
            except (ValueError, ImageReadError) as error:
                raise type(error)(f"product {name!r}: {error}") from error
            if not len(detector.calibration_medians_):
                raise ValueError(f"product {name!r} has one sample: a threshold takes at least 2 images, better 30")
        shape = {"patch_shape_": steps.patch_shape, "region_": steps.region, **steps.features_in}
        set_learnt(self, {"detectors_": detectors, **shape})
        for name in products:
            rate = self.rejection_rates_[name]
            if rate > self.rejection_rate > 0:
                warnings.warn(
                    f"{detectors[name].n_samples_seen_} images are few: of the normal images of product {name!r} about "
                    f"{rate:.1%} will be called unknown, not the rejection rate of {self.rejection_rate:.1%}",
                    FewImagesWarning,
                    stacklevel=5,
                )
        return self

    @property
    def products_(self) -> np.ndarray:
        """Names of the products."""
        check_is_fitted(self)
        return np.array(list(self.detectors_))

    @property
    def rejection_rates_(self) -> dict[Any, float]:
        """Share of the normal images of each product that is called unknown."""
        check_is_fitted(self)
        if self.rejection_rate == 0:
            return dict.fromkeys(self.detectors_, 0.0)
        numbers = {name: len(detector.calibration_medians_) for name, detector in self.detectors_.items()}
        return {name: max(self.rejection_rate, 1 / (1 + number)) for name, number in numbers.items()}

    @of_one_state
    def route(self, X: ArrayLike, product: Any = None) -> RoutedImages:
        """Return product, map, score and p-values of each image, from one pass over X.

        Parameters
        ----------
        X : PatchFeatures, array-like or tensor of shape (n, H, W, m), (n, P, m) or (n, m)
            Features of the shape that was learnt.
        product : str, array-like of shape (n,), or None, default=None
            The product of all images, or of each. None: the nearest one of each image.

        Returns
        -------
        RoutedImages

        Raises
        ------
        NotFittedError
            Before `fit` or `partial_fit`.
        ValueError
            A product that was not learnt, another number of them than of images, or as
            `PatchGaussianDetector.transform`.
        """
        check_is_fitted(self)
        validate_parameters(self)
        steps = read_steps(self, X, reset=False)
        given = None if product is None else self._numbers(product, steps.n_samples)
        usual = [float(np.median(_logs(detector))) for detector in self.detectors_.values()]
        start = 0

        def by_nearest(step: Tensor) -> Tensor:
            """Return number of the product, log t, and map of each image of a step, (b, 2 + P)."""
            nonlocal start
            wanted = None if given is None else given[start : start + len(step)]
            start += len(step)
            features = self._on_grid(step)
            found = step.new_full((len(step), 2 + math.prod(self.patch_shape_)), torch.nan)
            nearest = step.new_full((len(step),), torch.inf)
            for number, detector in enumerate(self.detectors_.values()):
                rows = torch.from_numpy(np.arange(len(step)) if wanted is None else np.flatnonzero(wanted == number))
                if not len(rows):
                    continue
                maps = detector.transform(features if len(rows) == len(step) else features[rows])
                typical = medians(inspected(maps, self.region_)).clamp_min(_TINY).log()
                far = (typical - usual[number]).abs()
                nearer = far < nearest[rows]
                own = torch.cat([torch.full_like(far, number)[:, None], typical[:, None], maps.flatten(1)], 1)
                rows = rows[nearer.cpu()]
                nearest[rows], found[rows] = far[nearer], own[nearer]
            return found

        found = steps.map_steps(by_nearest, self.detector.step_size)
        maps = found[:, 2:].reshape(len(found), *(self.patch_shape_ or (1,)))
        numbers, typical = (
            np.asarray(column.cpu() if isinstance(column, Tensor) else column) for column in found.T[:2]
        )
        return self._judged(numbers, typical, maps, must_be_known=product is None)

    def _judged(self, numbers: np.ndarray, typical: np.ndarray, maps: Any, *, must_be_known: bool) -> RoutedImages:
        """Return what the detectors of the products (by their numbers, NaN is unreadable) say of maps."""
        n_images = len(numbers)
        products = np.full(n_images, None, dtype=object)
        is_known = np.zeros(n_images, dtype=bool)
        p_of_product, scores, offsets, p_values = (np.full(n_images, np.nan) for _ in range(4))
        for number, (name, detector) in enumerate(self.detectors_.items()):
            rows = np.flatnonzero(numbers == number)
            if not len(rows):
                continue
            reference = np.sort(_logs(detector)) + np.log1p(self.tolerance)
            as_far = len(reference) - np.searchsorted(reference, typical[rows], side="left")
            p_of_product[rows] = (1 + as_far) / (1 + len(reference))
            is_known[rows] = p_of_product[rows] > self.rejection_rates_[name]
            of_product = detector.score_maps(maps[rows])
            products[rows] = name
            scores[rows] = of_product.cpu() if isinstance(of_product, Tensor) else of_product
            offsets[rows] = detector.offset_
            p_values[rows] = detector.p_values(scores=of_product)
        labels = np.where((scores >= offsets) & (is_known | (not must_be_known)), 1, -1)
        return RoutedImages(products, p_of_product, is_known, maps, scores, offsets, p_values, labels)

    def predict_product(self, X: ArrayLike) -> np.ndarray:
        """Return the nearest product of each image, None where it is unknown. Parameters and errors as `route`.

        Returns
        -------
        ndarray of object, shape (n,)
        """
        routed = self.route(X)
        names = routed.products
        names[~routed.is_known] = None
        return names

    def predict(self, X: ArrayLike, product: Any = None) -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images, by the threshold of their product.

        Parameters and errors as `route`. Images of an unknown product are -1 where no product is given.

        Returns
        -------
        ndarray of int, shape (n,)
        """
        return self.route(X, product).labels

    def score_samples(self, X: ArrayLike, product: Any = None) -> np.ndarray:
        """Return the score of each image by the detector of its product. Parameters and errors as `route`.

        Higher is more normal. Scores of different products have different scales: compare `decision_function`, or the
        p-values of `route`.

        Returns
        -------
        ndarray of float64, shape (n,)
            NaN for images that could not be read.
        """
        return self.route(X, product).scores

    def decision_function(self, X: ArrayLike, product: Any = None) -> np.ndarray:
        """Return the scores less the thresholds of the products: negative is anomalous. As `score_samples`."""
        routed = self.route(X, product)
        return routed.scores - routed.offsets

    def transform(self, X: ArrayLike, product: Any = None) -> Any:
        """Return the anomaly maps of images by the detectors of their products. Parameters and errors as `route`.

        Returns
        -------
        array or tensor of shape (n, H, W), (n, P) or (n, 1)
        """
        return self.route(X, product).maps

    def _on_grid(self, step: Tensor) -> Tensor:
        """Return a step (b, P, m) as the detectors take it; outside of a region it is 0."""
        if self.region_ is not None:
            return at_patches(step, self.region_)
        return step.reshape(len(step), *self.patch_shape_, step.shape[-1])

    def _numbers(self, product: Any, n_images: int) -> np.ndarray:
        """Return the number of the product of each image."""
        names = [product] * n_images if np.ndim(product) == 0 else np.asarray(product).tolist()
        if len(names) != n_images:
            raise ValueError(f"product has {len(names)} names and X has {n_images} images: give one for each, or one")
        numbers = {name: number for number, name in enumerate(self.detectors_)}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise ValueError(f"product {unknown[0]!r} was not learnt; there are {', '.join(map(repr, numbers))}")
        return np.array([numbers[name] for name in names])

    @property
    def _n_features_out(self) -> int:
        return math.prod(self.patch_shape_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detectors_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        return tags


def _rows_of_products(y: Any, n_images: int) -> dict[Any, np.ndarray]:
    """Return the rows of each product, ascending; the products are sorted."""
    if y is None:
        raise ValueError(
            "ProductRouter requires y to be passed, but the target y is None: name the product of each image"
        )
    names = column_or_1d(y)
    if len(names) != n_images:
        raise ValueError(f"y names the products of {len(names)} images and X has {n_images}: give one for each")
    missing = [row for row, name in enumerate(names.tolist()) if name is None or name != name]
    if missing:
        raise ValueError(f"y[{missing[0]}] is missing, or NaN: name the product of each image")
    products, numbers = np.unique(names, return_inverse=True)
    return {name: np.flatnonzero(numbers == number) for number, name in enumerate(products.tolist())}


def _logs(detector: PatchGaussianDetector) -> np.ndarray:
    """Return log t of the unseen normal images of a product."""
    return np.log(np.maximum(detector.calibration_medians_, _TINY))

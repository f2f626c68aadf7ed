"""A fitted pipeline as one torch module or one ONNX file: images in, scores and anomaly maps out."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from ipca_sklearn import linalg
from ipca_sklearn._utils._files import printable, replacing
from ipca_sklearn._utils._surroundings import as_in_a_fresh_process, default_device, without_autocast
from ipca_sklearn._utils._typing import Image, PathLike
from ipca_sklearn.detection import PatchGaussianDetector
from ipca_sklearn.detection._cells import Cells
from ipca_sklearn.detection._distance_module import DistanceModule, register
from ipca_sklearn.detection._map_ops import blur_matrix, image_scores
from ipca_sklearn.features import PatchFeatureExtractor
from ipca_sklearn.features._decode import check_images, load_batch, resize_and_crop, to_rgb
from ipca_sklearn.features._patch_network import PatchNetwork
from ipca_sklearn.features._resize import to_unit_floats
from ipca_sklearn.features._settings import FeatureSettings
from ipca_sklearn.features._tile_module import tile_module

__all__ = ["tile_module", "to_onnx", "to_torch"]

# How much the results of a file may differ from those of its pipeline, of the largest value of a map.
LARGEST_DIFFERENCE = 1e-4

# What a protocol buffer, and so an ONNX file in one piece, holds at most.
_MAX_BYTES = 2**31 - 2**24


class PatchGaussianModule(nn.Module):
    """Images to scores and maps; made by :func:`to_torch`.

    Attributes
    ----------
    offset : float
        `offset_` of the detector: images with a lower score are anomalous.
    map_threshold : float
        `map_threshold_` of the detector: patches with a larger value are anomalous.
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
        settings = extractor.feature_settings("cpu")
        self.offset, self.map_threshold = float(detector.offset_), float(detector.map_threshold_)
        self._features = _Features(settings, getattr(detector, "feature_indices_", None))
        cells = Cells.of(detector.cells_)
        self._distances = DistanceModule(detector.distance_operator(torch.device("cpu")), cells, components_dtype)
        self.image_size = settings.images.image_size
        self._backbone_label = settings.backbone.label()
        self._image_score = detector.image_score
        self._grid_size = settings.grid_size
        region = None if settings.region is None else torch.from_numpy(settings.region)
        register(self, "_inside", None if region is None else region.flatten().nonzero()[:, 0])
        register(self, "_place", None if region is None else _places(region))
        sigma = detector.smoothing
        rows, columns = (blur_matrix(side, sigma).float() if sigma > 0 else None for side in settings.grid_size)
        register(self, "_blur_rows", rows)
        register(self, "_blur_columns", columns)
        weights = None
        if region is not None and rows is not None and columns is not None:
            weights = region / (rows @ region.float() @ columns.T).clamp_min(torch.finfo(torch.float32).tiny)
        register(self, "_blur_weights", weights)

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


def _places(region: Tensor) -> Tensor:
    """Return for each patch of the grid its number among those of the region, and their number for the others."""
    flat = region.flatten()
    return torch.where(flat, flat.cumsum(0) - 1, flat.sum())


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
    RuntimeError
        `interpolation="bilinear"` with a torch before 2.10, which resizes differently within a module.

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
    if steps[0].tile_size is not None:
        raise ValueError(
            f"tile_size={steps[0].tile_size}: a module or a file takes a whole image at once; export the network of a "
            "tile (tile_module) and stitch what it gives, or fit without tile_size"
        )
    if steps[0].interpolation == "bilinear":
        _require_torch("bilinear resizing within a module")
    with as_in_a_fresh_process(torch.device("cpu")), linalg.full_precision():
        module = PatchGaussianModule(steps[0], steps[1], getattr(torch, components_dtype))
    return module.eval().requires_grad_(False)


def _require_torch(what: str) -> None:
    """Refuse versions of torch with which the tests of this module fail: scores differ, or tracing stops."""
    if TorchVersion(torch.__version__) < "2.10":
        raise RuntimeError(
            f"{what} needs torch 2.10 or newer, this is {torch.__version__}; save the model, and export it where torch "
            "is newer"
        )


def to_onnx(
    pipe: Pipeline,
    path: PathLike,
    *,
    dtype: str = "uint8",
    opset_version: int = 18,
    check: Sequence[Image] | None = None,
) -> None:
    """Write a fitted pipeline as one ONNX file, network included.

    Parameters
    ----------
    pipe : Pipeline
        As for :func:`to_torch`.
    path : str or path-like
        The file; replaced only when the new one is complete.
    dtype : {"uint8", "float32"}, default="uint8"
        Type of the input `images` (n, 3, H, W); n, H and W are dynamic. Floats are in [0, 1].
    opset_version : int, default=18
        Version of ONNX's operators.
    check : sequence of images, default=None
        onnxruntime scores these images (paths, PIL images, arrays or tensors, of any sizes) with the file before it is
        written, and the pipeline scores them too: some real ones show that both agree on this machine.

    Raises
    ------
    ImportError
        onnx and onnxscript are not installed: `pip install onnx onnxscript`; for `check` onnxruntime.
    ValueError
        The scores or the maps of an image in `check` differ by more than 1e-4 of the largest value of its map; nothing
        is written. Or the model has more than 2 GB, the limit of an ONNX file in one piece: only `covariance="full"`
        with many features has so many numbers.
    RuntimeError
        torch is older than 2.10, or `torch.export` cannot follow the network: a file for onnxruntime holds no control
        flow that depends on the values of an image.
    TypeError, NotFittedError
        As `to_torch`.

    Notes
    -----
    Outputs are `score` (n,), higher is more normal, and `map` (n, H', W'), larger is more anomalous; scores agree with
    `pipe.score_samples` to about 1e-5. The metadata of the file are `offset` (lower scores are anomalous),
    `map_threshold` and `ipca_sklearn_version`. Size: 4 bytes for each of the C (k + 2) m numbers of C Gaussians
    (`n_gaussians_`) and each weight of the network, and 16 for each patch where patches share a Gaussian; PaDiM's
    inverse covariances are P m^2.
    """
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"dtype={dtype!r}: the input of the file is 'uint8' or 'float32'")
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx and onnxscript; pip install onnx onnxscript") from error
    _require_torch("writing ONNX")
    module = to_torch(pipe)
    n_bytes = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"the model has {n_bytes / 1e9:.1f} GB, an ONNX file holds 2: lower n_components, or n_random_features "
            "with covariance='full'"
        )
    expected = [] if check is None else list(_results(pipe, check_images(check), dtype))
    height, width = module.image_size
    images = torch.zeros(2, 3, height, width + 1, dtype=getattr(torch, dtype), device="cpu")
    dynamic = {"images": {0: torch.export.Dim("n"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}}
    program = _onnx_program(
        module,
        (images,),
        dynamo=True,
        opset_version=opset_version,
        input_names=["images"],
        output_names=["score", "map"],
        dynamic_shapes=dynamic,
        verbose=False,
    )
    program.model.metadata_props.update(
        offset=repr(module.offset),
        map_threshold=repr(module.map_threshold),
        ipca_sklearn_version=version("ipca_sklearn"),
    )
    content = program.model_proto.SerializeToString()
    if check is not None:
        _check(content, expected)
    # Not program.save: from 1.5 GB on it writes weights to a second file.
    with replacing(path) as file:
        file.write(content)


class _Result(NamedTuple):
    """What a file must give for an image."""

    name: str
    pixels: np.ndarray
    map: Tensor
    score: float


def _results(pipe: Pipeline, images: Any, dtype: str) -> Iterator[_Result]:
    """Read images as a file takes them, and score them by the pipeline."""
    if find_spec("onnxruntime") is None:
        raise ImportError("check= runs the file with onnxruntime; pip install onnxruntime")
    for index in range(len(images)):
        image = images[index]
        name = printable(image) if isinstance(image, (str, os.PathLike)) else f"check[{index}]"
        pixels = load_batch([to_rgb(image, name)], torch.device("cpu"))
        if dtype == "uint8":
            pixels = (255 * pixels).round().to(torch.uint8)
        (features,) = pipe[0].transform(images[index : index + 1]).batches(1)
        (map_,) = pipe[-1].transform(features)
        (score,) = pipe[-1].score_maps(map_[None])
        yield _Result(name, pixels.contiguous().numpy(), map_, float(score))


def _check(content: bytes, expected: Sequence[_Result]) -> None:
    """Compare the results of a file with those of the pipeline it was made from."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for result in expected:
        score, (map_,) = session.run(None, {"images": result.pixels})
        largest = float(result.map.max())
        errors = [float(abs(result.map - torch.from_numpy(map_)).max()), abs(result.score - float(score[0]))]
        error = float(np.max(errors))  # NaN if one is
        if not error <= LARGEST_DIFFERENCE * largest:
            raise ValueError(
                f"{result.name}: the exported file differs from the pipeline by {error / largest:.1e} of the largest "
                f"value of the map, {LARGEST_DIFFERENCE:g} is allowed; nothing was written. 16-bit pictures differ "
                "because the file takes 8 bits: export with dtype='float32'"
            )


def _onnx_program(module: PatchGaussianModule, *arguments: Any, **options: Any) -> Any:
    """Return what torch.onnx.export returns, or an error that names the backbone."""
    try:
        with as_in_a_fresh_process(torch.device("cpu")):
            return torch.onnx.export(module, *arguments, **options)
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise RuntimeError(
            f"backbone {module._backbone_label} cannot be written as ONNX, because torch.export cannot follow it "
            f"({type(cause).__name__}: {str(cause)[:300]}). Control flow that depends on the values of an image has no "
            "place in such a file: keep the model with persistence.save, or choose another backbone"
        ) from error

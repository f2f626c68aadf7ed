"""Models in skops files, which execute nothing when they are loaded.

Sizes that a file claims are checked before anything is allocated: a small file can claim to be huge.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import torch
from sklearn.base import BaseEstimator

from ipca_sklearn._utils._files import printable, replacing
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.features.backbones._catalogue import warn_of_license
from ipca_sklearn.persistence._joblib import read_model

# Names, so that this room need not know the private classes of the others; the tests say when one is missing.
_TRUSTED_TYPES = (
    "ipca_sklearn.decomposition._batched_ipca.BatchedIncrementalPCA",
    "ipca_sklearn.decomposition._fitted_scatter.FittedCovariance",
    "ipca_sklearn.decomposition._fitted_scatter.FittedExactPCA",
    "ipca_sklearn.decomposition._fitted.FittedPCA",
    "ipca_sklearn.decomposition._full_covariance.FullCovariance",
    "ipca_sklearn.detection._calibration.ReferenceScores",
    "ipca_sklearn.detection._calibration.Summaries",
    "ipca_sklearn.detection._calibrator.Calibrator",
    "ipca_sklearn.detection._chosen.ChosenThreshold",
    "ipca_sklearn.detection._chosen.ErrorRate",
    "ipca_sklearn.detection._patch_gaussian.PatchGaussianDetector",
    "ipca_sklearn.detection._map_ops.ScoreSettings",
    "ipca_sklearn.features.backbones._backbone.Backbone",
    "ipca_sklearn.features._extractor.PatchFeatureExtractor",
    "ipca_sklearn.features._tiling.Tiling",
    "ipca_sklearn.monitoring._drift.DriftMonitor",
    "ipca_sklearn.products._router.ProductRouter",
)
# Arrays of a model compress by 1.1, with constant patches by a few times; files of zeros by a thousand.
_MAX_RATIO = 20
_ALWAYS_ALLOWED = 64 << 20
# The description of a model is read as JSON, which takes up to 20 times its size as Python objects.
_MAX_SCHEMA = 16 << 20
_SCHEMA = "schema.json"


def trusted_types() -> list[str]:
    """Return the types of this package that fitted models hold: the `trusted` of `skops.io.load(path, trusted=...)`.

    They hold numbers, arrays and names. A network is stored as its name and its weights. Loading builds it again with
    torchvision, timm or this package; nothing is downloaded and no code of the file is run.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from ipca_sklearn.persistence import trusted_types
    >>> "ipca_sklearn.detection._patch_gaussian.PatchGaussianDetector" in trusted_types()
    True
    """
    return list(_TRUSTED_TYPES)


def save_skops(model: BaseEstimator, path: PathLike, *, trusted: Iterable[str] = ()) -> None:
    """Write an estimator or a pipeline to a file that cannot execute code when it is loaded; otherwise like `save`.

    Parameters
    ----------
    model : estimator or Pipeline
        Its backbone has a name: the class of a module of your own is code, and no safe file can hold code.
    path : str or path-like
        The file, for example `"model.skops"`. As large as that of `save`; it cannot be mapped.
    trusted : iterable of str, default=()
        Types that `load_skops` will be told to trust besides `trusted_types()`, for other steps of a pipeline.

    Raises
    ------
    TypeError
        The model holds something that `load_skops` would refuse; the message names it. The old file is unchanged.
    ImportError
        skops is not installed.
    OSError
        The folder does not exist, the disk is full, ...

    Warns
    -----
    UserWarning
        As `save`.

    Notes
    -----
    skops makes the file in memory first: saving takes twice the size of the file.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.persistence import load_skops, save_skops
    >>> X = np.random.default_rng(0).normal(size=(40, 6, 8))
    >>> detector = PatchGaussianDetector(2).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_skops(detector, Path(folder, "model.skops"))
    ...     loaded = load_skops(Path(folder, "model.skops"))
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    skops_io = _import_skops()
    for name, value in model.get_params().items():
        if isinstance(value, torch.nn.Module):
            raise TypeError(
                f"{name} is a module of your own, a {type(value).__name__}: its class is code, and no safe file can "
                "hold code. Use a backbone that has a name, or write the model with persistence.save"
            )
        if isinstance(value, (torch.dtype, torch.device)):
            raise TypeError(f"{name}={value!r} is an object of torch, which no safe file can hold; set it as a string")
    with replacing(path) as file:
        skops_io.dump(model, file)
        file.flush()
        refused = set(skops_io.get_untrusted_types(file=file.name)) - {*trusted_types(), *trusted}
        if refused:
            raise TypeError(
                f"{type(model).__name__} holds objects of {', '.join(sorted(refused))}, which load_skops refuses. Set "
                "paths and weights as strings; name harmless types of your own in trusted="
            )
    warn_of_license(model, path)


def load_skops(path: PathLike, *, trusted: Iterable[str] = ()) -> Any:
    """Read a file of `save_skops` or of `skops.io.dump`, and refuse everything but data of known types.

    Parameters
    ----------
    path : str or path-like
        The file.
    trusted : iterable of str, default=()
        Types to trust besides `trusted_types()` and those that skops trusts, scikit-learn's among them.

    Returns
    -------
    estimator or Pipeline

    Raises
    ------
    FileNotFoundError
        There is no such file.
    TypeError
        The file holds types that are not trusted; nothing in it was executed.
    ValueError
        The file is incomplete, or no model of skops. It claims sizes that it has no room for, or its weights do not fit
        its network; memory for them is not taken before.
    ImportError
        skops, or a package that the backbone needs, is not installed.

    Warns
    -----
    InconsistentVersionWarning
        (`sklearn.exceptions`) Another version of ipca_sklearn, or of scikit-learn, has written the file.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from ipca_sklearn import BatchedIncrementalPCA
    >>> from ipca_sklearn.persistence import load_skops, save_skops
    >>> pca = BatchedIncrementalPCA(2).fit(np.random.default_rng(0).normal(size=(40, 6, 8)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_skops(pca, Path(folder, "pca.skops"))
    ...     load_skops(Path(folder, "pca.skops")).n_samples_seen_
    40
    """
    skops_io = _import_skops()

    def read() -> Any:
        with open(path, "rb") as file:
            _check_sizes(file, path)
            return skops_io.load(file, trusted=[*trusted_types(), *trusted])

    refusal = skops_io.exceptions.UntrustedTypesFoundException
    return read_model(path, read, passed_on=(refusal, ClaimedSizeError))


def _import_skops() -> Any:
    try:
        import skops.io.exceptions
    except ImportError as error:
        raise ImportError("files without code need skops; pip install skops") from error
    return skops.io


class ClaimedSizeError(ValueError):
    """A file claims to hold much more than it has room for."""


def _check_sizes(file: BinaryIO, path: PathLike) -> None:
    """Refuse a file whose content would take far more memory than it has bytes; the position is kept at 0."""
    limit = max(_ALWAYS_ALLOWED, _MAX_RATIO * file.seek(0, 2))
    name = printable(path)
    with zipfile.ZipFile(file) as archive:
        _require(
            sum(info.file_size for info in archive.infolist()) <= limit, name, f"unpacks to more than {limit} bytes"
        )
        n_schema = archive.getinfo(_SCHEMA).file_size
        _require(n_schema <= _MAX_SCHEMA, name, f"has a description of {n_schema} bytes, more than {_MAX_SCHEMA}")
        uses = _uses(json.loads(archive.read(_SCHEMA)))
        sizes = {member: archive.getinfo(member).file_size for member in uses}
        total = sum(sizes[member] * n_uses for member, n_uses in uses.items())
        _require(total <= limit, name, f"has arrays of {total} bytes, as some are used many times")
        for member in uses:
            _check_member(archive, member, name, limit)
    file.seek(0)


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise ClaimedSizeError(
            f"{name} is refused: it {what}. No model that save_skops writes does so; get the file again from a source "
            "that you trust"
        )


def _uses(schema: Any) -> Counter[str]:
    """Return how often each member of the archive is read: skops reads it for every node that names it."""
    found: Counter[str] = Counter()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("file"), str):
                found[node["file"]] += 1
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _check_member(archive: zipfile.ZipFile, member: str, name: str, limit: int) -> None:
    with archive.open(member) as content:
        start = content.read(8)
        if start.startswith(b"PK"):  # a sparse matrix is an archive of arrays
            content.seek(0)
            with zipfile.ZipFile(content) as inner:
                size = sum(info.file_size for info in inner.infolist())
                _require(size <= limit, name, f"has an archive {printable(member)} that unpacks to {size} bytes")
                for one in inner.namelist():
                    _check_member(inner, one, name, limit)
        elif start.startswith(np.lib.format.MAGIC_PREFIX):
            content.seek(0)
            major, minor = np.lib.format.read_magic(content)
            read: Any = getattr(np.lib.format, f"read_array_header_{major}_{minor}", None)
            array = f"has an array {printable(member)}"
            _require(read is not None, name, f"{array} of an unknown version")
            shape, _, dtype = read(content)
            claimed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - content.tell()
            _require(claimed == there, name, f"{array} of {there} bytes that claims to have {claimed}")

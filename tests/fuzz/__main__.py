"""Coverage-guided fuzzing with atheris: random bytes until something undocumented comes out.

Run it from the repository root, after `pip install atheris`:

    python -m tests.fuzz image|arrays|model [--seconds 60]

`image` decodes the bytes as a file, `arrays` learns and scores them as numbers of a shape and dtype that the bytes
choose, `model` loads them as a skops file. It ends with the bytes that broke something, or with the number of inputs
that did not. It is not part of the tests, which do the same with Hypothesis; pytest does not collect a `__main__.py`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ipca_sklearn", "PIL", "skops"]):
    import numpy as np
    from PIL import Image

    from ipca_sklearn import BatchedIncrementalPCA, ImageReadError, PatchGaussianDetector
    from ipca_sklearn.features._decode import to_rgb
    from ipca_sklearn.persistence import load_skops, save_skops

DTYPES = ("float16", "float32", "float64", "int8", "uint16", "int64", "bool", "complex64")
FOLDER = Path(tempfile.mkdtemp())


def image(data: bytes) -> None:
    """Decode a file."""
    path = FOLDER / "image"
    path.write_bytes(data)
    try:
        picture = to_rgb(path, "X[0]")
    except ImageReadError as error:
        assert str(path) in str(error)
    else:
        assert picture.ndim == 3
        assert picture.shape[0] == 3


def arrays(data: bytes) -> None:
    """Learn two arrays with any parameters, and score them."""
    provider = atheris.FuzzedDataProvider(data)
    k, step_size = provider.ConsumeIntInRange(0, 5), provider.ConsumeIntInRange(0, 4)
    estimator = PatchGaussianDetector if provider.ConsumeBool() else BatchedIncrementalPCA
    learner = estimator(k, step_size=step_size, centering="deferred" if provider.ConsumeBool() else "incremental")
    seen = 0
    for _ in range(2):
        shape = tuple(provider.ConsumeIntInRange(0, 4) for _ in range(provider.ConsumeIntInRange(0, 5)))
        dtype = np.dtype(provider.PickValueInList(list(DTYPES)))
        content = provider.ConsumeBytes(int(np.prod(shape)) * dtype.itemsize)
        content = content.ljust(int(np.prod(shape)) * dtype.itemsize, b"\1")
        X = np.frombuffer(content, dtype=dtype).reshape(shape)
        try:
            learner.partial_fit(X)
            seen += len(X)
            assert not np.isnan(learner.transform(X)).any()
        except (TypeError, ValueError) as error:
            assert str(error)
        assert getattr(learner, "n_samples_seen_", 0) == seen if hasattr(learner, "patch_shape_") else seen == 0


def model(data: bytes) -> None:
    """Load an untrusted file: the bytes as they are, or as the schema within a valid file."""
    path = FOLDER / "model.skops"
    path.write_bytes(data)
    for content in (data, _with_schema(data)):
        path.write_bytes(content)
        try:
            load_skops(path)
        except (ImportError, TypeError, ValueError) as error:
            assert str(error)


def _with_schema(data: bytes) -> bytes:
    original, changed = FOLDER / "whole.skops", io.BytesIO()
    if not original.exists():
        save_skops(PatchGaussianDetector(1).fit(np.eye(4)), original)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name == "schema.json" else old.read(name))
    return changed.getvalue()


def _seeds(target: str) -> Path:
    """Return a folder with valid inputs to begin with."""
    folder = FOLDER / "seeds"
    folder.mkdir()
    if target == "image":
        picture = Image.effect_noise((9, 7), 50)
        for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
            picture.save(folder / form, form)
    if target == "model":
        _with_schema(b"")
        with zipfile.ZipFile(FOLDER / "whole.skops") as whole:
            (folder / "schema").write_bytes(whole.read("schema.json"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=["image", "arrays", "model"])
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = 10_000  # a changed header must not ask for gigabytes
    function = {"image": image, "arrays": arrays, "model": model}[options.target]
    arguments = [sys.argv[0], f"-max_total_time={options.seconds}", "-max_len=4096", "-rss_limit_mb=8000"]
    atheris.Setup([*arguments, str(_seeds(options.target))], function)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

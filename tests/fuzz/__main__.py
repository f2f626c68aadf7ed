"""Coverage-guided fuzzing with atheris: random bytes until something undocumented comes out.

Run it from the repository root, after `pip install atheris`:

    python -m tests.fuzz image|arrays|model|checkpoint|command [--seconds 60]

`image` decodes the bytes as a file, `arrays` learns and scores them as numbers of a shape and dtype that the bytes
choose, `model` loads them as a skops file, `checkpoint` puts them into a checkpoint that a fit goes on from, and
`command` makes a command line of them. It ends with the bytes that broke something, or with the number of inputs
that did not. It is not part of the tests, which do the same with Hypothesis; pytest does not collect a `__main__.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ipca_sklearn", "PIL", "skops"]):
    import numpy as np
    from PIL import Image
    from typer.testing import CliRunner

    from ipca_sklearn import BatchedIncrementalPCA, ImageReadError, PatchGaussianDetector
    from ipca_sklearn.cli import app
    from ipca_sklearn.images._decode import to_rgb
    from ipca_sklearn.persistence import fit_resumable, load_skops, save_skops

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


X = np.random.default_rng(0).normal(size=(96, 2, 3)).astype(np.float32)
WHOLE_FIT = PatchGaussianDetector(1, step_size=8).fit(X)


def _checkpoint_of_48() -> bytes:
    path = FOLDER / "whole.checkpoint"
    if not path.exists():
        with contextlib.suppress(KeyboardInterrupt):
            fit_resumable(PatchGaussianDetector(1, step_size=8), X, path, every=48, callback=_stop)
    return path.read_bytes()


def _stop(n_samples: int) -> None:
    raise KeyboardInterrupt


def checkpoint(data: bytes) -> None:
    """Go on from a checkpoint in which some bytes have changed: an error that names it, or the same bits.

    Only bytes of a whole checkpoint are changed: a checkpoint is a pickle, which only its own user may write.
    """
    provider = atheris.FuzzedDataProvider(data)
    content = bytearray(_checkpoint_of_48())
    for _ in range(provider.ConsumeIntInRange(0, 3)):
        content[provider.ConsumeIntInRange(0, len(content) - 1)] = provider.ConsumeIntInRange(0, 255)
    if provider.ConsumeBool():
        content = content[: provider.ConsumeIntInRange(0, len(content))]
    path = FOLDER / "changed.checkpoint"
    path.write_bytes(content)
    detector = PatchGaussianDetector(1, step_size=8)
    try:
        fit_resumable(detector, X, path, every=48)
    except (OSError, ValueError) as error:
        assert path.name in str(error)
        assert path.read_bytes() == content
        assert not hasattr(detector, "pca_")
    else:
        assert detector.offset_ == WHOLE_FIT.offset_
        assert detector.pca_.components_.tobytes() == WHOLE_FIT.pca_.components_.tobytes()


COMMAND_WORDS = """
    fit update predict evaluate info export demo --help --json --seed --device cpu cuda -o --out --maps --masks --report
    --components --step-size --false-positive-rate --on-error skip images model.joblib new.joblib rows.csv rows.jsonl
    page.html maps . .. - -- 0 -1 nan 1e9 0.05 missing =1+1
"""
WORDS = [*COMMAND_WORDS.split(), "", "\udcff", "\x1b[31m", "a\nb"]
INPUTS = ("model.joblib", "images/0.png", "images/1.png", "images/2.png")


def _command_folder() -> Path:
    folder = FOLDER / "command"
    if not folder.exists():
        (folder / "images").mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((32, 32), 50).save(folder / "images" / f"{number}.png")
        (folder / "model.joblib").write_bytes(b"no model")
    return folder


def command(data: bytes) -> None:
    """Run a command line made of words that mean something: an exit code that is documented, and inputs that stay."""
    provider = atheris.FuzzedDataProvider(data)
    words = [provider.PickValueInList(WORDS) for _ in range(provider.ConsumeIntInRange(1, 7))]
    if words[0] == "demo":  # it is the same work each time
        words[0] = "info"
    folder = _command_folder()
    before = {name: (folder / name).read_bytes() for name in INPUTS}
    os.chdir(folder)
    result = CliRunner().invoke(app, words, input="")
    assert result.exit_code in (0, 1, 2), (words, result.exit_code)
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert "Traceback" not in result.output and "\x1b[31m" not in result.output, words
    assert {name: (folder / name).read_bytes() for name in INPUTS} == before, words


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


TARGETS = {"image": image, "arrays": arrays, "model": model, "checkpoint": checkpoint, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = 10_000  # a changed header must not ask for gigabytes
    function = TARGETS[options.target]
    arguments = [sys.argv[0], f"-max_total_time={options.seconds}", "-max_len=4096", "-rss_limit_mb=8000"]
    atheris.Setup([*arguments, str(_seeds(options.target))], function)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

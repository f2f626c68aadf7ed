"""A disk that is full: an error that names the file, no half-written file, and old files as they were."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.pipeline import Pipeline
from typer.testing import CliRunner

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.cli import app
from ipca_sklearn.export import to_onnx
from ipca_sklearn.inspection import HtmlReport
from ipca_sklearn.persistence import fit_resumable, save, save_skops

_KIB = 256


def run(options: argparse.Namespace) -> list[str]:
    """Return what went wrong."""
    failures = []
    with tempfile.TemporaryDirectory() as name:
        images = _images(Path(name))
        pipe = _pipe().fit(images)
        save(pipe, Path(name) / "model.joblib")
        for what, write in _writers(pipe, images, Path(name) / "model.joblib").items():
            with _full_disk() as disk:
                failures += _attempt(what, write, disk)
        failures += _cache(images)
    return failures


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / "images" / f"{number:02d}.png" for number in range(20)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def _pipe(cache: Any = None) -> Pipeline:
    extractor = PatchFeatureExtractor(
        "resnet18", weights=None, random_state=0, image_size=64, crop_size=64, cache=cache
    )
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4))])


@contextmanager
def _full_disk() -> Iterator[Path]:
    """A file system of 256 KiB, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_KIB}k", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def _writers(pipe: Pipeline, images: list[Path], model: Path) -> dict[str, Callable[[Path], Any]]:
    def command(*arguments: object) -> None:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        if result.exit_code:
            raise OSError(result.output)

    def report(path: Path) -> None:
        with HtmlReport(path, threshold=0.0) as page:
            for image in images * 20:
                page.add(image, -1.0, image=Image.open(image))

    folder = images[0].parent
    return {
        "save": lambda path: save(pipe, path),
        "save_skops": lambda path: save_skops(pipe, path),
        "fit_resumable": lambda path: fit_resumable(_pipe(), images, path),
        "to_onnx": lambda path: to_onnx(pipe, path),
        "HtmlReport": report,
        "fit": lambda path: command("fit", folder, "-o", path.with_suffix(".joblib")),
        "predict -o": lambda path: command("predict", model, *images * 500, "-o", path.with_suffix(".csv")),
        "predict --report": lambda path: command("predict", model, *images * 20, "--report", path.with_suffix(".html")),
        "predict --maps": lambda path: command("predict", model, *images * 20, "--maps", path.parent / "maps"),
        "export": lambda path: command("export", model, "-o", path.with_suffix(".onnx")),
    }


def _attempt(what: str, write: Callable[[Path], Any], disk: Path) -> list[str]:
    old = disk / "old"
    old.write_bytes(b"old")
    target = disk / "target"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(target)
    except OSError as error:
        failures = [] if str(disk) in str(error) else [f"{what}: the error does not name the file: {error}"]
        left = sorted(path.name for path in disk.rglob("*") if path.is_file() and path.name != "old")
        if old.read_bytes() != b"old":
            failures.append(f"{what}: another file has changed")
        print(f"{what}: {str(error).strip().splitlines()[-1][:110]!r}; left: {left[:3]}", flush=True)
        return failures
    except Exception as error:
        return [f"{what}: {type(error).__name__}: {error}"]
    return [f"{what}: no error, {sum(path.stat().st_size for path in disk.rglob('*'))} bytes written"]


def _cache(images: list[Path]) -> list[str]:
    expected = _pipe().fit(images).score_samples(images)
    with _full_disk() as disk, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = _pipe(FeatureCache(disk / "cache")).fit(images)
        scores = pipe.score_samples(images)
    told = [str(warning.message) for warning in caught if "cache" in str(warning.message)]
    print(f"FeatureCache: {told[:1]}", flush=True)
    failures = [] if np.allclose(scores, expected, rtol=1e-4) else ["FeatureCache: other scores"]
    return failures + ([] if told else ["FeatureCache: no warning"])

"""`kill -9` of the command line, at random moments."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ipca_sklearn.datasets import make_textures
from ipca_sklearn.persistence import load

_COMMAND = [sys.executable, "-m", "ipca_sklearn"]
_SETTINGS = ["--backbone", "efficientnet_lite0", "--k", "2", "--device", "cpu"]


def run(options: argparse.Namespace) -> list[str]:
    """Return what was lost."""
    rng = np.random.default_rng(options.seed)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "good").mkdir()
        data = make_textures(160, 0, size=64, random_state=0)
        for number, image in enumerate(data.train_images):
            Image.fromarray(image).save(folder / "good" / f"{number:03d}.png")
        for check in (_fit, _update, _predict):
            failures += check(folder, rng, options.kills)
    return failures


def _run(*arguments: object) -> float:
    start = time.monotonic()
    subprocess.run([*_COMMAND, *map(str, arguments)], check=True, capture_output=True)
    return time.monotonic() - start


def _killed(after: float, *arguments: object) -> bool:
    """Start a command and kill it after some seconds; return whether it was still running."""
    process = subprocess.Popen([*_COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def _fit(folder: Path, rng: np.random.Generator, n_kills: int) -> list[str]:
    """A fit that was killed goes on, or starts again, and ends with the model of a fit that was not."""
    arguments = ["fit", folder / "good", "-o"]
    seconds = _run(*arguments, folder / "whole.joblib", *_SETTINGS)
    whole, model, failures, n_killed = load(folder / "whole.joblib")[-1], folder / "fit.joblib", [], 0
    for number in range(n_kills):
        n_killed += _killed(rng.uniform(0, 1.1 * seconds), *arguments, model, *_SETTINGS)
        _run(*arguments, model, *_SETTINGS)
        fitted = load(model)[-1]
        same = fitted.n_samples_seen_ == whole.n_samples_seen_
        if not same or not np.array_equal(fitted.pca_.components_, whole.pca_.components_):
            failures.append(f"fit {number}: another model after kill -9")
        model.unlink()
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith((".fit", "fit")))
    print(f"fit: killed {n_killed} times within {seconds:.1f} s; left over: {left}", flush=True)
    return failures


def _update(folder: Path, rng: np.random.Generator, n_kills: int) -> list[str]:
    """An update that was killed leaves the old model or the new one, and the file loads."""
    model, failures, n_killed = folder / "update.joblib", [], 0
    before = (folder / "whole.joblib").read_bytes()
    model.write_bytes(before)
    seconds = _run("update", model, folder / "good", "--device", "cpu")
    after = load(model)[-1].n_samples_seen_
    for number in range(n_kills):
        model.write_bytes(before)
        n_killed += _killed(rng.uniform(0, 1.1 * seconds), "update", model, folder / "good", "--device", "cpu")
        if model.read_bytes() != before and load(model)[-1].n_samples_seen_ != after:
            failures.append(f"update {number}: neither the old model nor the new one")
    print(f"update: killed {n_killed} times within {seconds:.1f} s", flush=True)
    return failures


def _predict(folder: Path, rng: np.random.Generator, n_kills: int) -> list[str]:
    """The rows that a killed predict has written are whole, and the model is as it was."""
    model, rows, failures, n_killed = folder / "whole.joblib", folder / "rows.csv", [], 0
    before = model.read_bytes()
    arguments = ["predict", model, folder / "good", "-o", rows, "--device", "cpu"]
    seconds = _run(*arguments)
    expected = list(csv.DictReader(rows.open(newline="")))
    for number in range(n_kills):
        rows.unlink(missing_ok=True)
        n_killed += _killed(rng.uniform(0, 1.1 * seconds), *arguments)
        found = list(csv.DictReader(rows.open(newline=""))) if rows.exists() else []
        whole = found[:-1] if found and not rows.read_bytes().endswith(b"\n") else found  # the last line may be cut
        if [row["path"] for row in whole] != [row["path"] for row in expected[: len(whole)]]:
            failures.append(f"predict {number}: rows are missing or changed")
        if model.read_bytes() != before:
            failures.append(f"predict {number}: the model has changed")
    print(f"predict: killed {n_killed} times within {seconds:.1f} s", flush=True)
    return failures

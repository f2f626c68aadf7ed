"""`kill -9` of the command line, at random moments."""

from __future__ import annotations

import argparse
import csv
import shutil
import signal
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
        shutil.copytree(folder / "good", folder / "more")  # other places: images that `update` does not know
        for check in (_fit, _update, _predict, _watch):
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
    seconds = _run("update", model, folder / "more", "--device", "cpu")
    after = load(model)[-1].n_samples_seen_
    for number in range(n_kills):
        model.write_bytes(before)
        n_killed += _killed(rng.uniform(0, 1.1 * seconds), "update", model, folder / "more", "--device", "cpu")
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


def _watch(folder: Path, rng: np.random.Generator, n_kills: int) -> list[str]:
    """A watch that was killed goes on: in the end each image has one row, with the score of `predict`."""
    incoming, table, expected = folder / "incoming", folder / "watched.csv", folder / "expected.csv"
    incoming.mkdir()
    images = sorted((folder / "good").iterdir())
    _run("predict", folder / "whole.joblib", folder / "good", "-o", expected, "--device", "cpu")
    arguments = ["watch", folder / "whole.joblib", incoming, "-o", table, "--settle", "0.1", "--device", "cpu"]
    command = [*_COMMAND, *map(str, arguments)]
    n_killed, parts = 0, np.array_split(np.arange(len(images)), n_kills + 1)
    for part in parts[:-1]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Kills before the first row test little: wait until rows are written again.
        before, n_there = _n_lines(table), len(list(incoming.iterdir()))
        for number in part:
            shutil.copy(images[number], incoming)
        while _n_lines(table) < min(before + 1, n_there + len(part)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        n_killed += process.poll() is None
        process.kill()
        process.wait()
    for number in parts[-1]:
        shutil.copy(images[number], incoming)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while _n_lines(table) < len(images) + 1 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(3)  # for rows that should not come
    process.send_signal(signal.SIGINT)
    code = process.wait()
    scores = {Path(row["path"]).name: row["score"] for row in csv.DictReader(expected.open(newline=""))}
    found = [(Path(row["path"]).name, row["score"]) for row in csv.DictReader(table.open(newline=""))]
    failures = [] if code == 130 else [f"watch: exit code {code} after Ctrl-C"]
    if sorted(name for name, _ in found) != sorted(scores):
        failures.append(f"watch: {len(found)} rows of {len(set(found))} images, where {len(scores)} were expected")
    elif not all(np.isclose(float(score), float(scores[name]), rtol=1e-5) for name, score in found):
        failures.append("watch: other scores than those of predict")
    print(f"watch: killed {n_killed} times, {len(found)} rows of {len(images)} images", flush=True)
    return failures


def _n_lines(table: Path) -> int:
    return table.read_bytes().count(b"\n") if table.exists() else 0

"""Many cycles of everything that a long-lived process does."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.persistence import load, load_skops, save, save_skops

# Growth of the resident memory, from a third of the cycles to the end, that counts as none.
_ALLOWED_MIB = 32


def run(options: argparse.Namespace) -> list[str]:
    """Return what has grown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _images(folder)
        measured = []
        for cycle in range(options.cycles):
            _cycle(folder, paths, cycle)
            if cycle % max(1, options.cycles // 20) == 0 or cycle == options.cycles - 1:
                measured.append((cycle, *_usage()))
                print("cycle {}: {:.0f} MiB resident, {} threads, {} file handles".format(*measured[-1]), flush=True)
    settled = [figures for figures in measured if figures[0] >= options.cycles // 3]
    grown = []
    for index, (what, allowed) in enumerate((("memory in MiB", _ALLOWED_MIB), ("threads", 0), ("file handles", 0)), 1):
        first, last = settled[0][index], settled[-1][index]
        if last > first + allowed:
            grown.append(f"{what}: {first:.0f} after {settled[0][0]} cycles, {last:.0f} after {settled[-1][0]}")
    return grown


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


def _cycle(folder: Path, paths: list[Path], cycle: int) -> None:
    extractor = PatchFeatureExtractor(
        "squeezenet1_1", weights=None, random_state=0, layers=["features.3"], image_size=32, grid_size=4,
        cache=FeatureCache(folder / "cache", max_bytes=10_000) if cycle % 2 else None,
    )  # fmt: skip
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector(2, step_size=4))])
    pipe.fit(paths[:8])
    if cycle % 2:
        save(pipe, folder / "model.joblib")
        pipe = load(folder / "model.joblib")
    else:
        save_skops(pipe, folder / "model.skops")
        pipe = load_skops(folder / "model.skops")
    pipe[-1].partial_fit(pipe[0].transform(paths[8:]))
    assert pipe[-1].n_samples_seen_ == len(paths)
    assert np.isfinite(pipe.score_samples(paths)).all() and pipe.transform(paths).shape == (len(paths), 4, 4)


def _usage() -> tuple[float, int, int]:
    """Return the resident memory in MiB, the number of threads, and that of open files.

    The C library is asked to give back what is free between blocks that are in use: what is left is in use.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, threading.active_count(), len(os.listdir("/proc/self/fd"))

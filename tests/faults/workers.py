"""Workers of a distributed fit that die."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from ipca_sklearn import PatchGaussianDetector
from ipca_sklearn.distributed import fit, fit_rank

N_PARTITIONS, N_IMAGES = 4, 40


def partition(index: int, marks: Path, dies: int) -> np.ndarray:
    """Return a partition; the first worker that is asked for partition `dies` kills itself."""
    mark = marks / "died"
    if index == dies and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return np.random.default_rng(index).normal(size=(N_IMAGES, 4, 6))


class Partition:
    """A callable that workers can unpickle."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self) -> np.ndarray:
        return partition(*self.arguments)


def run(options: argparse.Namespace) -> list[str]:
    """Return the fits that did not come to the same model after a worker had died."""
    expected = fit(PatchGaussianDetector(2), _partitions(Path("/nonexistent"), -1))
    failures: list[str] = []
    for name, attempt in {"loky": _on_loky, "dask": _on_dask}.items():
        failures += _repeated(name, attempt, expected, options.kills)
    return failures + _ranks(options.kills)


def _partitions(marks: Path, dies: int) -> list[Partition]:
    return [Partition(index, marks, dies) for index in range(N_PARTITIONS)]


def _repeated(name: str, attempt: Callable[[list[Partition]], Any], expected: Any, n_kills: int) -> list[str]:
    failures = []
    for number in range(n_kills):
        with tempfile.TemporaryDirectory() as marks, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = attempt(_partitions(Path(marks), number % N_PARTITIONS))
            if not Path(marks, "died").exists():
                failures.append(f"{name} {number}: no worker died")
        if not np.allclose(fitted.pca_.components_, expected.pca_.components_) or fitted.n_samples_seen_ != 160:
            failures.append(f"{name} {number}: another model")
    print(f"{name}: {n_kills} fits of which a worker died", flush=True)
    return failures


def _on_loky(partitions: list[Partition]) -> Any:
    return fit(PatchGaussianDetector(2), partitions, n_jobs=2, threads_per_worker=1)


def _on_dask(partitions: list[Partition]) -> Any:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        return fit(PatchGaussianDetector(2), partitions)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 1:
        os.kill(os.getpid(), 9)
    try:
        fit_rank(PatchGaussianDetector(2), np.random.default_rng(0).normal(size=(40, 4, 6)))
    except Exception as error:
        Path(folder, "told").write_text(repr(error))


def _ranks(n_kills: int) -> list[str]:
    """A rank that dies makes the others raise an error, not wait for ever."""
    failures = []
    for number in range(n_kills):
        with tempfile.TemporaryDirectory() as folder:
            processes = torch.multiprocessing.spawn(_rank, (folder,), nprocs=2, join=False).processes
            end = time.monotonic() + 120
            for process in processes:
                process.join(max(0, end - time.monotonic()))
            if processes[0].is_alive():
                failures.append(f"torch.distributed {number}: the other rank still waits after 120 s")
                processes[0].kill()
            elif not Path(folder, "told").exists():
                failures.append(f"torch.distributed {number}: the other rank raised no error")
    print(f"torch.distributed: {n_kills} fits of which a rank died", flush=True)
    return failures

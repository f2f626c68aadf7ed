"""Section of gpu.py: ways to decompose a batch of Gram matrices, against each other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from _common import seconds
from _cusolver import XsyevBatched
from _pca_methods import features
from _sections import Cell, Config, NotApplicableError, Row, Section
from torch import Tensor

Solver = Callable[[Tensor], tuple[Tensor, Tensor]]
FULL_BATCH_SECONDS = 2.0


def one_call(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)


def in_chunks(gram: Tensor, size: int) -> tuple[Tensor, Tensor]:
    values, vectors = zip(*(one_call(part) for part in gram.split(size)), strict=True)
    return torch.cat(values), torch.cat(vectors)


def by_svd(gram: Tensor, driver: str) -> tuple[Tensor, Tensor]:
    if gram.device.type != "cuda":
        raise NotApplicableError("torch chooses no SVD routine on a CPU")
    vectors, values, _ = torch.linalg.svd(gram, full_matrices=False, driver=driver)
    return values, vectors


def on_host(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose on all cores of the host, one LAPACK thread each, and bring the result back."""
    n_threads = os.cpu_count() or 1
    parts = gram.cpu().tensor_split(4 * n_threads)
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        solved = list(pool.map(one_call, [part for part in parts if len(part)]))
    values, vectors = zip(*solved, strict=True)
    return torch.cat(values).to(gram.device), torch.cat(vectors).to(gram.device)


@lru_cache(maxsize=1)
def cusolver() -> XsyevBatched:
    return XsyevBatched()


def candidates() -> dict[str, Solver]:
    """Return everything that can be tried; the package's own table is read where it has one."""
    found: dict[str, Solver] = {
        "torch eigh, one call": one_call,
        "torch eigh, chunks of 512": partial(in_chunks, size=512),
        "torch svd gesvdj": partial(by_svd, driver="gesvdj"),
        "torch svd gesvda": partial(by_svd, driver="gesvda"),
        "eigh on the host's cores": on_host,
        "cusolverDnXsyevBatched": lambda gram: cusolver()(gram),
    }
    try:
        from ipca_sklearn.linalg import _eigh
    except ImportError:  # a version without this table
        return found
    return found | {f"ipca_sklearn {name}": solver for name, solver in _eigh.EIGENSOLVERS.items()}


def errors(gram: Tensor, values: Tensor, vectors: Tensor) -> Row:
    """Return the worst residual |G V - V L| / |G| and deviation of V^T V from the identity, in float64."""
    gram, values, vectors = gram.double(), values.double(), vectors.double()
    residual = torch.linalg.matrix_norm(gram @ vectors - vectors * values[:, None, :])
    identity = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    return {
        "residual": float((residual / torch.linalg.matrix_norm(gram)).max()),
        "orthogonality": float((vectors.mT @ vectors - identity).abs().max()),
    }


def run(solver: Solver, gram: Tensor, config: Config) -> Row:
    few = gram[: config.pick(32 if gram.shape[1] <= 64 else 16, 4)]
    checked = errors(few, *solver(few))
    scale = len(gram) / len(few)
    times = [scale * time for time in seconds(lambda: solver(few), gram.device, 1, warm_up=False)]
    full = statistics.median(times) < FULL_BATCH_SECONDS
    if full:
        times = seconds(lambda: solver(gram), gram.device, config.pick(3, 1))
    return {"ms": [1e3 * time for time in times], "matrices_run": len(gram) if full else len(few), **checked}


def cells(config: Config) -> Iterator[Cell]:
    batch = config.pick(3136, 16)
    for dtype in (torch.float32, torch.float64):
        for size in config.pick((32, 80, 128, 64, 48, 96, 192), (8, 20)):
            rows = features(size, batch, config.pick(256, 32), config.device).to(dtype).transpose(0, 1).contiguous()
            gram = rows @ rows.mT
            for name, solver in candidates().items():
                labels = {"dtype": str(dtype).removeprefix("torch."), "n": size, "solver": name}
                yield labels, partial(run, solver, gram, config)


EIGENSOLVERS = Section(
    "eigensolvers",
    "Eigensolvers on a batch of Gram matrices",
    "3136 matrices n x n, Gram matrices of synthetic features with their mean. Milliseconds per batch, median (range); "
    f"where a few matrices predict more than {FULL_BATCH_SECONDS:g} s, theirs is scaled (*matrices_run*). "
    "Residual |GV - VL| / |G| and deviation of V'V from the identity: the worst of these few, taken in float64.",
    100,
    cells,
)

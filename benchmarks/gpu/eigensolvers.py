"""Section on eigensolvers: ways to decompose a batch of Gram matrices."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.common.pca_methods import features
from benchmarks.common.timing import seconds
from benchmarks.gpu.cusolver import XsyevBatched
from benchmarks.gpu.sections import Cell, Config, NotApplicableError, Row, Section
from ipca_sklearn import linalg

# From symmetric matrices and k to the k leading eigenvalues, descending, and eigenvectors as rows.
Solver = Callable[[Tensor, int], tuple[Tensor, Tensor]]
FULL_BATCH_SECONDS = 2.0


def leading(values: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k leading of ascending eigenvalues and of eigenvectors in columns."""
    return values.flip(-1)[:, :k], vectors.flip(-1)[..., :k].mT


def one_call(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return leading(*torch.linalg.eigh(gram), k)


def in_chunks(gram: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    values, vectors = zip(*(one_call(part, k) for part in gram.split(size)), strict=True)
    return torch.cat(values), torch.cat(vectors)


def by_svd(gram: Tensor, k: int, driver: str) -> tuple[Tensor, Tensor]:
    if gram.device.type != "cuda":
        raise NotApplicableError("torch chooses no SVD routine on a CPU")
    vectors, values, _ = torch.linalg.svd(gram, full_matrices=False, driver=driver)
    return values[:, :k], vectors[..., :k].mT


def by_ours(gram: Tensor, k: int, name: str) -> tuple[Tensor, Tensor]:
    if name == "numba" and gram.device.type != "cpu":
        raise NotApplicableError("numba compiles for the CPU")
    if name == "numba" and find_spec("numba") is None:
        raise NotApplicableError("numba is not installed")
    if name == "triton" and gram.device.type != "cuda":
        raise NotApplicableError("Triton compiles for a GPU")
    return linalg.EIGENSOLVERS[name].solve(gram, k)


@lru_cache(maxsize=1)
def cusolver() -> XsyevBatched:
    return XsyevBatched()


def candidates() -> dict[str, Solver]:
    """Return all eigensolvers by name."""
    return {
        "torch eigh, one call": one_call,
        "torch eigh, chunks of 512": partial(in_chunks, size=512),
        "torch svd gesvdj": partial(by_svd, driver="gesvdj"),
        "torch svd gesvda": partial(by_svd, driver="gesvda"),
        "cusolverDnXsyevBatched": lambda gram, k: leading(*cusolver()(gram), k),
        **{f"ipca_sklearn {name}": partial(by_ours, name=name) for name in linalg.EIGENSOLVERS if name != "torch"},
    }


def errors(gram: Tensor, values: Tensor, vectors: Tensor) -> Row:
    """Return the worst residual |V G - L V| / |G| and deviation of V V^T from the identity, in float64."""
    gram, values, vectors = gram.double(), values.double(), vectors.double()
    residual = torch.linalg.matrix_norm(vectors @ gram - values[..., None] * vectors)
    identity = torch.eye(vectors.shape[1], dtype=torch.float64, device=gram.device)
    return {
        "residual": float((residual / torch.linalg.matrix_norm(gram)).max()),
        "orthogonality": float((vectors @ vectors.mT - identity).abs().max()),
    }


def run(solver: Solver, gram: Tensor, k: int, config: Config) -> Row:
    few = gram[: config.pick(32 if gram.shape[1] <= 64 else 16, 4)]
    checked = errors(few, *solver(few, k))
    scale = len(gram) / len(few)
    times = [scale * time for time in seconds(lambda: solver(few, k), gram.device, 1, warm_up=False)]
    full = statistics.median(times) < FULL_BATCH_SECONDS
    if full:
        times = seconds(lambda: solver(gram, k), gram.device, config.pick(3, 1))
    return {"ms": [1e3 * time for time in times], "matrices_run": len(gram) if full else len(few), **checked}


def cells(config: Config) -> Iterator[Cell]:
    batch = config.pick(3136, 16)
    for dtype in (torch.float32, torch.float64):
        for size in config.pick((32, 80, 128, 64, 48, 96, 192), (8, 20)):
            rows = features(size, batch, config.pick(256, 32), config.device).to(dtype).transpose(0, 1).contiguous()
            gram = rows @ rows.mT
            for name, solver in candidates().items():
                labels = {"dtype": str(dtype).removeprefix("torch."), "n": size, "solver": name}
                yield labels, partial(run, solver, gram, size - config.pick(16, 4), config)


EIGENSOLVERS = Section(
    "eigensolvers",
    "Eigensolvers on a batch of Gram matrices",
    "3136 matrices n x n, Gram matrices of synthetic features with their mean, of which n - 16 vectors are wanted. "
    "Milliseconds per batch, median (range); "
    f"where a few matrices predict more than {FULL_BATCH_SECONDS:g} s, theirs is scaled (*matrices_run*). "
    "Residual |VG - LV| / |G| and deviation of VV' from the identity: the worst of these few, taken in float64.",
    100,
    cells,
)

"""Ways to learn thousands of PCAs in a stream (ours and its rivals), their clock and their errors.

Every method learns the same synthetic features: P patches of m features with the spectrum of CNN features. Variances
fall as 1 / rank, and the mean is larger than the spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.common.timing import synchronize
from ipca_sklearn import linalg


@dataclass
class Method:
    """A way to learn: `steps` yields after each step, `finish` returns the components (P, k, m) as float64 numpy."""

    name: str
    steps: Callable[[Iterator[torch.Tensor], int], Iterator[None]]
    finish: Callable[[int], np.ndarray]
    patches: int


def features(n: int, patches: int, m: int, device: str, seed: int = 0) -> torch.Tensor:
    """Return features (n, P, m), float32; all patches share one mixing matrix, which is cheap to make."""
    generator = torch.Generator(device=device).manual_seed(seed)
    scales = torch.arange(1, m + 1, device=device).float().rsqrt()
    mixing, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, device=device))
    mean = 2 * torch.rand(patches, m, generator=generator, device=device)
    return (torch.randn(n, patches, m, generator=generator, device=device) * scales) @ mixing + mean


def ours(solver: str, patches: int, driver: str | None = None, centering: str = "incremental") -> Method:
    """Return `linalg.update` with one of its solvers."""
    box: list[linalg.State] = []

    def steps(source: Iterator[torch.Tensor], k: int) -> Iterator[None]:
        state = None
        for x in source:
            if state is None:
                state = linalg.empty_state(*x.shape[1:], dtype=x.dtype, device=x.device)
            state = linalg.update(state, x, n_rows=k, centering=centering, solver=solver, svd_driver=driver)
            box[:] = [state]
            yield

    def finish(k: int) -> np.ndarray:
        return linalg.finalize(box[0], n_components=k, centering=centering).components.double().cpu().numpy()

    label = f"ipca_sklearn {solver}" + (f" + {driver}" if driver else "") + (", deferred" * (centering == "deferred"))
    return Method(label, steps, finish, patches)


def full_covariance(patches: int) -> Method:
    """Sum x and x x^T, and decompose once at the end; the time of the decomposition is shared among the steps."""
    box: dict[str, torch.Tensor | int] = {}

    def steps(source: Iterator[torch.Tensor], k: int) -> Iterator[None]:
        box.clear()
        for x in source:
            if not box:
                box.update(n=0, s=torch.zeros_like(x[0]), g=x.new_zeros(*x.shape[1:], x.shape[2]), shift=x[0].clone())
            x = x - box["shift"]
            box["n"] += len(x)
            box["s"] += x.sum(0)
            box["g"].baddbmm_(x.permute(1, 2, 0), x.transpose(0, 1))
            yield

    def finish(k: int) -> np.ndarray:
        mean = box["s"] / box["n"]
        covariance = box["g"] / box["n"] - mean[:, :, None] * mean[:, None, :]
        return torch.linalg.eigh(covariance)[1][..., -k:].mT.double().cpu().numpy()

    return Method("full covariance, one eigh", steps, finish, patches)


def loop_of(
    name: str,
    make: Callable[[int], Any],
    convert: Callable[[torch.Tensor], Any],
    patches: int,
    threads: int | None = None,
) -> Method:
    """Learn with one object per patch in a Python loop; `threads` limits the threads of the BLAS."""
    models: list[Any] = []

    def steps(source: Iterator[torch.Tensor], k: int) -> Iterator[None]:
        models[:] = [make(k) for _ in range(patches)]
        waiting: list[torch.Tensor] = []
        begun = False
        for x in source:
            waiting.append(x)
            # The first call needs k samples: earlier steps are collected for it, and `measure` does not count them.
            if begun or sum(map(len, waiting)) >= k:
                samples = convert(torch.cat(waiting))
                with threadpool_limits(threads):
                    for patch, model in enumerate(models):
                        model.partial_fit(samples[:, patch], check_input=False)
                waiting, begun = [], True
            yield

    def finish(k: int) -> np.ndarray:
        stacked = [torch.as_tensor(model.components_).double().cpu().numpy() for model in models]
        return np.stack(stacked)

    return Method(name, steps, finish, patches)


def scikit_learn(patches: int, threads: int | None = None) -> Method:
    from sklearn.decomposition import IncrementalPCA

    name = "loop of scikit-learn IncrementalPCA" + (f", {threads} BLAS thread" if threads else "")
    return loop_of(name, IncrementalPCA, lambda x: x.cpu().numpy(), patches, threads)


def torchdr(patches: int) -> Method | None:
    try:
        from torchdr import IncrementalPCA
    except ImportError:
        return None
    return loop_of("loop of TorchDR IncrementalPCA", lambda k: IncrementalPCA(n_components=k), lambda x: x, patches)


def errors(components: np.ndarray, data: np.ndarray, k: int) -> tuple[float, float]:
    """Return two errors, each the mean over the patches.

    The first is the lost share of the exact PCA's variance; the second is the sine of the largest angle to its leading
    k / 2 directions.
    """
    lost, angle = [], []
    for patch in range(len(components)):
        centred = data[:, patch] - data[:, patch].mean(0)
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        u = components[patch]
        lost.append(1 - np.sum((centred @ u.T) ** 2) / np.sum(values[:k] ** 2))
        outside = right[: k // 2] - (right[: k // 2] @ u.T) @ u
        angle.append(np.linalg.norm(outside, 2))
    return float(np.mean(lost)), float(np.mean(angle))


def measure(
    method: Method, k: int, b: int, n: int, m: int, total: int, device: str, repeats: int, checked: int = 8
) -> dict[str, Any]:
    """Learn n images in steps of b, `repeats` times, and return the speed of a step, scaled to `total` patches.

    The errors are means over the first `checked` patches.
    """
    data = features(n, method.patches, m, device)
    times: list[float] = []
    finish_times = []
    for _ in range(repeats):
        learning = method.steps(iter(data.split(b)), k)
        for position in range(n // b):
            synchronize(device)
            start = time.perf_counter()
            next(learning)
            synchronize(device)
            if position * b > k:  # earlier steps have fewer than k rows, and the first one warms up
                times.append(time.perf_counter() - start)
        start = time.perf_counter()
        components = method.finish(k)
        finish_times.append(time.perf_counter() - start)
    scale = total / method.patches
    if method.name.startswith("full"):
        times = [t + statistics.median(finish_times) * b / n for t in times]
    checked = min(checked, method.patches)
    lost, angle = errors(components[:checked], data[:, :checked].double().cpu().numpy(), k)
    speeds = sorted(b / (t * scale) for t in times)
    return {
        "method": method.name,
        "k": k,
        "b": b,
        "m": m,
        "n": n,
        "patches_run": method.patches,
        "images_per_s": statistics.median(speeds),
        "low": speeds[0],
        "high": speeds[-1],
        "lost_variance": lost,
        "sine": angle,
    }


def stream_length(k: int, b: int) -> int:
    """Return the number of images of a stream: about a class of MVTec AD, with several steps after k rows are kept."""
    return -(-max(240, 3 * k, 6 * b) // b) * b

"""python benchmarks/pca.py: images per second of the PCA alone, for many (k, b), beside its rivals and their errors.

Every method learns the same synthetic features in the same process: P patches of m features with the spectrum of CNN
features (variances falling as 1 / rank, a mean larger than the spread). Slow methods run on a sample of the patches and
their time is scaled by P / sample, which the table says.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from _common import environment, markdown_table, write_results

from ipca_sklearn import linalg

SETTINGS = [(16, 16), (32, 32), (48, 16), (64, 16), (64, 64), (112, 16), (128, 64)]


@dataclass
class Method:
    """A way to learn: `steps` yields once per step learnt, `finish` returns components (P, k, m) as float64 numpy."""

    name: str
    steps: Callable[[Iterator[torch.Tensor], int], Iterator[None]]
    finish: Callable[[int], np.ndarray]
    patches: int


def features(n: int, patches: int, m: int, device: str, seed: int = 0) -> torch.Tensor:
    """Return (n, P, m) float32; one mixing matrix for all patches keeps the making of it cheap."""
    generator = torch.Generator(device=device).manual_seed(seed)
    scales = torch.arange(1, m + 1, device=device).float().rsqrt()
    mixing, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, device=device))
    mean = 2 * torch.rand(patches, m, generator=generator, device=device)
    return (torch.randn(n, patches, m, generator=generator, device=device) * scales) @ mixing + mean


def ours(solver: str, patches: int, driver: str | None = None, centering: str = "incremental") -> Method:
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
    """Sum x and x x^T, and decompose once at the end: the time of that is shared among the steps."""
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


def scikit_learn(patches: int) -> Method:
    from sklearn.decomposition import IncrementalPCA

    models: list[IncrementalPCA] = []

    def steps(source: Iterator[torch.Tensor], k: int) -> Iterator[None]:
        models[:] = [IncrementalPCA(k) for _ in range(patches)]
        for x in source:
            array = x.cpu().numpy()
            for patch, model in enumerate(models):
                model.partial_fit(array[:, patch], check_input=False)
            yield

    def finish(k: int) -> np.ndarray:
        return np.stack([model.components_ for model in models]).astype(np.float64)

    return Method("loop of scikit-learn IncrementalPCA", steps, finish, patches)


def torchdr(patches: int) -> Method | None:
    try:
        from torchdr import IncrementalPCA
    except ImportError:
        return None
    models: list[IncrementalPCA] = []

    def steps(source: Iterator[torch.Tensor], k: int) -> Iterator[None]:
        models[:] = [IncrementalPCA(n_components=k) for _ in range(patches)]
        for x in source:
            for patch, model in enumerate(models):
                model.partial_fit(x[:, patch], check_input=False)
            yield

    def finish(k: int) -> np.ndarray:
        return np.stack([np.asarray(model.components_.cpu()) for model in models]).astype(np.float64)

    return Method("loop of TorchDR IncrementalPCA", steps, finish, patches)


def errors(components: np.ndarray, data: np.ndarray, k: int) -> tuple[float, float]:
    """Share of the exact PCA's variance that is lost, and sine of the largest angle to its leading k / 2 directions."""
    lost, angle = [], []
    for patch in range(len(components)):
        centred = data[:, patch] - data[:, patch].mean(0)
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        u = components[patch]
        lost.append(1 - np.sum((centred @ u.T) ** 2) / np.sum(values[:k] ** 2))
        outside = right[: k // 2] - (right[: k // 2] @ u.T) @ u
        angle.append(np.linalg.norm(outside, 2))
    return float(np.mean(lost)), float(np.mean(angle))


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(method: Method, k: int, b: int, n: int, m: int, total: int, device: str, repeats: int) -> dict[str, object]:
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
            if position > (k - 1) // b:  # until then there are fewer than k rows, and the first step warms up
                times.append(time.perf_counter() - start)
        start = time.perf_counter()
        components = method.finish(k)
        finish_times.append(time.perf_counter() - start)
    scale = total / method.patches
    if method.name.startswith("full"):
        times = [t + statistics.median(finish_times) * b / n for t in times]
    checked = min(8, method.patches)
    lost, angle = errors(components[:checked], data[:, :checked].double().cpu().numpy(), k)
    speeds = sorted(b / (t * scale) for t in times)
    return {
        "method": method.name,
        "k": k,
        "b": b,
        "m": m,
        "patches_run": method.patches,
        "images_per_s": statistics.median(speeds),
        "low": speeds[0],
        "high": speeds[-1],
        "lost_variance": lost,
        "sine": angle,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patches", type=int, default=3136)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--settings", nargs="+", default=[f"{k},{b}" for k, b in SETTINGS], metavar="K,B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default=None, help="of the report in docs/benchmarks")
    options = parser.parse_args()
    device, total, m = options.device, options.patches, options.features
    on_gpu = device.startswith("cuda")
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
    results = []
    for setting in options.settings:
        k, b = (int(number) for number in setting.split(","))
        n = max(6 * b, 3 * k, 96) // b * b
        sample = total if on_gpu else max(16, total * 16 // max(16, k + b) // 16)
        methods = [
            ours("auto", total),
            ours("gram_svd", sample, "gesvdj" if on_gpu else None, "deferred"),
            ours("svd", 64 if on_gpu else sample // 2),
            full_covariance(total if on_gpu else 64),
            scikit_learn(16),
            torchdr(16),
        ]
        for method in methods:
            if method is not None:
                result = measure(method, k, b, n, m, total, device, options.repeats)
                results.append(result)
                print({key: value for key, value in result.items() if key != "finish"}, flush=True)
    rows = []
    for result in results:
        reference = next(
            r["images_per_s"]
            for r in results
            if r["method"].startswith("loop of scikit") and (r["k"], r["b"]) == (result["k"], result["b"])
        )
        speed = result["images_per_s"]
        rows.append(
            [
                f"{result['k']} + {result['b']}",
                str(result["method"]),
                f"{speed:.3g} ({result['low']:.3g} - {result['high']:.3g})",
                f"{speed / reference:.1f}",
                "all" if result["patches_run"] == total else str(result["patches_run"]),
                f"{result['lost_variance']:.1e}",
                f"{result['sine']:.1e}",
            ]
        )
    header = ["k + b", "method", "images/s, median (range)", "times scikit-learn", "patches run"]
    header += ["variance lost", "sine of angle"]
    text = f"""# The PCA alone, P = {total}, m = {m}, float32

Time of a step of b images once k rows are kept, over {options.repeats} runs of each stream. Where fewer patches were
run, the speed is scaled to all {total}. *Variance lost*: of what an exact float64 PCA of the same images keeps with k
components. *Sine of angle*: largest angle between the exact PCA's leading k / 2 directions and the subspace found. Both
include what a truncated stream loses by design; full covariance loses nothing and keeps m x m numbers per patch.

{environment()}

{markdown_table(header, rows)}"""
    write_results(options.name or ("pca_gpu" if on_gpu else "pca_cpu") + (f"_m{m}" * (m != 256)), text, results)


if __name__ == "__main__":
    main()

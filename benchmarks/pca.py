"""Images per second of the PCA alone for many (k, b), beside its rivals, with the errors of each.

Every method learns the same synthetic features in the same process. Slow methods run on a sample of the patches; their
time is scaled by P / sample, and the table says so.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from tqdm import tqdm

from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results

SETTINGS = [(16, 16), (32, 32), (48, 16), (64, 16), (64, 64), (112, 16), (128, 64)]


def run(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    from benchmarks.common.pca_methods import full_covariance, measure, ours, scikit_learn, stream_length, torchdr

    total, on_gpu = options.patches, device.startswith("cuda")
    results = []
    for setting in tqdm(options.settings, unit="setting"):
        k, b = (int(number) for number in setting.split(","))
        few, sample = min(16, total), min(total, max(16, total * 16 // (k + b) // 16))
        methods = [
            ours("auto", total),
            ours("gram_svd", sample, "gesvdj" if on_gpu else None, "deferred"),
            ours("svd", min(total, 64) if on_gpu else max(few, sample // 2)),
            full_covariance(total if on_gpu else min(total, 64)),
            scikit_learn(few),
            scikit_learn(few, threads=1),
            torchdr(few),
        ]
        for method in methods:
            if method is not None:
                n = stream_length(k, b)
                result = measure(method, k, b, n, options.features, total, device, options.repeats)
                results.append(result)
                tqdm.write(str(result), file=sys.stderr)
    return results


def rows_of(results: list[dict[str, Any]], total: int) -> list[list[str]]:
    loops: dict[tuple[int, int], float] = {}
    for r in results:
        if r["method"].startswith("loop of scikit"):
            loops[r["k"], r["b"]] = max(r["images_per_s"], loops.get((r["k"], r["b"]), 0.0))
    return [
        [
            f"{r['k']} + {r['b']}",
            r["method"],
            f"{r['images_per_s']:.3g} ({r['low']:.3g} - {r['high']:.3g})",
            f"{r['images_per_s'] / loops[r['k'], r['b']]:.1f}",
            "all" if r["patches_run"] == total else str(r["patches_run"]),
            f"{r['lost_variance']:.1e}",
            f"{r['sine']:.1e}",
        ]
        for r in results
    ]


def main() -> None:
    parser = argument_parser("benchmarks.pca", __doc__)
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--patches", type=int, default=3136)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--settings", nargs="+", default=[f"{k},{b}" for k, b in SETTINGS], metavar="K,B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default=None, help="of the report")
    options = parser.parse_args()

    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
    results = run(options, device)
    header = ["k + b", "method", "images/s, median (range)", "times scikit-learn", "patches run"]
    header += ["variance lost", "sine of angle"]
    text = f"""# The PCA alone, P = {options.patches}, m = {options.features}, float32

Time of a step of b images once k rows are kept, over {options.repeats} runs of each stream. Where fewer patches were
run, the speed is scaled to all {options.patches}. *Variance lost*: of what an exact float64 PCA of the same images
keeps with k components. *Sine of angle*: largest angle between the exact PCA's leading k / 2 directions and the
subspace found. Both include what a truncated stream loses by design; full covariance loses nothing, keeps m x m numbers
per patch, and its one decomposition is shared among the images of the stream (240 to 384). *Times scikit-learn*: the
faster of its loops is 1.

{environment()}

{markdown_table(header, rows_of(results, options.patches))}"""
    name = options.name or ("pca_gpu" if device.startswith("cuda") else "pca_cpu")
    name += f"_m{options.features}" * (options.features != 256 and not options.name)
    write_results(options, name, text, {"environment": environment(), "results": results})


if __name__ == "__main__":
    main()

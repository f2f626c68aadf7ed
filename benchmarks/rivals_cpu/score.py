"""Load a model and score frames; every row of the table runs this in a fresh process, with the interpreter it needs.

The argument is a file that describes the job. It imports what the row needs and nothing else, because the time to the
first score is measured. The last line printed is a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.memory import peak_mb

BATCH = 8


def load(kind: str, file: str, threads: int) -> Callable[[np.ndarray], Any]:
    """Return what gives scores and maps of RGB images (n, H, W, 3) of uint8."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": channels_first(images)})
    if kind == "openvino":
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(file, "CPU", hints)
        return lambda images: compiled(channels_first(images)).to_tuple()
    import torch

    torch.set_num_threads(threads)
    if kind == "module":  # of anomalib, with its weights
        module = torch.load(file, weights_only=False)
        return lambda images: module(torch.from_numpy(channels_first(images)))
    from ipca_sklearn import persistence

    pipe = persistence.load(file)
    if kind == "to_torch":
        from ipca_sklearn.export import to_torch

        module = to_torch(pipe)
        return lambda images: module(torch.from_numpy(channels_first(images)))
    pipe.set_params(features__engine=kind.removeprefix("engine "))

    def scored(images: np.ndarray) -> Any:
        maps = pipe.transform(images)
        return pipe[-1].score_maps(maps), maps

    return scored


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    frames = np.load(job["frames"])
    call = load(job["kind"], job["file"], job["threads"])
    scores, maps = call(frames[:1])
    found: dict[str, Any] = {"first": time.time(), "score": float(np.asarray(scores).ravel()[0])}
    assert np.isfinite(np.asarray(maps)).all()
    n, times = len(frames), []
    for number in range(job["warm_up"] + job["calls"]):
        start = time.perf_counter()
        call(frames[number % n : number % n + 1])
        times.append(1000 * (time.perf_counter() - start))
    found["frame_ms"] = [round(value, 3) for value in times[job["warm_up"] :]]
    speeds = []
    for size in (1, BATCH):  # some forms are faster with one image at a time
        parts = [frames[start : start + size] for start in range(0, n - n % size, size)]
        try:
            call(parts[0])
        except Exception as error:  # exported PatchCore takes one image at a time
            found["one at a time"] = f"{type(error).__name__}: {str(error)[:100]}"
            continue
        start = time.perf_counter()
        for part in parts:
            call(part)
        speeds.append(size * len(parts) / (time.perf_counter() - start))
    return found | {"maps_per_s": max(speeds), "peak_mb": peak_mb()}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    if given["kind"] in ("module", "to_torch"):
        import torch

        with torch.inference_mode():
            print(json.dumps(measure(given)))
    else:
        print(json.dumps(measure(given)))

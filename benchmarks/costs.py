"""What learning, scoring and storing cost on this machine: the goals of the shared Gaussians and of the engines.

Every row runs in fresh processes, round by round. With --beside, the rows of the pipeline also run with the
`ipca_sklearn` of another checkout, such as one of an earlier commit. Textures of 256 x 256 pixels, EfficientNet-Lite0.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE, LITE = 256, "efficientnet_lite0"


def milliseconds(task: Callable[[int], object], repeats: int, warm_up: int = 8) -> list[float]:
    """Time `task(number)` again and again, after some runs that do not count."""
    times = []
    for number in range(warm_up + repeats):
        start = time.perf_counter()
        task(number)
        times.append(1000 * (time.perf_counter() - start))
    return times[warm_up:]


def percentiles(times: list[float]) -> dict[str, float]:
    """Return the median, the quarter of the fastest, and p95."""
    ordered = sorted(times)
    return {
        "p50": statistics.median(ordered),
        "p25": ordered[len(ordered) // 4],
        "p95": ordered[int(0.95 * len(ordered))],
    }


def pipeline(job: dict[str, Any]) -> dict[str, Any]:
    """Time a pipeline, and take the peak of its memory, by calls that earlier versions have too."""
    import numpy as np
    import torch
    from sklearn.pipeline import Pipeline

    from benchmarks.common.memory import peak_mb, restart_peak
    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.datasets import make_textures

    torch.set_num_threads(job["threads"])
    data = make_textures(job["n_train"], 64, material="stone", size=SIZE, random_state=0)
    extractor = PatchFeatureExtractor(LITE, **job["extractor"]).fit(data.train_images)
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector())])
    images = data.test_images
    for _ in pipe[0].transform(images[:8]).read(8):  # the network
        pass
    PatchGaussianDetector(2).fit(np.random.default_rng(0).normal(size=(70, 4, 4, 8)).astype(np.float32))  # libraries
    baseline = restart_peak()
    pipe.fit(data.train_images)
    peak = peak_mb() - baseline
    pipe.score_samples(images[:16])  # all kernels have been compiled now
    start = time.perf_counter()
    pipe.fit(data.train_images)
    found: dict[str, Any] = {"learning, images/s": job["n_train"] / (time.perf_counter() - start)}
    found["peak of a fit, MB"] = peak
    start = time.perf_counter()
    pipe.score_samples(images[:1])
    found["first score after learning, s"] = time.perf_counter() - start
    start = time.perf_counter()
    pipe.transform(images)
    found["maps, images/s"] = len(images) / (time.perf_counter() - start)

    def read(number: int) -> None:
        for _ in pipe[0].transform(images[number % 64 : number % 64 + 1]).read(1, reuse=True):
            pass

    frames = milliseconds(lambda number: pipe.score_samples(images[number % 64 : number % 64 + 1]), 80)
    found["a frame, ms"] = percentiles(frames)
    found["its features, ms"] = percentiles(milliseconds(read, 80))
    return found


def parts(job: dict[str, Any]) -> dict[str, Any]:
    """Time the parts: scatter matrices, distances; and the size of a file."""
    import io

    import joblib
    import torch

    from benchmarks.common.generated import GeneratedFeatures
    from ipca_sklearn import PatchGaussianDetector, linalg

    torch.set_num_threads(job["threads"])
    detector = PatchGaussianDetector(64).fit(GeneratedFeatures(job["n_train"], 4096, 256))
    file = io.BytesIO()
    joblib.dump(detector, file)
    found: dict[str, Any] = {"file, MB": file.tell() / 1e6}
    operator, cells = detector.distance_operator(), torch.arange(4096).reshape(256, 16)
    for n in (1, 8):
        samples = linalg.GroupedSamples(torch.randn(n, 4096, 256), cells)
        times = percentiles(milliseconds(lambda _, s=samples: linalg.patch_distances(operator, s), 100 // n))
        found[f"distances of {n}, ms an image"] = {name: value / n for name, value in times.items()}
    samples = linalg.GroupedSamples(torch.randn(16, 4096, 256), cells)
    state = [linalg.empty_scatter(256, 256)]

    def learn(_: int) -> None:
        state[0] = linalg.update_scatter(state[0], samples, in_place=True)

    found["scatter matrices, ms an image"] = {k: v / 16 for k, v in percentiles(milliseconds(learn, 20, 3)).items()}
    return found


class Clock:
    """Times functions by stage: the time in a function without that in others that are timed, in each thread."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._thread = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its time to a stage."""

        def run(*arguments: Any, **named: Any) -> Any:
            outside = getattr(self._thread, "inside", 0.0)
            self._thread.inside = 0.0
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                whole = 1000 * (time.perf_counter() - start)
                self.ms[stage] = self.ms.get(stage, 0) + whole - self._thread.inside
                self._thread.inside = outside + whole

        return run


# Stage, module and function, or class and method. The network pads its images itself.
STAGES = (
    ("decode", "ipca_sklearn.features._loader", "decode"),
    ("resize", "ipca_sklearn.features._loader", "resize_and_crop"),
    ("to floats", "ipca_sklearn.features._loader", "load_batch"),
    ("network, with its margin", "ipca_sklearn.features.engines._openvino.OpenVINOEngine", "_run_one"),
    ("grid", "ipca_sklearn.features._lazy", "write_on_grid"),
    ("scatter matrices", "ipca_sklearn.decomposition._batched_ipca", "update_scatter"),
    ("decompositions", "ipca_sklearn.linalg", "finalize_scatter"),
    ("distances", "ipca_sklearn.linalg", "patch_distances"),
    ("distances", "ipca_sklearn.detection._map_ops", "banded_distances"),
    ("map", "ipca_sklearn.detection._map_ops.MapScorer", "maps"),
    ("score", "ipca_sklearn.detection._map_ops", "image_scores"),
)
REST = "Python and the rest"


def stages(job: dict[str, Any]) -> dict[str, Any]:
    """Time the stages of `predict` of one image and of eight, as arrays and as files of another size, and of `fit`."""
    import tempfile
    from importlib import import_module

    import numpy as np
    import torch
    from PIL import Image
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
    from ipca_sklearn.datasets import make_textures

    torch.set_num_threads(job["threads"])
    data = make_textures(job["n_train"], 64, material="stone", size=SIZE, random_state=0)
    extractor = PatchFeatureExtractor(LITE, engine="openvino")
    pipe = Pipeline([("features", extractor), ("detector", PatchGaussianDetector())]).fit(data.train_images)
    clock, found = Clock(), {}
    for stage, place, name in STAGES:
        module, _, owner = place.rpartition(".")
        is_class = owner[0].isupper()
        target = getattr(import_module(module), owner) if is_class else import_module(place)
        setattr(target, name, clock.timed(stage, getattr(target, name)))
    predict = clock.timed(REST, pipe.predict)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number:02}.png" for number in range(64)]
        for file, image in zip(files, data.test_images, strict=True):
            Image.fromarray(np.asarray(image)).resize((400, 300)).save(file)
        for title, images, n in (
            ("an array", data.test_images, 1),
            ("8 arrays", data.test_images, 8),
            ("a PNG file of 400 x 300", files, 1),
        ):
            runs: list[dict[str, float]] = []
            for number in range(68):
                clock.ms = {}
                first = n * number % 64
                predict(images[first : first + n])
                runs.append(clock.ms)
            found[title] = stage_table(runs[8:], n)
    runs = []
    for _ in range(3):
        clock.ms = {}
        clock.timed(REST, pipe.fit)(data.train_images)
        runs.append(clock.ms)
    found[f"learning {job['n_train']} arrays"] = stage_table(runs, job["n_train"])
    return found


def stage_table(runs: list[dict[str, float]], n: int) -> dict[str, float]:
    """Return the median of each stage, and of all, in ms an image."""
    names = [
        name for name in dict.fromkeys([*(stage for stage, *_ in STAGES), REST]) if any(name in run for run in runs)
    ]
    table = {name: statistics.median(run.get(name, 0.0) for run in runs) / n for name in names}
    return table | {"all": statistics.median(sum(run.values()) for run in runs) / n}


def measured(job: dict[str, Any], checkout: Path) -> dict[str, Any]:
    """Run a job in a fresh process with the packages of a checkout."""
    paths = [str(checkout), str(Path(__file__).resolve().parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(job["threads"])}
    environment.pop("IPCA_SKLEARN_ENGINE", None)
    command = [sys.executable, "-W", "ignore", __file__, "--measure", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs' values side by side, a median for each percentile."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: {key: statistics.median(value[key] for value in several) for key in several[0]}
        if isinstance(several[0], dict)
        else several
        for name, several in values.items()
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    from benchmarks.common.reports import figure, markdown_table

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return f"{figure(value['p50'])} (p25 {figure(value['p25'])}, p95 {figure(value['p95'])})"
        return figure(value)

    names = list(dict.fromkeys(name for result in results.values() for name in result))
    rows = [[name, *(cell(result.get(name)) for result in results.values())] for name in names]
    return markdown_table(["", *results], rows)


def main() -> None:
    from benchmarks.common.images import PAPER_GEOMETRY
    from benchmarks.common.reports import argument_parser, environment, write_results

    parser = argument_parser("benchmarks.costs", __doc__)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of another version")
    parser.add_argument("--n-train", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bfloat16", action="store_true", help="also with bfloat16, on a CPU that has it")
    parser.add_argument("--stages", action="store_true", help="print the stages of a frame, and measure nothing else")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    common = {"threads": options.threads, "n_train": options.n_train}
    if options.stages:
        print(table(measured({**common, "measure": "stages"}, here)))
        return
    extractors: dict[str, dict[str, Any]] = {engine: {"engine": engine} for engine in ("openvino", "torch")}
    extractors["openvino, the paper's images"] = {"engine": "openvino", **PAPER_GEOMETRY}
    if options.bfloat16:
        for name in list(extractors):
            if name.startswith("openvino"):
                extractors[f"{name}, bfloat16"] = {**extractors[name], "amp": "bfloat16"}
    rows = {name: ({**common, "measure": "pipeline", "extractor": each}, here) for name, each in extractors.items()}
    if options.beside:
        rows = {"other checkout": ({**common, "measure": "pipeline", "extractor": {}}, options.beside), **rows}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in [*rows, "parts"]}
    for _ in range(options.repeats):
        for name, (job, checkout) in rows.items():
            runs[name].append(measured(job, checkout))
        runs["parts"].append(measured({**common, "measure": "parts"}, here))
    results = {name: merged(several) for name, several in runs.items()}
    alone = {"": results.pop("parts")}
    text = f"""# What learning, scoring and storing cost

{options.n_train} training images and 64 others of 256 x 256 pixels as uint8 arrays, {options.threads} threads, default
parameters, EfficientNet-Lite0; {options.repeats} fresh process(es) per column, median. Learning is a `fit` with its
thresholds, maps `transform` of 64 images, a frame `score_samples` of one, features what the extractor does for it. The
peak is that of the first `fit` of the process, over what imports and a network that has run hold. The paper's images
are resized to 256 x 256 (nearest), and their centre of 224 x 224 is taken.

{environment()}

{table(results)}

## Parts

4096 patches of 256 features, 256 Gaussians with 64 components.

{table(alone)}"""
    write_results(options, "costs", text, {"environment": environment(), "results": {**results, "parts": alone[""]}})


if __name__ == "__main__":
    if "--measure" in sys.argv:
        given = json.loads(sys.argv[sys.argv.index("--measure") + 1])
        print(json.dumps({"parts": parts, "pipeline": pipeline, "stages": stages}[given["measure"]](given)))
    else:
        main()

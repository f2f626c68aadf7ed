"""What learning, scoring and storing cost on this machine: the goals of the shared Gaussians and of the engines.

Every row runs in fresh processes, round by round. With --beside, the rows of the pipeline also run with the
`ipca_sklearn` of another checkout, such as one of an earlier commit. Textures of 256 x 256 pixels, EfficientNet-Lite0.
"""

from __future__ import annotations

import json
import operator
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
N_MANY = 1000


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
    of_distances, cells = detector.distance_operator(), torch.arange(4096).reshape(256, 16)
    for n in (1, 8):
        samples = linalg.GroupedSamples(torch.randn(n, 4096, 256), cells)
        times = percentiles(milliseconds(lambda _, s=samples: linalg.patch_distances(of_distances, s), 100 // n))
        found[f"distances of {n}, ms an image"] = {name: value / n for name, value in times.items()}
    samples = linalg.GroupedSamples(torch.randn(16, 4096, 256), cells)
    state = [linalg.empty_scatter(256, 256)]

    def learn(_: int) -> None:
        state[0] = linalg.update_scatter(state[0], samples, in_place=True)

    found["scatter matrices, ms an image"] = {k: v / 16 for k, v in percentiles(milliseconds(learn, 20, 3)).items()}
    for n in (job["n_train"], N_MANY):
        features = GeneratedFeatures(n, 4096, 256)
        reading = milliseconds(lambda _, f=features: sum(1 for _ in f.read(16)), 1, 1)[0]
        learning = milliseconds(lambda _, f=features: PatchGaussianDetector().fit(f), 1, 0)[0]
        found[f"learning features of {n} images, ms an image"] = (learning - reading) / n
    return found


def starts(job: dict[str, Any]) -> dict[str, Any]:
    """Time commands from their start to their end: what they import, and learning 100 files and scoring one of them."""
    import tempfile

    from PIL import Image

    from ipca_sklearn.datasets import make_textures

    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(make_textures(100, 1, material="stone", size=SIZE, random_state=0).train_images):
            Image.fromarray(image).save(f"{folder}/{number:02}.png")
        model = f"{folder}/model.joblib"
        commands = {
            "importing torch and scikit-learn's pipeline, s": ("-c", "import torch, sklearn.pipeline"),
            "`ipca-sklearn fit` of 100 images, s": ("-m", "ipca_sklearn", "fit", folder, "-o", model),
            "`ipca-sklearn predict` of one image, s": ("-m", "ipca_sklearn", "predict", model, f"{folder}/00.png"),
        }
        for command in commands.values():  # engines and kernels are compiled and kept
            seconds(*command)
        return {name: statistics.median(seconds(*command) for _ in range(3)) for name, command in commands.items()}


def goals(results: dict[str, dict[str, Any]], parts: dict[str, Any], starts: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table of goals: what, the goal, what was reached, and whether that is it."""
    from benchmarks.common.reports import figure

    def value(found: Any) -> float:
        return found["p50"] if isinstance(found, dict) else statistics.median(found)

    ours, earlier = results["openvino"], results.get("other checkout")
    many = f"learning features of {N_MANY} images, ms an image"
    limits = [
        ("first score after learning, s", value(ours["first score after learning, s"]), "<=", 1),
        ("peak of a fit, MB", value(ours["peak of a fit, MB"]), "<=", 300),
        ("file, MB", value(parts["file, MB"]), "<=", 25),
        ("distances of 1, ms", value(parts["distances of 1, ms an image"]), "<=", 2.5),
        ("distances of 8, ms an image", value(parts["distances of 8, ms an image"]), "<=", 2),
        (many, value(parts[many]), "<=", 5),
        (
            "features and distances of a frame, over its features",
            1 + value(parts["distances of 1, ms an image"]) / value(ours["its features, ms"]),
            "<=",
            1.35,
        ),
        *((name, value(starts[name]), "<=", limit) for name, limit in zip(list(starts)[1:], (6, 3), strict=True)),
    ]
    if earlier is not None:
        beside = (("learning, images/s", ">=", 2), ("maps, images/s", ">=", 2.2), ("a frame, ms", "<=", 0.5))
        for name, sign, limit in beside:
            limits.append((f"{name}, over the other checkout", value(ours[name]) / value(earlier[name]), sign, limit))
    bfloat16 = results.get("openvino, the paper's images, bfloat16")
    if bfloat16 is not None:
        for name, limit in (("maps, images/s", 192), ("learning, images/s", 100)):
            title = f"{name}, the paper's images with bfloat16 (for a CPU with AMX)"
            limits.append((title, value(bfloat16[name]), ">=", limit))
    is_reached = {"<=": operator.le, ">=": operator.ge}
    return [
        [name, f"{sign} {limit}", figure(reached), "reached" if is_reached[sign](reached, limit) else "**missed**"]
        for name, reached, sign, limit in limits
    ]


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
    ("resize", "ipca_sklearn.features._loader", "resize"),
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
    from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results

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
    alone = ("parts", "starts")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in [*rows, *alone]}
    for _ in range(options.repeats):
        for name, (job, checkout) in rows.items():
            runs[name].append(measured(job, checkout))
        for name in alone:
            runs[name].append(measured({**common, "measure": name}, here))
    results = {name: merged(several) for name, several in runs.items()}
    of_parts, of_starts = (results.pop(name) for name in alone)
    text = f"""# What learning, scoring and storing cost

{options.n_train} training images and 64 others of 256 x 256 pixels as uint8 arrays, {options.threads} threads, default
parameters, EfficientNet-Lite0; {options.repeats} fresh process(es) per column, median. Learning is a `fit` with its
thresholds, maps `transform` of 64 images, a frame `score_samples` of one, features what the extractor does for it. The
peak is that of the first `fit` of the process, over what imports and a network that has run hold. The paper's images
are resized to 256 x 256 (nearest), and their centre of 224 x 224 is taken.

{environment()}

{table(results)}

## Parts

4096 patches of 256 features, 256 Gaussians with 64 components. Learning of features is a `fit` with thresholds and the
default number of components, without the network; the more images, the less the decompositions weigh.

{table({"": of_parts})}

## Start

From the command to its end, median of 3 after one that does not count.

{table({"": of_starts})}

## Goals

On two cores; what the network takes is in all rows but those of the parts.

{markdown_table(["", "goal", "reached", ""], goals(results, of_parts, of_starts))}"""
    values = {**results, "parts": of_parts, "starts": of_starts}
    write_results(options, "costs", text, {"environment": environment(), "results": values})


if __name__ == "__main__":
    if "--measure" in sys.argv:
        given = json.loads(sys.argv[sys.argv.index("--measure") + 1])
        measures = {"parts": parts, "pipeline": pipeline, "stages": stages, "starts": starts}
        print(json.dumps(measures[given["measure"]](given)))
    else:
        main()

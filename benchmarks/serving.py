"""The web service of the guide under load: what is lost, how its memory grows, and how long an answer takes.

docs/serving/app.py runs in a process of its own, behind uvicorn, over the loopback of this machine. Each client sends
an image, waits for the answer, compares it with that of the pipeline, and sends the next one; every twentieth body
is no image. Needs the group `serving` (or the extra `test`).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.processes import REPOSITORY, child_environment
from benchmarks.common.reports import argument_parser, environment, markdown_table, write_results

APP = REPOSITORY / "docs" / "serving"
EVERY_BAD = 20
METHOD = """A closed loop: each client has one request on the way, so that with more clients an answer waits for its
turn: {at_once} images are scored at the same time, each with {threads} of torch's threads. The model is that of
{n_train} drawn textures of 256 x 256 pixels, with the default network; it is run by {engine}. Right answers have the
bits of label, score, p-value and defects that the pipeline gives for the same image in another process. Bodies that
are no image are to be refused with 422. Memory is the resident set of the service: when it is ready, after a tenth of
the load, at the end, and the largest seen twice a second."""


@dataclass
class Outcome:
    """What the clients have sent, and what they got.

    Parameters
    ----------
    counts : Counter
        Requests by what became of them: sent, right, wrong, refused (bodies that are no image), failed.
    seconds : list of float
        From sending an image to its answer.
    errors : list of str
        Of requests that failed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def make_model(folder: Path, n_train: int, n_test: int) -> tuple[Path, str, list[tuple[bytes, Any]]]:
    """Learn drawn textures; return the file of the model, its engine, and bodies with their right answers."""
    from PIL import Image
    from sklearn.pipeline import Pipeline

    from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, persistence
    from ipca_sklearn.datasets import make_textures

    data = make_textures(n_train, n_test, size=256, random_state=0)
    pipe = Pipeline([("features", PatchFeatureExtractor()), ("detector", PatchGaussianDetector())])
    pipe.fit(data.train_images)
    model = folder / "model.skops"
    persistence.save_skops(pipe, model)
    pairs = []
    for number, image in enumerate(data.test_images):
        path = folder / f"{number}.png"
        Image.fromarray(image).save(path)
        features = pipe[0].transform([path])
        answer = {
            "label": int(pipe[-1].predict(features)[0]),
            "score": float(pipe[-1].score_samples(features)[0]),
            "p_value": float(pipe[-1].p_values(features)[0]),
            "defects": [defect.as_dict() for defect in pipe[-1].predict_regions(features)[0]],
        }
        pairs.append((path.read_bytes(), json.loads(json.dumps(answer))))
    return model, pipe[0].engine_, pairs


def in_a_loop(model: Path, bodies: list[bytes], seconds: float) -> float:
    """Return the images per second of the pipeline without a service, one file after the other."""
    from ipca_sklearn import persistence

    pipe = persistence.load_skops(model)
    path = model.parent / "one.png"
    path.write_bytes(bodies[0])
    pipe.predict([path])
    start, number = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        path.write_bytes(bodies[number % len(bodies)])
        pipe[-1].predict_regions(pipe[0].transform([path]))
        number += 1
    return number / (time.perf_counter() - start)


@contextmanager
def service(model: Path, threads: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Start the service, and yield its port and its process number when it is ready."""
    variables = {"MODEL": str(model), "OMP_NUM_THREADS": str(threads), "AT_ONCE": str(at_once)}
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(APP), "--port", "0", "--no-access-log"]
    command += ["--limit-concurrency", "64"]  # as on the page
    process = subprocess.Popen(command, env=child_environment(variables), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            running = re.search(r"running on http://[\d.]+:(\d+)", line)
            if running:
                break
        else:
            raise RuntimeError(f"the service has not started: {''.join(said)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # else the pipe is full some day
        yield int(running[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def client(number: int, port: int, pairs: list[tuple[bytes, Any]], until: float, outcome: Outcome) -> None:
    """Ask until the time has come, by one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    turn = number
    while time.perf_counter() < until:
        bad = turn % EVERY_BAD == EVERY_BAD - 1
        body, expected = (b"no image", None) if bad else pairs[turn % len(pairs)]
        turn += 1
        outcome.counts["sent"] += 1
        start = time.perf_counter()
        try:
            connection.request("POST", "/inspect", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.counts["failed"] += 1
            outcome.errors.append(f"{type(error).__name__}: {error}")
            connection.close()
            continue
        if bad:
            outcome.counts["refused" if response.status == 422 else "wrong"] += 1
            continue
        outcome.seconds.append(time.perf_counter() - start)
        outcome.counts["right" if response.status == 200 and answer == expected else "wrong"] += 1
    connection.close()


def load(model: Path, pairs: list[tuple[bytes, Any]], n_clients: int, options: Any) -> dict[str, Any]:
    """Run a service under the load of some clients."""
    import psutil

    with service(model, options.threads, options.at_once) as (port, pid):
        process = psutil.Process(pid)

        def megabytes() -> float:
            return process.memory_info().rss / 1e6

        memory = [megabytes()]
        begun = time.perf_counter()
        outcomes = [Outcome() for _ in range(n_clients)]  # one each: threads share nothing that they count
        clients = [
            threading.Thread(target=client, args=(number, port, pairs, begun + options.seconds, outcome))
            for number, outcome in enumerate(outcomes)
        ]
        for thread in clients:
            thread.start()
        time.sleep(options.seconds / 10)
        while any(thread.is_alive() for thread in clients):
            memory.append(megabytes())
            time.sleep(0.5)
        for thread in clients:
            thread.join()
        elapsed = time.perf_counter() - begun
        memory.append(megabytes())
    counts = sum((outcome.counts for outcome in outcomes), Counter())
    seconds = np.array([second for outcome in outcomes for second in outcome.seconds])
    p50, p95, longest = (1000 * np.quantile(seconds, [0.5, 0.95, 1])).tolist()
    return {
        "clients": n_clients,
        **{name: counts[name] for name in ("sent", "right", "refused", "wrong", "failed")},
        "lost": counts["sent"] - sum(counts[name] for name in ("right", "refused", "wrong", "failed")),
        "images_per_second": counts["right"] / elapsed,
        "p50_ms": p50,
        "p95_ms": p95,
        "longest_ms": longest,
        "memory_mb": {"ready": memory[0], "after a tenth": memory[1], "end": memory[-1], "largest": max(memory)},
        "errors": sorted({error for outcome in outcomes for error in outcome.errors})[:5],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Return the tables of the page."""
    header = ["clients", "sent", "right", "refused as no image", "wrong", "failed", "lost", "images/s"]
    header += ["p50, ms", "p95, ms", "longest, ms", "memory, MB: ready / after a tenth / end / largest"]
    rows = []
    for run in runs:
        numbers = [run[name] for name in ("clients", "sent", "right", "refused", "wrong", "failed", "lost")]
        figures = [f"{run['images_per_second']:.1f}"]
        figures += [f"{run[name]:.0f}" for name in ("p50_ms", "p95_ms", "longest_ms")]
        rows.append([*map(str, numbers), *figures, " / ".join(f"{value:.0f}" for value in run["memory_mb"].values())])
    return markdown_table(header, rows)


def main() -> None:
    parser = argument_parser("benchmarks.serving", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32], help="numbers of clients at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each image (default: 1)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="images at a time (default: the cores)")
    parser.add_argument("--n-train", type=int, default=64)
    parser.add_argument("--n-test", type=int, default=32, help="different images that are sent")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)  # scores are compared bit by bit, and the number changes the rounding
    with tempfile.TemporaryDirectory() as folder:
        model, engine, pairs = make_model(Path(folder), options.n_train, options.n_test)
        alone = in_a_loop(model, [body for body, _ in pairs], min(options.seconds, 10.0))
        runs = [load(model, pairs, n_clients, options) for n_clients in options.clients]
    text = [
        "# A web service under load",
        METHOD.format(at_once=options.at_once, threads=options.threads, n_train=options.n_train, engine=engine),
        environment(),
        f"Loads of {options.seconds:g} s.",
        table(runs),
        f"The pipeline alone, in a loop without a service: {alone:.1f} images/s.",
    ]
    errors = [error for run in runs for error in run["errors"]]
    text += [f"Errors: {'; '.join(errors)}"] if errors else []
    values = {"environment": environment(), "engine": engine, "pipeline_images_per_second": alone, "runs": runs}
    write_results(options, "serving", "\n\n".join(text), values)


if __name__ == "__main__":
    main()

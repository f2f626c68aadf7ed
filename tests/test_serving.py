"""A model in a service: threads share one pipeline, and the web service of the guide answers as `predict` does."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, persistence

APP = Path(__file__).resolve().parent.parent / "docs" / "serving" / "app.py"
IMAGES = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
IMAGES[44:, 10:30, 10:40] = 255  # defects
N_CLIENTS = 32


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4))]).fit(IMAGES[:40])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(IMAGES[40:]):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


def test_threads_that_share_a_pipeline_get_the_answers_of_one_thread(pipe: Pipeline, paths: list[Path]) -> None:
    def answers(path: Path) -> tuple[Any, ...]:
        features = pipe[0].transform([path])
        regions = [defect.as_dict() for defect in pipe[-1].predict_regions(features)[0]]
        return pipe.predict([path]).tolist(), pipe.score_samples([path]).tolist(), regions

    expected = [answers(path) for path in paths]
    assert len({str(answer) for answer in expected}) == len(paths) and expected[-1][2]
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        assert list(pool.map(answers, [*paths] * 4)) == expected * 4


@contextmanager
def running(pipe: Pipeline, folder: Path) -> Iterator[SimpleNamespace]:
    """The app of the guide on a port of this machine, in a thread."""
    pytest.importorskip("fastapi", reason="fastapi is not installed: the group serving")
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: the group serving")
    pytest.importorskip("skops", reason="skops is not installed: the extra skops")
    if not APP.is_file():
        pytest.skip("docs/ is part of the repository, not of a package")
    model = folder / "model.skops"
    persistence.save_skops(pipe, model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MODEL", str(model))
        spec = importlib.util.spec_from_file_location("app_of_the_guide", APP)
        assert spec is not None and spec.loader is not None
        app = importlib.util.module_from_spec(spec)
        patched.setitem(sys.modules, spec.name, app)  # where the types of its functions are looked up
        spec.loader.exec_module(app)
        config = uvicorn.Config(app.app, host="127.0.0.1", port=0, log_level="warning", limit_concurrency=64)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield SimpleNamespace(port=port, app=app, server=server, thread=thread)
        finally:
            server.should_exit = True
            thread.join(30)
            app.workers.shutdown()


@pytest.fixture(scope="module")
def service(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with running(pipe, tmp_path_factory.mktemp("model")) as started:
        yield started


def ask(service: SimpleNamespace, path: str, body: bytes | Iterator[bytes] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_every_client_gets_the_answer_of_predict_and_none_is_lost(
    service: SimpleNamespace, pipe: Pipeline, paths: list[Path]
) -> None:
    expected = []
    for path in paths:
        features = pipe[0].transform([path])
        expected.append(
            {
                "label": int(pipe.predict([path])[0]),
                "score": float(pipe.score_samples([path])[0]),
                "p_value": float(pipe[-1].p_values(features)[0]),
                "defects": [defect.as_dict() for defect in pipe[-1].predict_regions(features)[0]],
            }
        )
    assert {answer["label"] for answer in expected} == {1, -1}
    expected = json.loads(json.dumps(expected))
    bodies = [path.read_bytes() for path in paths]
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        answers = list(pool.map(lambda body: ask(service, "/inspect", body), bodies * 24))
    assert [status for status, _ in answers] == [200] * 24 * len(paths)
    assert [answer for _, answer in answers] == expected * 24


def test_memory_does_not_grow_with_what_was_sent(service: SimpleNamespace) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    body, process = buffer.getvalue(), psutil.Process()

    def send(times: int) -> float:
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            statuses = list(pool.map(lambda _: ask(service, "/inspect", body)[0], range(times)))
        assert statuses == [200] * times
        return process.memory_info().rss / 1e6

    before = send(2 * N_CLIENTS)
    n_images = 6 * N_CLIENTS
    assert send(n_images) - before < 0.2 * n_images * len(body) / 1e6  # 41 of 207 MB


def test_what_was_sent_before_the_end_is_answered(pipe: Pipeline, paths: list[Path], tmp_path: Path) -> None:
    with running(pipe, tmp_path) as service, ThreadPoolExecutor(N_CLIENTS) as clients:
        entered, go_on, answer = threading.Semaphore(0), threading.Event(), service.app.answer

        def slow(body: bytes) -> Any:
            entered.release()
            assert go_on.wait(30)
            return answer(body)

        service.app.answer = slow
        sent = [clients.submit(ask, service, "/inspect", path.read_bytes()) for path in paths]
        assert entered.acquire(timeout=30) and entered.acquire(timeout=30)  # two at once; the others wait for a thread
        while len(service.server.server_state.tasks) < len(paths):
            time.sleep(0.01)
        service.server.should_exit = True  # what SIGTERM does
        time.sleep(0.5)
        assert service.thread.is_alive()
        go_on.set()
        assert [future.result(30)[0] for future in sent] == [200] * len(paths)
        service.thread.join(30)
        assert not service.thread.is_alive()


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, "the upload"),
        (b"no image", 422, "the upload"),
        (png(64, 64)[:45], 422, "the upload"),
        (png(5000, 5000), 422, "25000000 pixels, more than the limit of 20000000"),
        (bytes(20_000_001), 413, "at most 20000000 bytes"),
        (iter([b"no length"]), 413, "must state its length"),
    ],
    ids=["empty", "text", "cut", "many pixels", "many bytes", "no length"],
)
def test_a_bad_image_is_the_fault_of_the_client_and_the_service_goes_on(
    service: SimpleNamespace, paths: list[Path], body: bytes | Iterator[bytes], status: int, message: str
) -> None:
    found, answer = ask(service, "/inspect", body)
    assert found == status and message in answer["detail"] and "X[0]" not in answer["detail"]
    assert ask(service, "/inspect", paths[0].read_bytes())[0] == 200


def test_the_service_says_that_it_is_well(service: SimpleNamespace) -> None:
    status, answer = ask(service, "/health")
    assert status == 200
    assert answer == {"model": "model.skops", "images learnt": 40}

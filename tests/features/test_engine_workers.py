"""Engines in the workers of joblib, Dask and torch.distributed, and after a fork: the same features, on few threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.features.engines import _choice, _store

for _package in (*_choice.ENGINES, "onnxscript"):
    pytest.importorskip(_package)

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
PATIENCE = 300  # seconds until a test that hangs fails
N_THREADS = 2  # of the process that starts workers


def seen(extractor: PatchFeatureExtractor, images: np.ndarray = IMAGES) -> tuple[np.ndarray, str, set[int], int]:
    """Return features, what computed them here, on which numbers of threads, and how many torch has."""
    features = np.asarray(extractor.transform(images))
    label = extractor.engine_
    numbers = {key[2] for key in settings_of(extractor).backbone.engines if key[0] == os.getpid()}
    return features, label, numbers, torch.get_num_threads()


def check(found: tuple[np.ndarray, str, set[int], int], expected: np.ndarray, engine: str, n_threads: int) -> None:
    features, label, numbers, torch_threads = found
    assert label.startswith(engine)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert torch_threads == n_threads
    assert n_threads in numbers


@pytest.fixture(scope="module", autouse=True)
def _one_folder_of_engines_and_two_threads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_store.VARIABLE, str(tmp_path_factory.mktemp("engines")))
        for kept in (_choice._recent, _choice._compiled):  # what other tests have compiled is not in this folder
            kept.clear()
        torch.set_num_threads(N_THREADS)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module", params=_choice.ENGINES)
def used(request: pytest.FixtureRequest) -> tuple[str, PatchFeatureExtractor, np.ndarray]:
    """An engine, an extractor that this process has used with it, and torch's features."""
    extractor = PatchFeatureExtractor(
        "resnet18", weights=None, layers=["layer1", "layer2"], image_size=64, random_state=0, engine=request.param
    ).fit(IMAGES)
    features = np.asarray(extractor.transform(IMAGES))
    expected = np.asarray(extractor.set_params(engine="torch").transform(IMAGES))
    check((features, request.param, {N_THREADS}, N_THREADS), expected, request.param, N_THREADS)
    return request.param, extractor.set_params(engine=request.param), expected


# Each kind of process takes seconds to start: it is tried with one of the engines, and threads with both.
@pytest.mark.parametrize(
    ("used", "backend"),
    [("openvino", "loky"), ("openvino", "threading"), ("onnxruntime", "threading")],
    indirect=["used"],
)
def test_workers_of_joblib(used: tuple[str, PatchFeatureExtractor, np.ndarray], backend: str) -> None:
    engine, extractor, expected = used
    folder = _store.cache_folder()
    assert folder is not None
    n_compiled = len(list(folder.iterdir()))
    inner = {"inner_max_num_threads": 1} if backend == "loky" else {}
    get_reusable_executor().shutdown(kill_workers=True)  # new workers, not those of earlier tests
    with joblib.parallel_config(backend, n_jobs=2, **inner):
        results = joblib.Parallel(timeout=PATIENCE)(joblib.delayed(seen)(extractor) for _ in range(4))
    for result in results:
        check(result, expected, engine, 1 if backend == "loky" else N_THREADS)
    assert torch.get_num_threads() == N_THREADS
    assert len(list(folder.iterdir())) == n_compiled


@pytest.mark.parametrize(
    ("used", "processes"), [("openvino", False), ("onnxruntime", True)], indirect=["used"], ids=["threads", "processes"]
)
def test_workers_of_dask(used: tuple[str, PatchFeatureExtractor, np.ndarray], processes: bool) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    engine, extractor, expected = used
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": processes, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        tasks = [client.submit(seen, extractor, pure=False) for _ in range(3)]
        distributed.wait(tasks, timeout=PATIENCE)
        results = client.gather(tasks)
    for result in results:
        check(result, expected, engine, result[3])
        assert result[3] <= N_THREADS


RANK = """
import pathlib, sys, numpy as np, torch, torch.distributed as distributed
sys.path.insert(0, sys.argv[4])
from test_engine_workers import IMAGES, seen
from ipca_sklearn import PatchFeatureExtractor
rank, folder, engine = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=2)
extractor = PatchFeatureExtractor(
    "resnet18", weights=None, layers=["layer1", "layer2"], image_size=64, random_state=0, engine=engine
)
features, label, numbers, n_threads = seen(extractor.fit(IMAGES), IMAGES[2 * rank : 2 * rank + 2])
assert label.startswith(engine) and n_threads == 1 and numbers == {1}, (label, n_threads, numbers)
shares = [torch.empty(features.shape) for _ in range(2)]
distributed.all_gather(shares, torch.from_numpy(features))
np.save(folder / f"{rank}.npy", torch.cat(shares).numpy())
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("used", ["openvino"], indirect=True)
def test_ranks_of_torch_distributed(used: tuple[str, PatchFeatureExtractor, np.ndarray], tmp_path: Path) -> None:
    engine, _, expected = used
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path), engine, here]) for rank in range(2)]
    assert [rank.wait(PATIENCE) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npy")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


FORKING = """
import os, signal, sys, numpy as np, torch
torch.set_num_threads(2)
from ipca_sklearn import PatchFeatureExtractor
images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
extractor = PatchFeatureExtractor("resnet18", weights=None, layers=["layer1"], image_size=64,
    random_state=0, engine=sys.argv[1]).fit(images)
expected = np.asarray(extractor.transform(images))
assert extractor.engine_.startswith(sys.argv[1])
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = np.allclose(np.asarray(extractor.transform(images)), expected, rtol=1e-4, atol=1e-4)
    os._exit(0 if same and extractor.engine_.startswith(sys.argv[1]) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.parametrize("engine", ["torch", *_choice.ENGINES])
def test_a_forked_process_computes_features_however_many_threads_its_parent_has(engine: str) -> None:
    result = subprocess.run([sys.executable, "-c", FORKING, engine], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr

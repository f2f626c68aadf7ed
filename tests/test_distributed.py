"""Partitions learnt apart and merged: any workers, any backend, workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import BatchedIncrementalPCA, FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn._utils._partitions import merge_tree
from ipca_sklearn.decomposition._fitted_scatter import Travelling
from ipca_sklearn.distributed import _merged, fit
from ipca_sklearn.exceptions import FewImagesWarning


def arrays(n: int = 160, rank: int = 4) -> np.ndarray:
    """Return samples (n, 5, 8) of this rank at each of 5 patches, and a mean."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 5, rank)) @ rng.normal(size=(rank, 8)) + rng.normal(size=8)


def make_detector(**parameters: Any) -> PatchGaussianDetector:
    return PatchGaussianDetector(4, step_size=8, **parameters)


def make_pipeline() -> Pipeline:
    extractor = PatchFeatureExtractor(
        "resnet18", layers=["layer1"], weights=None, random_state=0, image_size=32, crop_size=32, grid_size=4,
        batch_size=4,
    )  # fmt: skip
    return Pipeline([("features", extractor), ("detector", make_detector())])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(folder / f"{number:02d}.png") for number in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


def assert_same_bits(first: Any, second: Any) -> None:
    for name in ("mean_", "components_", "explained_variance_", "var_"):
        np.testing.assert_array_equal(getattr(first.pca_, name), getattr(second.pca_, name))
    assert first.offset_ == second.offset_
    assert first.n_samples_seen_ == second.n_samples_seen_


def by_hand(model: Any, partitions: list[Any]) -> Any:
    from sklearn.base import clone

    learners = [clone(model).fit(partition) for partition in partitions]
    return merge_tree(learners, lambda first, second: first.merge(second))


@given(st.integers(1, 70))
def test_the_tree_keeps_the_order_and_is_balanced(n: int) -> None:
    tree = merge_tree(range(n), lambda first, second: (first, second))

    def leaves(node: Any) -> list[int]:
        return [node] if isinstance(node, int) else [leaf for child in node for leaf in leaves(child)]

    def depth(node: Any) -> int:
        return 0 if isinstance(node, int) else 1 + max(depth(child) for child in node)

    assert leaves(tree) == list(range(n))
    assert depth(tree) == (n - 1).bit_length()


@pytest.mark.parametrize("n_partitions", [1, 2, 3, 5])
@pytest.mark.parametrize("model", [make_detector(), BatchedIncrementalPCA(4, step_size=8)])
def test_partitions_teach_what_all_images_teach(model: Any, n_partitions: int) -> None:
    X = arrays()
    fitted = fit(model, np.array_split(X, n_partitions))
    assert fitted is model
    pca = getattr(model, "pca_", model)
    exact = BatchedIncrementalPCA(4, step_size=None).fit(X)  # rank 4: nothing is truncated anywhere
    np.testing.assert_allclose(pca.mean_, exact.mean_, atol=1e-10)
    np.testing.assert_allclose(pca.explained_variance_, exact.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(X)), X, atol=1e-8)
    assert pca.n_samples_seen_ == 160


def assert_one_fit(detector: Any, expected: Any) -> None:
    """Compare scatter matrices (float64) and scores with those of one fit, far below the rounding of a stored model."""
    state, other = (each.pca_.fitted_.state for each in (detector, expected))
    assert torch.equal(detector.pca_.fitted_.basis().variance > 0, expected.pca_.fitted_.basis().variance > 0)
    scale = other.matrix.diagonal(dim1=1, dim2=2).sqrt()
    correlations = [(each.matrix / scale[:, None] / scale[:, :, None]).tril() for each in (state, other)]
    torch.testing.assert_close(*correlations, rtol=0, atol=1e-11 if state.matrix.dtype == torch.float64 else 1e-6)
    torch.testing.assert_close(state.mean, other.mean, rtol=1e-6, atol=1e-6)
    assert (state.count, state.weight) == (other.count, other.weight)


def shared(dtype: str = "float64") -> PatchGaussianDetector:
    return PatchGaussianDetector(4, n_gaussians=2, step_size=8, dtype=dtype)


@pytest.mark.parametrize("where", [{"n_jobs": 2}, {"devices": ["cpu", "cpu"]}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_partitions_of_patches_that_share_a_gaussian_give_one_fit(where: dict[str, Any], dtype: str) -> None:
    X = arrays(rank=8)
    detector = fit(shared(dtype), np.array_split(X, 5), threads_per_worker=1, **where)
    assert detector.n_gaussians_ == 2
    assert_one_fit(detector, shared(dtype).fit(X))
    np.testing.assert_allclose(detector.score_samples(X), shared(dtype).fit(X).score_samples(X), rtol=1e-4)
    assert_same_bits(detector, by_hand(shared(dtype), np.array_split(X, 5)))


@pytest.mark.parametrize("backend", ["loky", "threading"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_result_is_that_of_merging_by_hand_whoever_does_the_work(backend: str, n_jobs: int) -> None:
    partitions = np.array_split(arrays(rank=8), 5)
    with joblib.parallel_config(backend=backend):
        detector = fit(make_detector(), partitions, n_jobs=n_jobs, threads_per_worker=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same_bits(detector, by_hand(make_detector(), partitions))
    finally:
        torch.set_num_threads(threads)


def test_a_pipeline_is_fitted_from_paths(paths: list[str]) -> None:
    partitions = [paths[:24], paths[24:]]
    pipe = fit(make_pipeline(), partitions, n_jobs=2)
    expected = by_hand(make_pipeline()[-1], [make_pipeline()[0].fit_transform(part) for part in partitions])
    np.testing.assert_allclose(pipe[-1].pca_.mean_, expected.pca_.mean_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pipe[-1].pca_.var_, expected.pca_.var_, rtol=1e-3)
    assert pipe.score_samples(paths).shape == (40,)
    assert pipe.predict(paths).min() >= -1


def test_workers_read_what_a_callable_returns(paths: list[str]) -> None:
    X = arrays()
    detector = fit(make_detector(), [partial(arrays), partial(np.flip, X, 0)])
    assert detector.n_samples_seen_ == 320
    pipe = fit(make_pipeline(), [partial(iter, paths[:20])])
    assert pipe[-1].n_samples_seen_ == 20


def test_a_failing_partition_is_named_and_the_model_stays_as_it_was(paths: list[str]) -> None:
    pipe = make_pipeline().fit(paths[:20])
    before = pipe.score_samples(paths)
    for n_jobs in (1, 2):
        with pytest.raises(FileNotFoundError, match="missing") as caught:
            fit(pipe, [paths, ["missing.png"]], n_jobs=n_jobs)
        assert caught.value.__notes__ == ["(while partition 1 was learnt)"]
    np.testing.assert_array_equal(pipe.score_samples(paths), before)


def test_the_parameters_of_the_caller_stay() -> None:
    detector = make_detector(false_positive_rate=0.1, device=None)
    fit(detector, [arrays(), arrays()], devices=["cpu", "cpu"])
    assert detector.get_params() == make_detector(false_positive_rate=0.1).get_params()


def test_one_worker_for_each_device_gives_the_same_model(paths: list[str], device: torch.device) -> None:
    partitions = [paths[:16], paths[16:32], paths[32:]]
    pipe = fit(make_pipeline(), partitions, devices=[device, device], threads_per_worker=1)
    other = fit(make_pipeline(), partitions, devices=[str(device)], threads_per_worker=1)
    np.testing.assert_allclose(pipe[-1].pca_.mean_, other[-1].pca_.mean_, rtol=1e-4, atol=1e-6)
    assert pipe[0].device is None
    assert pipe.score_samples(paths).shape == (40,)
    assert fit(make_pipeline(), partitions, devices="auto")[-1].n_samples_seen_ == 40


@pytest.mark.parametrize("where", [{"n_jobs": 1}, {"n_jobs": 2}, {"devices": ["cpu", "cpu"]}])
def test_workers_share_the_feature_cache_and_the_caller_keeps_it(
    paths: list[str], tmp_path: Path, where: dict[str, Any]
) -> None:
    cache = FeatureCache(tmp_path)
    pipe = make_pipeline().set_params(features__cache=cache)
    fit(pipe, [paths[:20], paths[20:]], **where)
    assert pipe[0].cache is cache
    assert cache.n_images == 40
    assert pipe.score_samples(paths).shape == (40,)


@pytest.mark.parametrize("sizes", [(60, 60), (30, 30), (50,) * 8, (20, 200, 40)])
def test_thresholds_of_merged_partitions_hold(sizes: tuple[int, ...], global_random_seed: int) -> None:
    rng = np.random.default_rng(global_random_seed)
    scale = np.linspace(4, 0.3, 24)
    normal = rng.normal(size=(sum(sizes) + 400, 30, 24)) * scale
    parts = np.split(normal[:-400], np.cumsum(sizes)[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        detector = fit(make_detector(false_positive_rate=0.05), parts, n_jobs=1)
    assert 0.005 < np.mean(detector.predict(normal[-400:]) == -1) < 0.15
    anomalous = normal[-400:].copy()
    anomalous[:, 7] += 3 * scale
    assert np.mean(detector.predict(anomalous) == -1) > 0.9


def test_merging_leaves_what_the_workers_return_as_it_was() -> None:
    first, second = (make_detector().fit(half) for half in np.array_split(arrays(), 2))
    means = first.pca_.mean_.copy(), second.pca_.mean_.copy()
    assert _merged(Travelling(first), Travelling(second)).model.n_samples_seen_ == 160
    assert (first.n_samples_seen_, second.n_samples_seen_) == (80, 80)
    np.testing.assert_array_equal((first.pca_.mean_, second.pca_.mean_), means)


def test_networks_may_be_made_by_several_threads_at_once(paths: list[str]) -> None:
    alone = np.asarray(make_pipeline()[0].fit(paths).transform(paths[:2]))
    together = joblib.Parallel(n_jobs=4, backend="threading")(
        joblib.delayed(lambda: np.asarray(make_pipeline()[0].fit(paths).transform(paths[:2])))() for _ in range(8)
    )
    for features in together:
        np.testing.assert_allclose(features, alone, rtol=1e-4, atol=1e-5)


def test_wrong_calls_say_what_to_do(paths: list[str]) -> None:
    with pytest.raises(ValueError, match="no partitions"):
        fit(make_detector(), [])
    with pytest.raises(ValueError, match="exclude each other"):
        fit(make_detector(), [arrays()], n_jobs=2, devices=["cpu"])
    with pytest.raises(ValueError, match="'auto' or a sequence"):
        fit(make_detector(), [arrays()], devices="cpu")
    with pytest.raises(ValueError, match="devices is empty"):
        fit(make_detector(), [arrays()], devices=[])
    with pytest.raises(ValueError, match="set features__random_state"):
        fit(make_pipeline().set_params(features__random_state=None), [paths])


def test_a_backend_that_cannot_give_results_one_by_one_is_refused_and_others_are_named() -> None:
    detector = make_detector()
    with (
        joblib.parallel_config(backend="multiprocessing", n_jobs=2),
        pytest.raises(ValueError, match=r"MultiprocessingBackend cannot .* 'threading' or 'dask'"),
    ):
        fit(detector, np.split(arrays(), 2))
    assert not hasattr(detector, "pca_")


class DyingReader:
    """Reads samples; the first `n_deaths` processes that try are killed."""

    def __init__(self, folder: Path, n_deaths: int) -> None:
        self.folder = str(folder)
        self.n_deaths = n_deaths

    def __call__(self) -> np.ndarray:
        for number in range(self.n_deaths):
            try:
                os.close(os.open(os.path.join(self.folder, f"died{number}"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return arrays(rank=8)


def test_a_killed_worker_costs_time_only(tmp_path: Path) -> None:
    partitions = [arrays(rank=8), DyingReader(tmp_path, 2), arrays(rank=8), arrays(rank=8)]
    with joblib.parallel_config(backend="loky"), pytest.warns(UserWarning, match="worker processes died"):
        detector = fit(make_detector(), partitions, n_jobs=2, threads_per_worker=1)
    assert_same_bits(detector, fit(make_detector(), [arrays(rank=8)] * 4, n_jobs=2, threads_per_worker=1))


def test_workers_that_always_die_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipca_sklearn.distributed._MAX_RETRIES", 1)  # each starts processes
    detector = make_detector()
    with joblib.parallel_config(backend="loky"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="terminated"):
            fit(detector, [DyingReader(tmp_path, 1000)] * 2, n_jobs=2)
    assert not hasattr(detector, "pca_")


# ----------------------------------------------------------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("n_partitions", [1, 5])
def test_a_dask_bag_is_fitted_and_merged_on_the_cluster(client: Any, paths: list[str], n_partitions: int) -> None:
    import dask.bag

    bag = dask.bag.from_sequence(paths, npartitions=n_partitions).map(str)
    pipe = fit(make_pipeline(), bag)
    lists = [list(part) for part in np.array_split(paths, n_partitions)]
    expected = fit(make_pipeline(), lists, threads_per_worker=1, n_jobs=1)
    np.testing.assert_allclose(pipe[-1].pca_.mean_, expected[-1].pca_.mean_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pipe.score_samples(paths), expected.score_samples(paths), rtol=1e-2)


@pytest.mark.parametrize("make", [lambda: make_detector(), lambda: shared("float32")], ids=["one each", "shared"])
def test_delayed_partitions_give_the_same_bits(client: Any, make: Any) -> None:
    import dask

    partitions = np.array_split(arrays(rank=8), 5)
    detector = fit(make(), [dask.delayed(partition) for partition in partitions])
    assert_same_bits(detector, fit(make(), partitions, n_jobs=2, threads_per_worker=1))
    if detector.n_gaussians == 2:  # scatter matrices travel without the rounding of files
        assert_one_fit(detector, shared("float32").fit(arrays(rank=8)))


def test_the_dask_backend_of_joblib(client: Any) -> None:
    partitions = np.array_split(arrays(rank=8), 3)
    with joblib.parallel_config(backend="dask"):
        detector = fit(make_detector(), partitions)
    assert_same_bits(detector, fit(make_detector(), partitions, threads_per_worker=1))


def test_a_killed_dask_worker_costs_time_only(client: Any, tmp_path: Path) -> None:
    import dask

    readers = [dask.delayed(DyingReader(tmp_path, 1 if number == 1 else 0))() for number in range(4)]
    detector = fit(make_detector(), readers)
    assert (tmp_path / "died0").exists()
    assert_same_bits(detector, fit(make_detector(), [arrays(rank=8)] * 4, threads_per_worker=1))


# --------------------------------------------------------------------------------------------------- torch.distributed

RANK = """
    import sys, torch, numpy as np, joblib
    from torch import distributed
    sys.path.insert(0, {tests!r})
    from test_distributed import arrays, make_detector, shared
    from ipca_sklearn.distributed import fit_rank
    rank, n_ranks = int(sys.argv[1]), {n_ranks}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method="file://{folder}/meet", rank=rank, world_size=n_ranks)
    share = np.array_split(arrays(rank=8), n_ranks)[rank]
    if {broken} and rank == 1:
        share = share * np.nan
    try:
        joblib.dump(fit_rank({make}(), share), "{folder}/{{}}.joblib".format(rank))
    except Exception as error:
        print(type(error).__name__, error)
    distributed.barrier()  # torch 2.6 hangs in the next line where the other rank has gone
    distributed.destroy_process_group()
"""


def run_ranks(tmp_path: Path, n_ranks: int, *, make: str = "make_detector", broken: bool = False) -> list[str]:
    code = textwrap.dedent(RANK).format(
        tests=str(Path(__file__).parent), n_ranks=n_ranks, folder=tmp_path, broken=broken, make=make
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(n_ranks)
    ]
    return [process.communicate(timeout=120)[0] for process in processes]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_all_ranks_of_torch_distributed_end_with_the_same_model(tmp_path: Path) -> None:
    n_ranks = 3
    assert run_ranks(tmp_path, n_ranks) == [""] * n_ranks
    detectors = [joblib.load(tmp_path / f"{rank}.joblib") for rank in range(n_ranks)]
    expected = fit(make_detector(), np.array_split(arrays(rank=8), n_ranks), threads_per_worker=1)
    for detector in detectors:
        assert_same_bits(detector, expected)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_ranks_whose_patches_share_a_gaussian_end_with_one_fit(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, make="shared") == [""] * 2
    X = arrays(rank=8)
    detectors = [joblib.load(tmp_path / f"{rank}.joblib") for rank in range(2)]
    assert_same_bits(*detectors)
    for detector in detectors:  # in float64 files are exact
        assert_one_fit(detector, shared().fit(X))
    assert_same_bits(detectors[0], fit(shared(), np.array_split(X, 2), threads_per_worker=1, n_jobs=1))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_a_rank_that_fails_is_told_to_the_others(tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, 2, broken=True)
    assert first.startswith("RuntimeError the fit of rank 1 failed, so nothing was learnt: ValueError")
    assert second.startswith("ValueError X passed to")

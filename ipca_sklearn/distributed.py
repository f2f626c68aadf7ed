"""Fits that are spread over processes, machines or GPUs: partitions of images are learnt apart, and states merged."""

from __future__ import annotations

import copy
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ipca_sklearn.persistence._checkpoints import adopt, check_repeatable

__all__ = ["fit", "fit_rank"]

# How often the pool of processes may die without one more partition done.
_MAX_RETRIES = 3


def fit(
    estimator: Any,
    partitions: Any,
    *,
    n_jobs: int | None = None,
    devices: Any = None,
    threads_per_worker: int | None = None,
) -> Any:
    """Fit an estimator on partitions of the images, each by a worker of its own, and merge what they have learnt.

    Workers read the images. What travels back is what the last step has learnt of a partition, P (k + 2) m numbers,
    and it is merged in a binary tree over the order of the partitions: which worker took which, and how many there
    were, does not matter.

    Parameters
    ----------
    estimator : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        A pipeline ends in one of these, and its other steps learn nothing from the images (as PatchFeatureExtractor).
        What it has learnt before is forgotten.
    partitions : sequence, or a Dask bag
        Each one what `fit` takes: a list of paths, an array, ... A callable without arguments is called by the worker
        and returns that. Partitions that are Dask's (a bag, a sequence of `dask.delayed`) are fitted and merged on
        Dask's cluster, and only the result comes here.
    n_jobs : int or None, default=None
        Workers, as of :class:`joblib.Parallel`, whose backends all work: `joblib.parallel_config(backend="dask")`
        sends partitions to a cluster. None is one, unless the configuration says otherwise.
    devices : "auto", sequence of str or torch.device, or None, default=None
        One worker thread for each of these devices, in this process; `"auto"` is all GPUs. Excludes `n_jobs`.
    threads_per_worker : int or None, default=None
        Threads of torch in each worker. None shares the cores among the workers of this machine, and is one for
        Dask's. Two busy torch processes with as many threads each as there are cores are many times slower.

    Returns
    -------
    estimator
        Fitted, with the parameters it had.

    Raises
    ------
    ValueError
        No partitions, a step that cannot be repeated in another process (random without an integer `random_state`),
        or what `fit` raises for a partition; a note at the end of the traceback says for which. The estimator is then
        as it was.
    BrokenProcessPool
        Worker processes died several times in a row.

    Warns
    -----
    UserWarning
        Worker processes died, and their partitions are learnt again.

    Notes
    -----
    Equal to one fit on all the images where nothing is truncated (rank <= k); else the truncation is that of other
    steps. It depends on how the images are partitioned: partitions of at least some hundred images, all of about
    the same size, in random order. Numbers of threads change the rounding: for the same bits on any number of workers
    set `threads_per_worker`.

    With p partitions of n images on w workers: n p / w times the cost of an image, and p - 1 merges, each an
    eigenproblem of size 2 k + 1 per patch, by the caller (on Dask's cluster log2 p deep). The caller holds at most
    log2(p) + 1 states, besides those that wait for an earlier partition.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979 (the tree);
    Ross, Lim, Lin, Yang, "Incremental learning for robust visual tracking", IJCV 77, 2008 (merging subspaces).

    Examples
    --------
    >>> import numpy as np
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.distributed import fit
    >>> X = np.random.default_rng(0).normal(size=(200, 5, 8))
    >>> detector = fit(PatchGaussianDetector(8), np.split(X, 4), n_jobs=2)
    >>> detector.n_samples_seen_, bool(np.allclose(detector.pca_.mean_, X.mean(0)))
    (200, True)
    """
    check_repeatable(estimator)
    if hasattr(partitions, "to_delayed"):
        partitions = partitions.to_delayed()
    partitions = list(partitions)
    if not partitions:
        raise ValueError("no partitions: pass at least one list of images")
    if devices is not None and n_jobs is not None:
        raise ValueError("n_jobs and devices exclude each other: there is one worker for each device")
    if any(hasattr(partition, "__dask_graph__") for partition in partitions):
        fitted = _fit_on_dask(clone(estimator), partitions, threads_per_worker or 1)
    elif devices is not None:
        fitted = _fit_on_devices(clone(estimator), partitions, _resolve_devices(devices), threads_per_worker)
    else:
        fitted = _reduced(_outlasting_workers(clone(estimator), partitions, n_jobs, threads_per_worker))
    return _take_over(estimator, *fitted)


def fit_rank(estimator: Any, X: Any, *, group: Any = None) -> Any:
    """Fit an estimator on this rank's share of the images, in each process of :mod:`torch.distributed`.

    All ranks call it at once, each with its own images; all of them end with the same model, bit for bit. Works with
    any backend that sends objects (gloo, nccl); with nccl call :func:`torch.cuda.set_device` first.

    Parameters
    ----------
    estimator : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        As for :func:`fit`, the same on all ranks, but for `device`.
    X : sequence of images, or array-like
        This rank's share.
    group : torch.distributed.ProcessGroup or None, default=None
        The ranks; None is all.

    Returns
    -------
    estimator
        Fitted on what all ranks have seen.

    Raises
    ------
    RuntimeError
        The fit of another rank failed, the message says which and why; what fails here is raised as it is.

    Notes
    -----
    States go up a binary tree (log2 of the number of ranks messages of P (k + 2) m numbers deep) and the result is
    broadcast. The tree is that of :func:`fit` with the ranks' shares as partitions.
    """
    from torch import distributed

    check_repeatable(estimator)
    rank, n_ranks = distributed.get_rank(group), distributed.get_world_size(group)
    prefix: Any = None
    learner: Any = None
    failure: Exception | None = None
    try:
        prefix, learner = _fit_partition(clone(estimator), X, rank, None, None)
    except Exception as error:  # the others must not wait for this rank
        failure = error
    failures: list[Any] = [None] * n_ranks
    distributed.all_gather_object(failures, None if failure is None else repr(failure), group=group)
    if failure is not None:
        raise failure
    for other, reason in enumerate(failures):
        if reason is not None:
            raise RuntimeError(f"the fit of rank {other} failed, so nothing was learnt: {reason}")
    ranks = list(range(n_ranks)) if group is None else distributed.get_process_group_ranks(group)
    distance = 1
    while distance < n_ranks:
        if rank % (2 * distance) == distance:
            distributed.send_object_list([learner], dst=ranks[rank - distance], group=group)
        elif rank % (2 * distance) == 0 and rank + distance < n_ranks:
            received: list[Any] = [None]
            distributed.recv_object_list(received, src=ranks[rank + distance], group=group)
            learner = _merged(learner, received[0])
        distance *= 2
    result = [learner]
    distributed.broadcast_object_list(result, src=ranks[0], group=group)
    return _take_over(estimator, prefix, result[0])


def _fit_partition(
    model: Any, partition: Any, index: int, n_threads: int | None, devices: queue.Queue[Any] | None
) -> tuple[Any, Any]:
    """Return what a model learns from a partition: its fitted first steps (None without), and its last step."""
    device = None if devices is None else devices.get()
    n_threads_before = torch.get_num_threads()
    try:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        model = clone(model)
        if device is not None:
            model.set_params(**{name: device for name in _device_parameters(model)})
        X = partition() if callable(partition) else partition
        model.fit(list(X) if isinstance(X, Iterator) else X)
    except Exception as error:
        error.add_note(f"(while partition {index} was learnt)")
        raise
    finally:
        torch.set_num_threads(n_threads_before)
        if devices is not None:
            devices.put(device)
    if isinstance(model, Pipeline):
        return model[:-1], model[-1]
    return None, model


def _only_learner(*arguments: Any) -> tuple[None, Any]:
    """Return as `_fit_partition`, without the first steps: their network need not travel with every partition."""
    return None, _fit_partition(*arguments)[1]


def _device_parameters(model: Any) -> list[str]:
    return [name for name in model.get_params() if name.rpartition("__")[2] == "device"]


def _merged(first: Any, second: Any) -> Any:
    """Return what two learners know together, and leave both as they are."""
    result = copy.copy(first)
    if hasattr(result, "pca_"):
        result.pca_ = copy.copy(result.pca_)
    return result.merge(second)


def _merge_tree(learners: Iterable[Any], merge: Callable[[Any, Any], Any]) -> Any:
    """Merge in a binary tree over the order of the learners, holding one of each height at most."""
    waiting: list[tuple[int, Any]] = []
    for learner in learners:
        height = 0
        while waiting and waiting[-1][0] == height:
            learner = merge(waiting.pop()[1], learner)
            height += 1
        waiting.append((height, learner))
    result = waiting.pop()[1]
    while waiting:
        result = merge(waiting.pop()[1], result)
    return result


def _reduced(fits: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return the first steps of the first of these fits, and the last steps of all merged."""
    prefixes: list[Any] = []

    def learners() -> Iterator[Any]:
        for prefix, learner in fits:
            if not prefixes:
                prefixes.append(prefix)
            yield learner

    learner = _merge_tree(learners(), _merged)
    return prefixes[0], learner


def _outlasting_workers(
    model: Any, partitions: Sequence[Any], n_jobs: int | None, n_threads: int | None
) -> Iterator[tuple[Any, Any]]:
    """Yield the fits of all partitions in order, and start again at the first one missing if workers die."""
    done = retries = 0
    while done < len(partitions):
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator")
        threads = n_threads or _share_of_threads(parallel, len(partitions))
        tasks = (
            joblib.delayed(_only_learner if index else _fit_partition)(model, partitions[index], index, threads, None)
            for index in range(done, len(partitions))
        )
        try:
            for fitted in parallel(tasks):
                yield fitted
                done, retries = done + 1, 0
            return
        except BrokenProcessPool as error:
            retries += 1
            if retries > _MAX_RETRIES:
                raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            warnings.warn(
                f"worker processes died ({reason}); partition {done} and those after it are learnt again",
                UserWarning,
                stacklevel=5,
            )


def _share_of_threads(parallel: joblib.Parallel, n_partitions: int) -> int | None:
    """Return how many threads a worker may have so that all together have those of this process; None: as it is."""
    if "dask" in type(parallel._backend).__name__.lower():
        return 1
    n_workers = min(parallel._effective_n_jobs(), n_partitions)
    return None if n_workers == 1 else max(1, torch.get_num_threads() // n_workers)


def _resolve_devices(devices: Any) -> list[torch.device]:
    if isinstance(devices, str):
        if devices != "auto":
            raise ValueError(f"devices={devices!r} is 'auto' or a sequence of devices, such as ['cuda:0', 'cuda:1']")
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    devices = [torch.device(device) for device in devices]
    if not devices:
        raise ValueError("devices is empty: name at least one, or pass None")
    return devices


def _fit_on_devices(
    model: Any, partitions: Sequence[Any], devices: list[torch.device], n_threads: int | None
) -> tuple[Any, Any]:
    original = {name: model.get_params()[name] for name in _device_parameters(model)}
    free: queue.Queue[Any] = queue.Queue()
    for device in devices:
        free.put(device)
    threads = n_threads or max(1, torch.get_num_threads() // len(devices))
    parallel = joblib.Parallel(n_jobs=len(devices), backend="threading", return_as="generator")
    with _restored_threads():
        prefix, learner = _reduced(
            parallel(
                joblib.delayed(_fit_partition)(model, partition, index, threads, free)
                for index, partition in enumerate(partitions)
            )
        )
    if prefix is not None:
        prefix.set_params(**{name: value for name, value in original.items() if name in prefix.get_params()})
    return prefix, learner


@contextmanager
def _restored_threads() -> Iterator[None]:
    """Set the number of threads again: what a thread sets is what all later threads of the program start with."""
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _fit_on_dask(model: Any, partitions: Sequence[Any], n_threads: int) -> tuple[Any, Any]:
    import dask

    fit_partition, only_learner = dask.delayed(_fit_partition), dask.delayed(_only_learner)
    first = fit_partition(model, partitions[0], 0, n_threads, None)
    others = (
        only_learner(model, partition, index, n_threads, None)[1]
        for index, partition in enumerate(partitions[1:], start=1)
    )
    learner = _merge_tree([first[1], *others], dask.delayed(_merged))
    return dask.compute(first[0], learner)


def _take_over(estimator: Any, prefix: Any, learner: Any) -> Any:
    """Let the caller's estimator know what was learnt."""
    if isinstance(estimator, Pipeline):
        own = estimator.steps[-1][1]
        adopt(own, learner)
        estimator.steps = [*prefix.steps, (estimator.steps[-1][0], own)]
    else:
        adopt(estimator, learner)
    return estimator

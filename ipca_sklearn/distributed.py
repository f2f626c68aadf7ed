"""Fits on several processes, machines or GPUs: each worker learns a partition of the images, and states are merged."""

from __future__ import annotations

import copy
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import joblib
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._estimators import adopt, check_repeatable
from ipca_sklearn._utils._partitions import (
    Choices,
    check_layout,
    check_layouts,
    choose,
    chosen,
    chosen_parameters,
    first_choices,
    fit_first_steps,
    merge_tree,
    named,
    read_partition,
    warn_of_skipped,
)
from ipca_sklearn._utils._sklearn_compat import get_active_backend
from ipca_sklearn._utils._threads import own_torch_threads
from ipca_sklearn._utils._typing import ArrayLike, DeviceLike, Images
from ipca_sklearn.decomposition._fitted_scatter import Travelling
from ipca_sklearn.exceptions import ImageReadError

__all__ = ["fit", "fit_rank"]

# How often the pool of processes may die without finishing one more partition.
_MAX_RETRIES = 3


def fit(
    estimator: Any,
    partitions: Iterable[Any],
    *,
    n_jobs: int | None = None,
    devices: str | Iterable[DeviceLike] | None = None,
    threads_per_worker: int | None = None,
) -> Any:
    """Fit an estimator on partitions of the images: workers learn one partition each, and the results are merged.

    Workers read the images. A worker returns what the last step has learnt from a partition, P (k + 4) m numbers, or
    C m^2 of C Gaussians whose scatter matrices are kept. These are merged in a binary tree in the order of the
    partitions: the number of workers and their shares of the work do not matter.

    Parameters
    ----------
    estimator : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        A pipeline ends in one of these, and its other steps learn nothing from the images (as PatchFeatureExtractor).
        Earlier learning is forgotten.
    partitions : sequence, or a Dask bag
        Each one is an X of `fit`: a list of paths, an array, ... A callable without arguments is called by the worker
        and returns the X. Partitions of Dask (a bag, a sequence of `dask.delayed`) are fitted and merged on Dask's
        cluster, and only the result is sent here.
    n_jobs : int or None, default=None
        Workers, as of :class:`joblib.Parallel`. Its backends `"loky"` (the default), `"threading"` and `"dask"` work:
        `joblib.parallel_config(backend="dask")` sends partitions to a cluster. None is one, unless the configuration
        says otherwise.
    devices : "auto", sequence of str or torch.device, or None, default=None
        One worker thread for each of these devices, in this process; `"auto"` is all GPUs. Excludes `n_jobs`.
    threads_per_worker : int or None, default=None
        Threads of torch in each worker. None divides the cores among the workers of this machine, and is one for
        Dask. Two busy torch processes are many times slower if each has as many threads as there are cores.

    Returns
    -------
    estimator
        Fitted, with the parameters it had.

    Raises
    ------
    ValueError
        There are no partitions. One has other columns, another order of them, other shapes or regions than the first
        one. A step cannot be repeated in another process (it is random, without an integer `random_state`). The backend
        of joblib is `"multiprocessing"`. Or what `fit` raises for a partition; a note at the end of the traceback names
        the partition. The estimator is unchanged.
    BrokenProcessPool
        Worker processes died several times in a row.

    Warns
    -----
    UserWarning
        Worker processes died, and their partitions are learnt again.
    SkippedImagesWarning
        With `on_error="skip"`: no image of a partition can be read, and it is skipped.

    Notes
    -----
    What one fit decides from its first images (the size of `image_size="auto"`, `n_components=None`, random features,
    the dtype) the first partition with a readable image decides for all. If it is a callable, it is called twice.

    The result equals one fit on all images if nothing is truncated: where scatter matrices are kept (the default, where
    patches share a Gaussian), and of rank <= k. Otherwise it depends on the partitions: the larger they are, the less
    often directions are truncated. Images should be in random order. The number of threads changes the rounding: set
    `threads_per_worker` for the same bits on any number of workers.

    With p partitions of n images on w workers, the cost is that of n p / w images, and p - 1 merges by the caller, each
    an eigenproblem of size 2 k + 1 per patch (on Dask's cluster, log2 p merges one after the other). The caller holds
    at most log2(p) + 1 states, and those that wait for an earlier partition.

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
    check_layouts(estimator, partitions)
    if any(hasattr(partition, "__dask_graph__") for partition in partitions):
        result = _fit_on_dask(clone(estimator), partitions, threads_per_worker or 1)
    elif devices is not None:
        result = _fit_on_devices(clone(estimator), partitions, _resolve_devices(devices), threads_per_worker)
    else:
        backend = get_active_backend()[0]
        if not backend.supports_return_generator:
            raise ValueError(
                f"joblib's {type(backend).__name__} cannot give results one by one, as they are merged; choose "
                "joblib.parallel_config(backend='loky'), 'threading' or 'dask'"
            )
        choices = first_choices(
            partitions, lambda index: _choose_on_workers(clone(estimator), partitions[index], index, n_jobs)
        )
        result = _merge_all(_fit_on_workers(clone(estimator), partitions, choices, n_jobs, threads_per_worker))
    prefix, learner, skipped = result
    warn_of_skipped(skipped, len(partitions), "partition")
    return _take_over(estimator, prefix, learner.model)


def fit_rank(estimator: Any, X: Images | ArrayLike, *, group: Any = None) -> Any:
    """Fit an estimator on this rank's share of the images, in each process of :mod:`torch.distributed`.

    All ranks call it at the same time, each with its own images, and all end with the same model, bit for bit. Any
    backend that sends objects works (gloo, nccl). With nccl, call :func:`torch.cuda.set_device` first.

    Parameters
    ----------
    estimator : Pipeline, PatchGaussianDetector or BatchedIncrementalPCA
        As for :func:`fit`, the same on all ranks, except for `device`.
    X : sequence of images, or array-like
        This rank's share.
    group : torch.distributed.ProcessGroup or None, default=None
        The ranks; None for all.

    Returns
    -------
    estimator
        Fitted on the images of all ranks.

    Raises
    ------
    RuntimeError
        The fit of another rank failed; the message names the rank and the reason. An error of this rank is raised as
        it is.

    Notes
    -----
    States are sent up a binary tree (log2 of the number of ranks messages, as large as in :func:`fit`, one after the
    other), and the result is broadcast. The tree is that of :func:`fit` with the ranks' shares as partitions.

    Examples
    --------
    One rank alone; several are started by `torchrun`.

    >>> import tempfile, numpy as np, torch
    >>> from ipca_sklearn import PatchGaussianDetector
    >>> from ipca_sklearn.distributed import fit_rank
    >>> X = np.random.default_rng(0).normal(size=(40, 5, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    ...     detector = fit_rank(PatchGaussianDetector(4), X)
    ...     torch.distributed.destroy_process_group()
    >>> detector.n_samples_seen_
    40
    """
    check_repeatable(estimator)
    rank, n_ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    known = _on_all_ranks(lambda: choose(clone(estimator), X, rank), rank, n_ranks, group)
    choices = first_choices(known, lambda index: known[index])
    if choices is not None:
        for other, made in enumerate(known):
            if not isinstance(made, ImageReadError) and made.layout is not None:
                check_layout(choices, made.layout, other, "rank")

    def learn() -> Any:
        fits.append(_fit_partition(clone(estimator), X, rank, choices, None, None, "rank"))
        return fits[0][2]

    fits: list[tuple[Any, Travelling, str | None]] = []
    reasons = _on_all_ranks(learn, rank, n_ranks, group)
    prefix, learner, _ = fits[0]
    ranks = list(range(n_ranks)) if group is None else torch.distributed.get_process_group_ranks(group)
    stride = 1
    while stride < n_ranks:
        if rank % (2 * stride) == stride:
            torch.distributed.send_object_list([learner], dst=ranks[rank - stride], group=group)
        elif rank % (2 * stride) == 0 and rank + stride < n_ranks:
            received: list[Any] = [None]
            torch.distributed.recv_object_list(received, src=ranks[rank + stride], group=group)
            learner = _merged(learner, received[0])
        stride *= 2
    result = [learner]
    torch.distributed.broadcast_object_list(result, src=ranks[0], group=group)
    skipped = {other: reason for other, reason in enumerate(reasons) if reason is not None}
    warn_of_skipped(skipped, n_ranks, "rank")
    return _take_over(estimator, prefix, result[0].model)


def _on_all_ranks(call: Callable[[], Any], rank: int, n_ranks: int, group: Any) -> list[Any]:
    """Return what a call has returned on each rank; if it failed on one, it fails on all."""
    failure: Exception | None = None
    result = None
    try:
        result = call()
    except Exception as error:  # the others must not wait for this rank
        failure = error
    results: list[Any] = [None] * n_ranks
    torch.distributed.all_gather_object(results, (result, None if failure is None else repr(failure)), group=group)
    if failure is not None:
        raise failure
    for other, (_, reason) in enumerate(results):
        if reason is not None:
            raise RuntimeError(f"the fit of rank {other} failed, so nothing was learnt: {reason}")
    return [value for value, _ in results]


def _choose_on_workers(model: Any, partition: Any, index: int, n_jobs: int | None) -> Any:
    """Return `choose` of a partition, on a worker where the partition may not be there for this process."""
    if not callable(partition) and not _is_dask():
        return chosen(model, partition, index)
    return next(_on_workers(lambda _: joblib.delayed(chosen)(model, partition, index), 1, n_jobs))


def _fit_partition(
    model: Any,
    partition: Any,
    index: int,
    choices: Choices | None,
    n_threads: int | None,
    devices: queue.Queue[Any] | None,
    word: str = "partition",
) -> tuple[Any, Travelling, str | None]:
    """Return what a model learns from a partition: its fitted first steps (None if it has none), and its last step.

    The last step is None if no image can be read and such images are skipped; the third value is then the reason.
    """
    device = None if devices is None else devices.get()
    try:
        with named(index, word), own_torch_threads(n_threads):
            model = clone(model)
            if device is not None:
                model.set_params(**{name: device for name in model.get_params() if _last_part(name) == "device"})
            X = read_partition(partition)
            if choices is not None:
                check_layout(choices, X, index, word)
            features = fit_first_steps(model, X, choices, index, word)
            prefix, learner = (model[:-1], model[-1]) if isinstance(model, Pipeline) else (None, model)
            learner.set_params(**chosen_parameters(learner, features, choices))
            try:
                learner.fit(features)
            except ImageReadError as error:
                if choices is None or not getattr(features, "may_skip", False):
                    raise
                return prefix, Travelling(None), str(error)
    finally:
        if devices is not None:
            devices.put(device)
    return prefix, Travelling(learner), None


def _fit_learner(*arguments: Any) -> tuple[None, Travelling, str | None]:
    """Return the result of `_fit_partition` without the first steps: their network is sent here only once."""
    return (None, *_fit_partition(*arguments)[1:])


def _last_part(name: str) -> str:
    """Return `device` for a parameter `features__device`."""
    return name.rpartition("__")[2]


def _merged(first: Travelling, second: Travelling) -> Travelling:
    """Return the merge of two learners, which do not change."""
    if first.model is None or second.model is None:
        return second if first.model is None else first
    return Travelling(copy.copy(first.model).merge(second.model))


def _merge_all(fits: Iterable[tuple[Any, Travelling, str | None]]) -> tuple[Any, Travelling, dict[int, str]]:
    """Return the first steps of the first of these fits, the merge of all last steps, and why some have none."""
    prefixes: list[Any] = []
    skipped: dict[int, str] = {}

    def learners() -> Iterator[Travelling]:
        for index, (prefix, learner, reason) in enumerate(fits):
            if not prefixes:
                prefixes.append(prefix)
            if reason is not None:
                skipped[index] = reason
            yield learner

    learner = merge_tree(learners(), _merged)
    return prefixes[0], learner, skipped


def _fit_on_workers(
    model: Any, partitions: Sequence[Any], choices: Choices | None, n_jobs: int | None, n_threads: int | None
) -> Iterator[tuple[Any, Travelling, str | None]]:
    """Yield the fits of all partitions in order."""

    def task(index: int) -> Any:
        threads = n_threads or _share_of_threads(n_jobs, len(partitions))
        fit_one = joblib.delayed(_fit_learner if index else _fit_partition)
        return fit_one(model, partitions[index], index, choices, threads, None)

    return _on_workers(task, len(partitions), n_jobs)


def _on_workers(task: Callable[[int], Any], n_tasks: int, n_jobs: int | None) -> Iterator[Any]:
    """Yield the results of all tasks in order; if workers die, start again at the first missing one."""
    n_done = n_retries = 0
    while n_done < n_tasks:
        tasks = (task(index) for index in range(n_done, n_tasks))
        try:
            for result in joblib.Parallel(n_jobs=n_jobs, return_as="generator")(tasks):
                yield result
                n_done, n_retries = n_done + 1, 0
            return
        except BrokenProcessPool as error:
            n_retries += 1
            if n_retries > _MAX_RETRIES:
                raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            warnings.warn(
                f"worker processes died ({reason}); partition {n_done} and those after it are learnt again",
                UserWarning,
                stacklevel=5,
            )


def _is_dask() -> bool:
    return "dask" in type(get_active_backend()[0]).__name__.lower()


def _share_of_threads(n_jobs: int | None, n_partitions: int) -> int | None:
    """Return the threads of each worker, so that all together have those of this process; None does not change them."""
    if _is_dask():
        return 1
    n_workers = min(joblib.effective_n_jobs(n_jobs), n_partitions)
    return None if n_workers == 1 else max(1, torch.get_num_threads() // n_workers)


def _resolve_devices(devices: str | Iterable[DeviceLike]) -> list[torch.device]:
    if isinstance(devices, str):
        if devices != "auto":
            raise ValueError(f"devices={devices!r} is 'auto' or a sequence of devices, such as ['cuda:0', 'cuda:1']")
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    resolved = [torch.device(device) for device in devices]  # type: ignore[arg-type]
    if not resolved:
        raise ValueError("devices is empty: name at least one, or pass None")
    return resolved


def _fit_on_devices(
    model: Any, partitions: Sequence[Any], devices: list[torch.device], n_threads: int | None
) -> tuple[Any, Travelling, dict[int, str]]:
    choices = first_choices(partitions, lambda index: chosen(model, partitions[index], index))
    free: queue.Queue[Any] = queue.Queue()
    for device in devices:
        free.put(device)
    threads = n_threads or max(1, torch.get_num_threads() // len(devices))
    parallel = joblib.Parallel(n_jobs=len(devices), backend="threading", return_as="generator")
    return _merge_all(
        parallel(
            joblib.delayed(_fit_partition)(model, partition, index, choices, threads, free)
            for index, partition in enumerate(partitions)
        )
    )


def _fit_on_dask(model: Any, partitions: Sequence[Any], n_threads: int) -> tuple[Any, Travelling, dict[int, str]]:
    import dask

    choose_on_cluster = dask.delayed(chosen)
    choices = first_choices(
        partitions, lambda index: dask.compute(choose_on_cluster(model, partitions[index], index))[0]
    )
    fit_partition, fit_learner = dask.delayed(_fit_partition, nout=3), dask.delayed(_fit_learner, nout=3)
    fits = [
        (fit_learner if index else fit_partition)(model, partition, index, choices, n_threads, None)
        for index, partition in enumerate(partitions)
    ]
    learner = merge_tree([learner for _, learner, _ in fits], dask.delayed(_merged))
    prefix, learner, reasons = dask.compute(fits[0][0], learner, [reason for _, _, reason in fits])
    return prefix, learner, {index: reason for index, reason in enumerate(reasons) if reason is not None}


def _take_over(estimator: Any, prefix: Any, learner: Any) -> Any:
    """Store in the caller's estimator what was learnt; it keeps its own parameters."""
    if hasattr(learner, "pca_"):  # chosen for this fit: the caller's are those of the next one
        last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
        own = last.get_params()
        learner.pca_.set_params(**{name: own[name] for name in learner.pca_.get_params() if name in own})
    if isinstance(estimator, Pipeline):
        # The worker's device is its own, and a feature cache is not sent back from a process.
        own = {name: value for name, value in estimator.get_params().items() if _last_part(name) in ("cache", "device")}
        prefix.set_params(**{name: value for name, value in own.items() if name in prefix.get_params()})
        last_name, last = estimator.steps[-1]
        adopt(last, learner)
        estimator.steps = [*prefix.steps, (last_name, last)]
    else:
        adopt(estimator, learner)
    return estimator

"""Sections on the PCA alone, the cost of a step, and the scoring of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.common.pca_methods import Method, features, full_covariance, measure, ours, stream_length
from benchmarks.common.timing import seconds
from benchmarks.gpu.sections import Cell, Config, Row, Section
from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector, linalg

SETTINGS = [(16, 16), (64, 64), (64, 16), (32, 32), (48, 16), (112, 16), (128, 64)]
FULL_STREAM_SECONDS = 4.0


def measure_within_reason(make: Callable[[int], Method], k: int, b: int, m: int, total: int, config: Config) -> Row:
    """Run a stream on few patches, and on all patches if that does not take long."""
    few = min(total, config.pick(4 if m > 256 else 64 if k + b <= 32 else 16, 8))
    checked = 3 if m <= 256 else 1  # an exact PCA in float64 is slow
    n = stream_length(k, b) if not config.smoke else 3 * max(k, b)
    result = measure(make(few), k, b, n, m, total, config.device, 1, checked)
    if few < total and n / result["images_per_s"] < FULL_STREAM_SECONDS:
        result = measure(make(total), k, b, n, m, total, config.device, config.pick(3, 1), checked)
    speeds = [result[key] for key in ("images_per_s", "low", "high")]
    return {"images_per_s": speeds, **{key: result[key] for key in ("patches_run", "lost_variance", "sine")}}


def patches_that_fit(m: int, config: Config) -> int:
    """Return the number of patches that leave room for the longest stream, the state and their temporaries."""
    total = config.pick(3136, 32)
    if not config.on_gpu:
        return total
    bytes_per_patch = 4 * m * 4 * (stream_length(128, 64) + 2 * (128 + 64))
    return min(total, int(0.6 * torch.cuda.mem_get_info()[0]) // bytes_per_patch)


def start_libraries(config: Config) -> None:
    """Decompose a few matrices, because the first call loads cuSOLVER, and no method should pay for it."""
    example = torch.eye(48, device=config.device).expand(4, 48, 48).contiguous()
    torch.linalg.eigh(example)
    torch.linalg.svd(example)


def pca_cells(config: Config) -> Iterator[Cell]:
    driver = "gesvdj" if config.on_gpu else None
    methods: dict[str, Callable[[int], Method]] = {
        "ours": partial(ours, "auto"),
        "paper (gram_svd, deferred)": lambda patches: ours("gram_svd", patches, driver, "deferred"),
        "full covariance, one eigh": full_covariance,
        "paper, not optimised (svd)": partial(ours, "svd"),
    }
    start_libraries(config)
    for m in config.pick((256, 1792), (48,)):
        total = patches_that_fit(m, config)
        settings = SETTINGS if m == 256 else [(16, 16), (64, 64), (128, 64)]
        for k, b in config.pick(settings, [(4, 4), (8, 4)]):
            for name, make in methods.items():
                labels = {"m": m, "P": total, "k": k, "b": b, "method": name}
                yield labels, partial(measure_within_reason, make, k, b, m, total, config)


PCA = Section(
    "pca",
    "The PCA alone",
    "As in `python -m benchmarks.pca`, float32: speed of a step once k rows are kept, median (range). Where all "
    f"patches would take over {FULL_STREAM_SECONDS:g} s per stream, *patches_run* of them ran once and the time is "
    "scaled. *lost_variance*: of what a float64 PCA of the same images keeps with k components; *sine*: of the largest "
    "angle to its leading k / 2 directions. Both include what a truncated stream loses by design.",
    105,
    pca_cells,
)


def bytes_of_step(patches: int, m: int, k: int, b: int, itemsize: int = 4) -> int:
    """Return the least traffic of a step: read and write rows, mean and squares once, read X once."""
    return patches * m * (k + b + 2 + k + 2) * itemsize


def copy_bandwidth(config: Config) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes."""
    source = torch.empty(config.pick(1 << 28, 1 << 20), device=config.device)
    target = torch.empty_like(source)
    times = seconds(lambda: target.copy_(source), config.device, 5)
    return 2 * source.nbytes / min(times)


def waits_per_step(task: Callable[[], object], config: Config, steps: int = 4) -> Row:
    """Count how often the host waits for the GPU or copies from it in one step, with torch's profiler."""
    if not config.on_gpu:
        return {}

    def count(repeats: int) -> Counter[str]:
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(repeats):
                task()
        names = [event.name for event in profile.events()]
        waits = [name for name in names if name.startswith("cuda") and name.endswith("Synchronize")]
        return Counter(waits + ["copies to host" for name in names if name.startswith("Memcpy DtoH")])

    count(1)
    found, own = count(steps), count(0)  # the profiler itself waits once or twice
    return {name: (found[name] - own[name]) / steps for name in sorted(found) if found[name] > own[name]}


def step_task(name: str, k: int, step: Tensor, grid: tuple[int, int]) -> Callable[[], object]:
    """Return a function that learns a step with a model that has k rows: `linalg`, the PCA or the detector."""
    state = linalg.empty_state(*step.shape[1:], dtype=step.dtype, device=step.device)
    if name == "linalg.update":
        while state.rows.shape[1] < k:
            state = linalg.update(state, step, n_rows=k)
        return lambda: linalg.update(state, step, n_rows=k)
    images = step.unflatten(1, grid)
    estimator = BatchedIncrementalPCA if name == "BatchedIncrementalPCA" else PatchGaussianDetector
    model = estimator(k, step_size=len(step))
    for _ in range(1 + k // len(step)):
        model.partial_fit(images)
    return lambda: model.partial_fit(images)


def step_cells(config: Config) -> Iterator[Cell]:
    grid = config.pick((56, 56), (6, 6))
    m = config.pick(256, 32)
    bandwidth = copy_bandwidth(config)

    def run(name: str, k: int, b: int) -> Row:
        step = features(b, grid[0] * grid[1], m, config.device)
        task = step_task(name, k, step, grid)
        times = seconds(task, config.device, config.pick(30, 3))
        if config.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if config.on_gpu else 0
        task()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if config.on_gpu else None
        floor = bytes_of_step(grid[0] * grid[1], m, k, b) / bandwidth
        return {
            "ms": [1e3 * time for time in times],
            "floor_ms": 1e3 * floor,
            "times_floor": sorted(times)[len(times) // 2] / floor,
            "peak_mb": peak,
            **waits_per_step(task, config),
        }

    for k, b in config.pick([(16, 16), (64, 16), (64, 64)], [(4, 4)]):
        for name in ("linalg.update", "BatchedIncrementalPCA", "PatchGaussianDetector"):
            yield {"task": name, "k": k, "b": b, "copy_GB_per_s": bandwidth / 1e9}, partial(run, name, k, b)


STEP = Section(
    "step",
    "What a step costs",
    "P = 3136, m = 256, float32. *floor_ms*: P m (2 k + b + 4) x 4 bytes, each read or written once, at the measured "
    "speed of a copy in the device's memory. *peak_mb*: allocated during the step. Last columns: waits for the GPU and "
    "copies to the host in one step, from torch's profiler. The estimators also check X; the detector scores the step.",
    30,
    step_cells,
)


def scoring_cells(config: Config) -> Iterator[Cell]:
    patches, m = config.pick((3136, 256), (36, 32))

    def run(distance: str, k: int, b: int) -> Row:
        step = features(b, patches, m, config.device, seed=1)
        learnt = features(max(2 * k, 32), patches, m, config.device)
        state = linalg.empty_state(patches, m, dtype=step.dtype, device=step.device)
        basis = linalg.finalize(linalg.update(state, learnt, n_rows=k), n_components=k)
        operator = linalg.distance_operator(basis, distance=distance)
        times = seconds(lambda: linalg.patch_distances(operator, step), config.device, config.pick(20, 2))
        row: Row = {"images_per_s": [b / time for time in times]}
        if config.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = linalg.patch_distances(operator, step)
            row["temporaries_mb"] = (torch.cuda.max_memory_allocated() - before - result.nbytes) / 1e6
        return row

    for k in config.pick((16, 64), (4,)):
        for b in config.pick((1, 16, 64), (1, 4)):
            for distance in linalg.DISTANCES:
                yield {"distance": distance, "k": k, "images": b}, partial(run, distance, k, b)


SCORING = Section(
    "scoring",
    "Scoring",
    "`patch_distances` on features in the device's memory, P = 3136, m = 256, float32; images per call, images/s, and "
    "peak memory beyond the features, the model and the result.",
    25,
    scoring_cells,
)


def shared_cells(config: Config) -> Iterator[Cell]:
    n_gaussians, group, m, k = config.pick((256, 16, 256, 64), (9, 4, 32, 4))
    side = config.pick(64, 6)

    def learnt(b: int) -> tuple[Tensor, linalg.ScatterState]:
        step = features(b * group, n_gaussians, m, config.device)
        return step, linalg.update_scatter(linalg.empty_scatter(n_gaussians, m, device=step.device), step)

    def scatter(b: int, tf32: bool) -> Row:
        step, state = learnt(b)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")  # `update_scatter` keeps it out
        try:
            times = seconds(
                lambda: linalg.update_scatter(state, step, in_place=True), config.device, config.pick(30, 2)
            )
        finally:
            torch.set_float32_matmul_precision("highest")
        exact = linalg.update_scatter(
            linalg.empty_scatter(n_gaussians, m, dtype=torch.float64, device=step.device), step.double()
        )
        error = (learnt(b)[1].matrix.double() - exact.matrix).tril().abs().amax() / exact.matrix.abs().amax()
        products = 2 * step.numel() * m / 1e12
        return {"images_per_s": [b / t for t in times], "TFLOP/s": products / min(times), "deviation": float(error)}

    def components() -> Row:
        _, state = learnt(config.pick(64, 8))
        times = seconds(lambda: linalg.finalize_scatter(state, n_components=k), config.device, config.pick(5, 1))
        return {"ms": [1e3 * time for time in times]}

    def detector(b: int) -> Row:
        images = features(8 * b, side * side, m, config.device).unflatten(1, (side, side))
        model = PatchGaussianDetector(n_gaussians=n_gaussians, step_size=b).fit(images)
        learning = seconds(lambda: model.partial_fit(images), config.device, config.pick(5, 1))
        scoring = seconds(lambda: model.transform(images), config.device, config.pick(5, 1))
        row: Row = {name: [8 * b / t for t in times] for name, times in (("images_per_s", learning), ("maps", scoring))}
        return row | waits_per_step(lambda: model.partial_fit(images), config)

    for b in config.pick((1, 16, 64), (2,)):
        yield {"task": "update_scatter", "images": b, "caller allows TF32": "N"}, partial(scatter, b, False)
    yield (
        {"task": "update_scatter", "images": 16, "caller allows TF32": "Y"},
        partial(scatter, config.pick(16, 2), True),
    )
    yield {"task": "finalize_scatter"}, components
    for b in config.pick((16, 64), (4,)):
        yield {"task": "PatchGaussianDetector", "images": b}, partial(detector, b)


SHARED = Section(
    "shared",
    "Neighbours share a Gaussian",
    "C = 256 Gaussians of m = 256 features, 16 patches each, float32 in the device's memory. `update_scatter` of the "
    "samples of so many images, in place; *deviation*: largest difference to float64, as a share of the largest entry; "
    "where the caller allows TF32 it must be the same. `finalize_scatter`: one batched eigendecomposition of 256 "
    "matrices of 256 x 256. The detector with its defaults: `partial_fit` of 8 steps that it scores first, maps of the "
    "same images, waits for the GPU and copies to the host in such a call.",
    40,
    shared_cells,
)

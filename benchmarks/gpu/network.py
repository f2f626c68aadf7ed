"""Sections that run the network: end to end, and the speeds that the paper reports."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.pca_methods import features
from benchmarks.common.timing import seconds
from benchmarks.gpu.sections import Cell, Config, Row, Section
from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector, linalg
from ipca_sklearn.features._settings import settings_of

MODES: dict[str, dict[str, bool]] = {
    "float32": {},
    "amp": {"amp": True},
    "amp, compiled": {"amp": True, "compile": True},
}


def synthetic_images(n: int, config: Config, device: str | None = None) -> Tensor:
    """Return uint8 images (n, 3, S, S) of the network's size, without anything to decode, resize or crop."""
    side = config.pick(224, 32)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator).to(device or config.device)


def fitted_extractor(images: Tensor, config: Config, **params: Any) -> PatchFeatureExtractor:
    side = images.shape[-1]
    extractor = PatchFeatureExtractor(
        "efficientnet_b0", weights=None, image_size=side, crop_size=side, device=config.device, random_state=0, **params
    )
    return extractor.fit(images[:1])


def run_network(extractor: PatchFeatureExtractor, images: Tensor, batch: int) -> None:
    for _ in extractor.transform(images).batches(batch):
        pass


def learn(model: Any, extractor: PatchFeatureExtractor, images: Tensor) -> None:
    """Fit until the model is ready to score; the components are computed when they are first read."""
    model.fit(extractor.transform(images))
    _ = getattr(model, "pca_", model).noise_variance_


def speeds(n: int, times: list[float]) -> list[float]:
    return [n / time for time in times]


def end_to_end_cells(config: Config) -> Iterator[Cell]:
    n, repeats = config.pick(320, 8), config.pick(3, 1)
    images = synthetic_images(n, config)
    batches = config.pick((8, 16, 32, 64, 128, 256), (4, 8))
    compiles = "compile" in PatchFeatureExtractor().get_params() and not config.smoke
    modes = [mode for mode in MODES if compiles or "compile" not in MODES[mode]]
    best: dict[str, tuple[float, int]] = {}
    extractors = {mode: fitted_extractor(images, config, **MODES[mode]) for mode in modes}

    def network(mode: str, batch: int) -> Row:
        extractor = extractors[mode].set_params(batch_size=batch)
        found = speeds(n, seconds(lambda: run_network(extractor, images, batch), config.device, repeats))
        best[mode] = max(best.get(mode, (0.0, batch)), (statistics.median(found), batch))
        return {"images_per_s": found}

    def whole(mode: str, k: int, step: int, batch: int, source: Tensor) -> Row:
        extractor = extractors[mode].set_params(batch_size=batch)
        detector = PatchGaussianDetector(k, n_gaussians=None, step_size=step)
        training = seconds(lambda: learn(detector, extractor, source), config.device, repeats)
        scoring = seconds(lambda: detector.transform(extractor.transform(source)).max((1, 2)), config.device, repeats)
        share = 100 * n / statistics.median(training) / best[mode][0] if mode in best else None
        return {"images_per_s": speeds(n, training), "inference": speeds(n, scoring), "% of the best network": share}

    # The network is compiled anew for each size of a batch, so two sizes have to do.
    for mode in modes:
        for batch in batches if "compile" not in MODES[mode] else (8, 64):
            yield {"what": "network", "mode": mode, "batch": batch}, partial(network, mode, batch)
        sizes = config.pick([(16, 16), (64, 64), (32, 16), (64, 16)], [(4, 4), (8, 8)])
        for k, step in sizes if "compile" not in MODES[mode] else sizes[:2]:
            for batch in dict.fromkeys((batches[0], best.get(mode, (0, 8))[1])):
                labels = {"what": "training", "mode": mode, "batch": batch, "k": k, "step": step}
                yield labels, partial(whole, mode, k, step, batch, images)
    on_host = synthetic_images(n, config, "cpu")
    for mode in modes[:2]:
        k = config.pick(16, 4)
        for batch in dict.fromkeys((batches[0], best.get(mode, (0, 8))[1])):
            labels = {"what": "training, images in host memory", "mode": mode, "batch": batch, "k": k, "step": k}
            yield labels, partial(whole, mode, k, k, batch, on_host)


END_TO_END = Section(
    "end_to_end",
    "End to end with EfficientNet-b0",
    "320 random uint8 images of 224 x 224 in the GPU's memory (last rows: in the host's), random weights, 256 features "
    "on 56 x 56 patches; `PatchGaussianDetector(k, step_size=step)`, default distance. Loading of images and building "
    "of the network are left out. Random weights leave more directions weak than trained ones do, and those are "
    "decomposed a second time, so training is slower than with trained weights. images_per_s: of the network alone, or "
    "of training until the model is ready to score; inference: maps and image scores. float32 convolutions use TF32 as "
    "torch allows by default. Batches: 8 as "
    "in the paper, and the network's best.",
    95,
    end_to_end_cells,
)

# Table, incremental, optimised, dtype, SVD routine, k, step, the paper's training and inference FPS.
PAPER = [
    ("2", True, True, "float32", "gesvdj", 16, 16, 192.8, 192.3),
    *[("7", True, True, "float32", "gesvdj", k, 16, *fps) for k, fps in
      {4: (190.2, 190.4), 8: (190.8, 188.5), 12: (191.8, 190.4)}.items()],
    *[("8", True, True, "float32", "gesvdj", 16, step, *fps) for step, fps in
      {4: (163.1, 188.9), 8: (178.3, 190.5), 12: (181.2, 186.2)}.items()],
    ("9", True, True, "float32", "gesvdj", 8, 24, 201.0, 192.2),
    ("9", True, True, "float32", "gesvdj", 24, 8, 177.1, 184.5),
    ("9", True, True, "float32", "gesvdj", 31, 1, 84.6, 188.9),
    ("6", True, True, "float64", "gesvdj", 16, 16, 63.8, 154.5),
    ("10", True, True, "float32", "gesvdj", 32, 16, 5.4, 215.7),
    ("10", True, True, "float32", "gesvdj", 48, 16, 5.3, 212.8),
    ("10", True, True, "float32", "gesvdj", 64, 16, 3.3, 203.3),
    ("2", True, False, "float32", "gesvdj", 16, 16, 7.9, 180.1),
    ("6", True, True, "float32", "gesvd", 16, 16, 3.5, 198.7),
    ("6", True, False, "float64", "gesvdj", 16, 16, 1.2, 156.8),
    ("2", False, True, "float32", "gesvdj", 16, None, 7.7, 188.7),
    ("2", False, False, "float32", "gesvdj", 16, None, 10.1, 187.9),
    ("6", False, True, "float64", "gesvdj", 16, None, 0.5, 151.1),
    ("6", False, False, "float64", "gesvdj", 16, None, 0.8, 158.3),
]  # fmt: skip
LONGEST_FIT = 5.0


def predicted_seconds(params: dict[str, Any], n: int, patches: int, m: int, config: Config) -> tuple[float, int]:
    """Return the predicted time of all steps on all patches, from one step on two small numbers of patches."""
    dtype = getattr(torch, params["dtype"])
    step_size, driver = params["step_size"] or n, params["svd_driver"]

    def one_step(some: int) -> float:
        x = features(step_size, some, m, config.device)
        state = linalg.empty_state(some, m, dtype=dtype, device=x.device)
        options = {"n_rows": params["n_components"], "centering": "deferred", "solver": params["solver"]}
        if params["step_size"] is not None:  # the matrix has its final size
            warm = features(2 * params["n_components"], some, m, config.device)
            state = linalg.update(state, warm, n_rows=params["n_components"], centering="deferred")
        task = partial(linalg.update, state, x, svd_driver=driver, **options)
        return min(seconds(task, config.device, 1, warm_up=some < 32))

    small, large = one_step(8), one_step(32)
    per_patch = max(0.0, large - small) / 24
    return (large + per_patch * (patches - 32)) * -(-n // step_size), 32


def paper_cells(config: Config) -> Iterator[Cell]:
    n_train, n_test = config.pick((242, 115), (20, 4))
    images = synthetic_images(n_train, config)
    extractor = fitted_extractor(images, config, batch_size=8)
    patches, m = math.prod(extractor.grid_size_), extractor.n_features_out_
    network = statistics.median(seconds(lambda: run_network(extractor, images, 8), config.device, 3))
    yield {"table": "network alone"}, lambda: {"training here": n_train / network}
    ours: dict[tuple[int, int], list[float]] = {}
    inference: dict[tuple[int, str], list[float]] = {}

    def run(incremental: bool, optimised: bool, dtype: str, routine: str, k: int, step: int | None) -> Row:
        params = {
            "n_components": k,
            "step_size": step,
            "solver": "gram_svd" if optimised else "svd",
            "svd_driver": routine if config.on_gpu else None,
            "dtype": dtype,
        }
        row: Row = {}
        predicted, few = predicted_seconds(params, n_train, patches, m, config)
        if predicted < LONGEST_FIT:
            pca = BatchedIncrementalPCA(**params, centering="deferred")
            times = seconds(lambda: learn(pca, extractor, images), config.device, config.pick(2, 1))
            row["training here"] = speeds(n_train, times)
        else:
            row |= {"training here": n_train / (network + predicted), "remark": f"predicted from {few} patches"}
        if step is not None:
            detector = PatchGaussianDetector(k, n_gaussians=None, step_size=step)
            if (k, step) not in ours:
                times = seconds(lambda: learn(detector, extractor, images), config.device, config.pick(2, 1))
                ours[k, step] = speeds(n_train, times)
            row["training, ours by default"] = ours[k, step]
        if (k, dtype) not in inference:
            detector = PatchGaussianDetector(k, n_gaussians=None, distance="mahalanobis", dtype=dtype)
            detector.fit(extractor.transform(images[:64]))
            task = partial(score, detector, extractor, images[:n_test])
            inference[k, dtype] = speeds(n_test, seconds(task, config.device, config.pick(2, 1)))
        return row | {"inference here": inference[k, dtype]}

    for table, incremental, optimised, dtype, routine, k, step, training, testing in PAPER:
        labels = {"table": table, "incremental": "NY"[incremental], "optimised": "NY"[optimised], "dtype": dtype}
        labels |= {"SVD": routine, "k": k, "step": step or "all", "training, paper": training}
        labels |= {"inference, paper": testing}
        yield labels, partial(run, incremental, optimised, dtype, routine, k, step)


def score(detector: PatchGaussianDetector, extractor: PatchFeatureExtractor, images: Tensor) -> Any:
    return detector.transform(extractor.transform(images)).max((1, 2))


def engine_cells(config: Config) -> Iterator[Cell]:
    """Yield the ways to run two networks, and the layouts of images in memory."""
    images = synthetic_images(config.pick(320, 8), config)
    side, repeats = images.shape[-1], config.pick(3, 1)

    def run(backbone: str, batch: int, mode: dict[str, bool]) -> Row:
        how = {"image_size": side, "margin": 0, "batch_size": batch, "device": config.device, "random_state": 0}
        extractor = PatchFeatureExtractor(backbone, weights=None, **how, **mode).fit(images[:1])
        network = speeds(len(images), seconds(lambda: run_network(extractor, images, batch), config.device, repeats))
        detector = PatchGaussianDetector(step_size=batch)
        learning = seconds(lambda: detector.fit(extractor.transform(images)), config.device, repeats)
        scoring = seconds(lambda: detector.transform(extractor.transform(images)), config.device, repeats)
        plain = PatchFeatureExtractor(backbone, weights=None, **how).fit(images[:1])
        theirs, ours = (next(iter(it.transform(images[:batch]).batches(batch))) for it in (plain, extractor))
        return {
            "images_per_s": network,
            "learning": speeds(len(images), learning),
            "maps": speeds(len(images), scoring),
            "difference": float((ours - theirs).norm() / theirs.norm()),
        }

    for mode, options in MODES.items():
        if "compile" in options and config.smoke:
            continue
        for backbone in ("efficientnet_lite0", "efficientnet_b0"):
            for batch in config.pick((8, 64), (4,)):
                yield {"network": backbone, "mode": mode, "batch": batch}, partial(run, backbone, batch, options)
    yield {"network": "efficientnet_lite0", "mode": "layers"}, partial(memory_format, config)


def memory_format(config: Config) -> Row:
    """Time the network's layers on contiguous images and on images whose channels are last."""
    images = torch.rand(config.pick(64, 2), 3, *2 * [config.pick(224, 32)], device=config.device)
    extractor = PatchFeatureExtractor("efficientnet_lite0", weights=None, random_state=0, device=config.device)
    network = settings_of(extractor.fit(images[:1].cpu())).backbone.to(config.device)
    row: Row = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        given = images.contiguous(memory_format=layout)
        with torch.inference_mode():
            row[name] = speeds(len(images), seconds(partial(network, given), config.device, config.pick(20, 1)))
    return row


ENGINE = Section(
    "engine",
    "What runs the network",
    "320 random uint8 images of 224 x 224 in the device's memory, random weights, `PatchFeatureExtractor` without "
    "margin and `PatchGaussianDetector`, both with their defaults. The extractor gives the network images whose "
    "channels are last in memory; *contiguous* and *channels_last* compare that for its layers alone. amp is bfloat16, "
    "compiled is `torch.compile`; *difference*: of the features, to those in float32.",
    60,
    engine_cells,
)


PAPER_SPEEDS = Section(
    "paper",
    "The speeds of the paper's Tables 2, 6, 7, 8, 9 and 10",
    "Images per second. The paper's own figures are of a Quadro RTX 6000 and all classes of MVTec AD (Table 10: "
    "magnetic tiles). Here: EfficientNet-b0, batch 8, 242 training and 115 test images as in an average class, "
    "synthetic, in the GPU's memory as the paper's times leave loading out. *training here* is the paper's method in "
    "this package (`BatchedIncrementalPCA`, deferred centring, `gram_svd` where optimised, `svd` where not; all images "
    f"in one step where not incremental); where that would take over {LONGEST_FIT:g} s, predicted from few patches. "
    "*ours by default* is `PatchGaussianDetector(k, step_size=step)`, which also scores each step, for its threshold. "
    "k = 16 with steps of 16 is in each of the paper's tables, and here once.",
    95,
    paper_cells,
)

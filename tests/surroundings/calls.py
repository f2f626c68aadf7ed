"""Every public call of the package, on small inputs: a table to which new ones are added."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipca_sklearn import (
    BatchedIncrementalPCA,
    FeatureCache,
    PatchFeatureExtractor,
    PatchFeatures,
    PatchGaussianDetector,
    datasets,
    distributed,
    export,
    inspection,
    linalg,
    metrics,
    model_selection,
    monitoring,
    persistence,
    watching,
)
from tests.surroundings.bits import digest
from tests.surroundings.product_calls import product_calls
from tests.surroundings.region_calls import region_calls
from tests.surroundings.world import Fresh, World

Call = Callable[[], Any]


def public_calls(w: World) -> dict[str, Call]:
    """Return all public calls by name: `room.function`, or `Class.method` with a variant behind a space."""
    fresh = Fresh(w.folder)
    calls: dict[str, Call] = {}
    for name, new in (("BatchedIncrementalPCA", "pca"), ("FullCovariance", "full")):
        calls |= _pca_calls(w, name, new)
    calls |= _detector_calls(w) | _extractor_calls(w, fresh) | _linalg_calls(w) | _metric_calls(w)
    calls |= product_calls(w) | region_calls(w) | _picture_calls(w, fresh) | _file_calls(w, fresh) | _monitor_calls(w)
    return calls


def _pca_calls(w: World, name: str, model: str) -> dict[str, Call]:
    def blank(**options: Any) -> Any:
        return type(w[model])(**({"n_components": 4} if model == "pca" else {}), **options)

    attributes = ["components_", "explained_variance_", "explained_variance_ratio_", "singular_values_", "mean_"]
    attributes += ["var_", "noise_variance_", "region_"] + (["covariance_"] if model == "full" else [])
    calls: dict[str, Call] = {
        "fit": lambda: blank().fit(w.X),
        "fit tensor": lambda: blank().fit(w.cpu_X),
        "fit double": lambda: blank(dtype="float64").fit(w.X),
        "fit list": lambda: blank(step_size=5).fit(w.X[:20].tolist()),
        "fit flat": lambda: blank().fit(w.X.reshape(-1, 12)),
        "fit_transform": lambda: blank().fit_transform(w.X),
        "partial_fit": lambda: w[model].partial_fit(w.new),
        "partial_fit tensor": lambda: blank().partial_fit(w.cpu_X).partial_fit(w.cpu_new),
        "transform": lambda: w[model].transform(w.new),
        "transform tensor": lambda: w[model].transform(w.cpu_new),
        "inverse_transform": lambda: w[model].inverse_transform(w.new[..., : w[model].n_components_]),
        "merge": lambda: w[model].merge(blank().fit(w.new)),
        "memory_needed": lambda: w[model].memory_needed(w.X),
        "get_feature_names_out": lambda: w[model].get_feature_names_out(),
    }
    if model == "pca":
        calls |= {
            **{f"fit {solver}": lambda s=solver: blank(solver=s).fit(w.X) for solver in linalg.SOLVERS},
            "fit deferred": lambda: blank(centering="deferred").fit(w.X),
            "fit many patches": lambda: blank().fit(np.tile(w.X, (1, 12, 12, 1))),
            "fit forgetting": lambda: blank(forgetting_factor=0.9).fit(w.X),
            "transform whitening": lambda: w["whitening"].transform(w.new),
            "inverse_transform whitening": lambda: w["whitening"].inverse_transform(w.new[..., :4]),
            "transform flat": lambda: w["flat"].transform(w.new.reshape(-1, 12)),
            "get_covariance": lambda: w["flat"].get_covariance(),
            "get_precision": lambda: w["flat"].get_precision(),
        }
    calls |= {name: lambda name=name: getattr(w[model], name) for name in attributes}
    return {f"{name}.{method}": call for method, call in calls.items()}


def _detector_calls(w: World) -> dict[str, Call]:
    def blank(**options: Any) -> PatchGaussianDetector:
        return PatchGaussianDetector(4, **options)

    def judged(model: str) -> dict[str, Call]:
        return {
            "transform": lambda: w[model].transform(w.new),
            "transform tensor": lambda: w[model].transform(w.cpu_new),
            "score_samples": lambda: w[model].score_samples(w.new),
            "decision_function": lambda: w[model].decision_function(w.new),
            "predict": lambda: w[model].predict(w.new),
            "predict_masks": lambda: w[model].predict_masks(w.new),
            "predict_regions": lambda: w[model].predict_regions(w.new, image_sizes=(40, 40), merge_distance=10),
            "inspect": lambda: w[model].inspect(w.new, image_sizes=(40, 40)),
            "p_values": lambda: w[model].p_values(w.new),
            "score_maps": lambda: w[model].score_maps(w.maps[:6, :4, :4]),
            "distance_operator": lambda: w[model].distance_operator(),
        }

    calls: dict[str, Call] = {
        "fit": lambda: blank().fit(w.X),
        "fit tensor": lambda: blank().fit(w.cpu_X),
        "fit few": lambda: blank().fit(w.X[:30]),
        "fit held out": lambda: blank(calibration=0.3).fit(w.X),
        "fit random features": lambda: blank(n_random_features=5, random_state=0).fit(w.X),
        "fit full": lambda: blank(covariance="full", distance="mahalanobis").fit(w.X),
        "fit rate": lambda: blank(false_positive_rate=0.1, pixel_false_positive_rate=0.1).fit(w.X),
        "partial_fit": lambda: w["detector"].partial_fit(w.new),
        "fit_predict": lambda: blank().fit_predict(w.X),
        "fit_transform": lambda: blank().fit_transform(w.X),
        "merge": lambda: w["detector"].merge(blank(smoothing=1).fit(w.X[::2])),
        "calibrate": lambda: w["detector"].calibrate(w.X[::-1] * 1.1),
        "set_threshold": lambda: w["detector"].set_threshold(w.X[:50] * 1.1, false_positive_rate=0.1),
        "score": lambda: w["detector"].score(w.new),
        "find_suspects": lambda: w["detector"].find_suspects(w.X[:24]).tolist(),
        "memory_needed": lambda: w["detector"].memory_needed(w.X),
        "get_feature_names_out": lambda: w["detector"].get_feature_names_out(),
        "set_params": lambda: w["detector"].set_params(false_positive_rate=0.2).offset_,
        **judged("detector"),
        **{f"{name} full": call for name, call in judged("padim").items()},
        **{
            f"score_samples {distance}": lambda d=distance: w["detector"].set_params(distance=d).score_samples(w.new)
            for distance in linalg.DISTANCES
        },
    }
    for name in (
        "calibration_scores_",
        "calibration_maxima_",
        "calibration_medians_",
        "map_threshold_",
        "offset_",
        "n_samples_seen_",
        "region_",
        "map_region_",
    ):
        calls[name] = lambda name=name: getattr(w["detector"], name)
    return {f"PatchGaussianDetector.{method}": call for method, call in calls.items()}


def _extractor_calls(w: World, fresh: Fresh) -> dict[str, Call]:
    def read(extractor: PatchFeatureExtractor, images: Any) -> np.ndarray:
        return np.asarray(extractor.transform(images))

    def cached(path: Path) -> Any:
        extractor = w["extractor"].set_params(cache=FeatureCache(path))
        return [read(extractor, w.paths), read(extractor, w.paths)]

    def cache(path: Path) -> FeatureCache:
        cache = FeatureCache(path)
        read(w["extractor"].set_params(cache=cache), w.paths)
        return cache

    def noisy(image: Tensor) -> Tensor:
        return image

    def lazy() -> PatchFeatures:
        return w["extractor"].transform(w.paths)

    def aligned() -> PatchFeatures:
        parts = np.zeros((4, 64, 64, 3), np.uint8)
        for number, part in enumerate(parts):
            part[16 + 2 * number : 40 + 2 * number, 20 - number : 36 - number] = 200
            part[20 + 2 * number : 26 + 2 * number, 20 - number : 50 - number] = 120
        return w.new_extractor(align="translation").fit(parts).transform(parts)

    of_extractor: dict[str, Call] = {
        "fit": lambda: w.new_extractor().fit(w.images),
        "fit_transform": lambda: np.asarray(w.new_extractor().fit_transform(w.images)),
        "fit_transform cropped": lambda: np.asarray(
            w.new_extractor(augment="random_crop").set_params(image_size=40).fit_transform(w.images)
        ),
        "fit_transform augmented": lambda: np.asarray(w.new_extractor(augment=noisy).fit_transform(w.images)),
        "transform": lambda: read(w["extractor"], w.images),
        "transform files": lambda: np.asarray(lazy()),
        "transform workers": lambda: read(w["extractor"].set_params(n_jobs=2, batch_size=2), w.paths),
        "transform tensor": lambda: read(w["extractor"], torch.from_numpy(w.images).movedim(-1, 1)),
        "transform floats": lambda: read(w["extractor"], (w.images / 255).astype(np.float32)),
        "transform nearest": lambda: read(w["extractor"].set_params(map_interpolation="nearest"), w.images),
        "transform amp": lambda: read(w["extractor"].set_params(amp="bfloat16"), w.images),
        "transform cached": lambda: cached(fresh("cache")),
        "transform_masks": lambda: w["extractor"].transform_masks(list(w.masks.astype(np.uint8) * 255)),
        "covered_box": lambda: w["extractor"].covered_box((80, 60)),
        "weights_digest": lambda: w["extractor"].weights_digest(),
        "get_feature_names_out": lambda: w["extractor"].get_feature_names_out(),
        "skipped_": lambda: w["extractor"].skipped_,
    }
    of_features: dict[str, Call] = {
        "read": lambda: [batch.clone() for batch, _ in lazy().read(5)],
        "batches": lambda: [batch.clone() for batch in lazy().batches(5)],
        "covered_box": lambda: lazy().covered_box((80, 60)),
        "image_sizes": lambda: lazy().image_sizes(),
        "alignment": lambda: aligned().alignment().tolist(),
        "maps_to_images": lambda: aligned().maps_to_images(np.ones((4, 8, 8), np.float32)),
        "is_aligned": lambda: aligned().is_aligned,
        **{
            name: lambda name=name: getattr(lazy(), name)
            for name in ("device", "dtype", "may_skip", "memory_needed", "ndim", "region", "shape", "skipped")
        },
    }
    of_cache: dict[str, Call] = {
        "clear": lambda: cache(fresh("cache")).clear(),
        "n_bytes": lambda: cache(fresh("cache")).n_bytes,
        "n_images": lambda: cache(fresh("cache")).n_images,
    }
    pipeline: dict[str, Call] = {
        "fit": lambda: w.new_pipe().fit(w.images),
        "score_samples": lambda: w["pipe"].score_samples(w.images),
        "score_samples files": lambda: w["pipe"].score_samples(w.paths),
        "transform": lambda: w["pipe"].transform(w.images),
        "predict": lambda: w["pipe"].predict(w.images),
    }
    return {
        **{f"PatchFeatureExtractor.{method}": call for method, call in of_extractor.items()},
        **{f"PatchFeatures.{method}": call for method, call in of_features.items()},
        **{f"FeatureCache.{method}": call for method, call in of_cache.items()},
        **{f"Pipeline.{method}": call for method, call in pipeline.items()},
    }


def _linalg_calls(w: World) -> dict[str, Call]:
    def in_full_precision() -> Tensor:
        with linalg.full_precision():
            return w.cpu_X.flatten(0, 2).mT @ w.cpu_X.flatten(0, 2)

    def centred_distances() -> Tensor:
        operator = linalg.distance_operator(w.basis, distance="factor_analysis", noise_shrinkage=0.5)
        centred = (w.step - operator.mean).transpose(0, 1)
        return linalg.distances_from_centred(
            centred, operator.rows, operator.transform, operator.scale, operator.precision
        )

    def empty(make: Callable[..., Any]) -> Any:
        return make(3, 8, dtype=torch.float32, device="cpu")

    def scatter() -> linalg.ScatterState:
        _, n_patches, n_features = w.step.shape
        empty_ones = linalg.empty_scatter(n_patches, n_features, dtype=torch.float32, device="cpu")
        return linalg.update_scatter(empty_ones, w.step)

    gram = w.step.transpose(0, 1).mT @ w.step.transpose(0, 1)
    cpu = torch.device("cpu")
    calls: dict[str, Call] = {
        **{
            f"update {solver}": lambda s=solver: linalg.update(w.state, w.step, n_rows=4, solver=s)
            for solver in linalg.SOLVERS
        },
        "update": lambda: linalg.update(empty(linalg.empty_state), w.step[:, :3, :8], n_rows=4),
        "update twice": lambda: linalg.update(w.state, w.step[:5], n_rows=4),
        "update deferred": lambda: linalg.update(w.state, w.step, n_rows=4, centering="deferred"),
        "merge": lambda: linalg.merge(w.state, w.state, n_rows=4),
        "finalize": lambda: w.basis,
        "empty_state": lambda: empty(linalg.empty_state),
        "empty_scatter": lambda: empty(linalg.empty_scatter),
        "update_scatter": lambda: linalg.update_scatter(w.scatter, w.step),
        "merge_scatter": lambda: linalg.merge_scatter(w.scatter, w.scatter),
        "finalize_scatter": lambda: linalg.finalize_scatter(w.scatter),
        "leading_components": lambda: linalg.leading_components(linalg.finalize_scatter(w.scatter), 2),
        "whitening_operator": lambda: linalg.whitening_operator(w.scatter, ridge=0.01),
        "project": lambda: linalg.project(w.basis, w.step, whiten=True),
        "reconstruct": lambda: linalg.reconstruct(w.basis, w.step[..., :4], whiten=True),
        "log_likelihood": lambda: linalg.log_likelihood(w.basis, w.step),
        "keep_share": lambda: linalg.keep_share(w.basis, 0.5),
        "pack": lambda: linalg.pack(scatter().matrix),
        "unpack": lambda: linalg.unpack(w.step.shape[2], linalg.pack(scatter().matrix)),
        **{
            f"distance_operator {distance}": lambda d=distance: linalg.distance_operator(w.basis, distance=d)
            for distance in linalg.DISTANCES
        },
        **{
            f"patch_distances {distance}": lambda d=distance: linalg.patch_distances(
                linalg.distance_operator(w.basis, distance=d), w.step
            )
            for distance in linalg.DISTANCES
        },
        "distances_from_centred": centred_distances,
        "choose_eigensolver": lambda: linalg.choose_eigensolver(cpu, torch.float32, 8, 16).name,
        "full_precision": in_full_precision,
        **{
            f"EIGENSOLVERS {name}": lambda name=name: linalg.EIGENSOLVERS[name].solve(gram, 3)
            for name in ("torch", "numba", "host")
        },
    }
    operator = "distance_operator factor_analysis"
    of_classes: dict[str, Call] = {
        "Basis.components": lambda: w.basis.components,
        "Basis.feature_noise": lambda: w.basis.feature_noise,
        "Basis.to": lambda: w.basis.to(dtype=torch.float64),
        "DistanceOperator.folded": lambda: calls[operator]().folded(),
        "DistanceOperator.to": lambda: calls[operator]().to(cpu),
        "ScatterState.covariance": lambda: w.scatter.covariance(),
        "ScatterState.degrees_of_freedom": lambda: w.scatter.degrees_of_freedom,
        "ScatterState.sum_of_squares": lambda: w.scatter.sum_of_squares,
        "ScatterState.to": lambda: w.scatter.to(dtype=torch.float64),
        "State.degrees_of_freedom": lambda: w.state.degrees_of_freedom,
        "State.to": lambda: w.state.to(dtype=torch.float64),
    }
    return {f"linalg.{function}": call for function, call in calls.items()} | of_classes


def _metric_calls(w: World) -> dict[str, Call]:
    of_images = ("image_roc_auc_score", "image_average_precision_score", "image_f1_max_score")
    of_pixels = ("pixel_roc_auc_score", "pixel_average_precision_score", "pixel_f1_max_score", "aupro_score")
    labels, scores = w.labels, w.scores[:64]
    calls: dict[str, Call] = {
        **{name: lambda name=name: getattr(metrics, name)(labels, scores) for name in of_images},
        **{name: lambda name=name: getattr(metrics, name)(w.masks, w.maps) for name in of_pixels},
        **{
            f"{name} tensor": lambda name=name: getattr(metrics, name)(w.masks, torch.from_numpy(w.maps))
            for name in of_pixels
        },
        "aupimo_score": lambda: metrics.aupimo_score(w.masks, w.maps, fpr_bounds=(1e-3, 0.1)),
        "pimo_curves": lambda: metrics.pimo_curves(w.masks, w.maps, fpr_bounds=(1e-3, 0.1)),
        "pixel_f1_score": lambda: metrics.pixel_f1_score(w.masks, w.maps > 0.7),
        "region_f1_score": lambda: metrics.region_f1_score(w.masks, w.maps > 0.7),
        "pro_score": lambda: metrics.pro_score(w.masks, w.maps > 0.7),
        "found_by_size": lambda: metrics.found_by_size(w.masks, w.maps > 0.7),
        "resize_maps": lambda: metrics.resize_maps(w.maps, (40, 30)),
        "confidence_interval": lambda: metrics.confidence_interval(
            metrics.image_roc_auc_score, labels, scores, n_resamples=20
        ),
        "compare_scores": lambda: metrics.compare_scores(labels, scores, scores[::-1], n_resamples=20),
        "evaluation_report": lambda: metrics.evaluation_report(labels, scores, n_resamples=20),
    }
    return {f"metrics.{function}": call for function, call in calls.items()}


def _picture_calls(w: World, fresh: Fresh) -> dict[str, Call]:
    box = (0.0, 0.0, 40.0, 40.0)

    def in_report() -> str:
        path, picture = fresh("report.html"), Image.fromarray(w.images[0])
        noon = datetime(2026, 1, 2, 12, tzinfo=UTC)  # the page holds the time
        with (
            patch("ipca_sklearn.inspection._report._now", lambda: noon),
            inspection.HtmlReport(path, threshold=-3.0) as page,
        ):
            given: dict[str, Any] = {"p_value": 0.4, "image": picture, "boxes": [(20, 30, 10, 10)]}
            page.add("a.png", -2.5, **given)
        return path.read_text(encoding="utf-8")

    def a_map() -> np.ndarray:
        return w["pipe"].transform(w.images[:1])[0]

    shown = {
        "AnomalyMapDisplay.from_estimator": lambda: inspection.AnomalyMapDisplay.from_estimator(
            w["pipe"], w.images[:2]
        ),
        "DriftDisplay.from_monitor": lambda: inspection.DriftDisplay.from_monitor(
            w["monitor"].update_scores(w.scores - 2)
        ),
        "ExplainedVarianceDisplay.from_estimator": lambda: inspection.ExplainedVarianceDisplay.from_estimator(w["pca"]),
        "PimoDisplay.from_predictions": lambda: inspection.PimoDisplay.from_predictions(
            w.masks, w.maps, fpr_bounds=(1e-3, 0.1)
        ),
        "ThresholdDisplay.from_estimator": lambda: inspection.ThresholdDisplay.from_estimator(w["detector"], w.new),
    }
    return {
        **{name: lambda make=make: _without_drawing(make()) for name, make in shown.items()},
        "inspection.hottest_box": lambda: inspection.hottest_box(w.maps[2], 1.0, box),
        "inspection.overlay": lambda: inspection.overlay(w["pipe"], a_map(), Image.fromarray(w.images[0])),
        "inspection.heat_layer": lambda: np.asarray(inspection.heat_layer(w["pipe"], a_map(), (64, 64))),
        "inspection.map_of_pixels": lambda: inspection.map_of_pixels(w["pipe"], a_map(), (64, 64)),
        "HtmlReport.add": in_report,
    }


def _without_drawing(display: Any) -> dict[str, Any]:
    """Return what a display draws, and close its figure: what matplotlib makes of it is not ours."""
    import matplotlib.pyplot as plt

    plt.close("all")
    return {name: value for name, value in vars(display).items() if not name.endswith("_")}


def _file_calls(w: World, fresh: Fresh) -> dict[str, Call]:
    def saved(save: Callable[..., None], load: Callable[..., Any], name: str) -> Any:
        path = fresh(name)
        save(w["pipe"], path)
        return load(path)

    def rows() -> Any:
        path = fresh("rows.csv")
        with watching.RowFile(path) as file:
            file.append({"path": "a.png", "n_bytes": 10, "modified_ns": 5, "score": -1.25, "label": 1})
            return path.read_bytes(), file.columns, list(file.image_keys())

    def watched() -> Any:
        folder = fresh("images")
        folder.mkdir()
        Image.fromarray(w.images[0]).save(folder / "a.png")
        watcher = watching.FolderWatcher(folder, settle=0, events=False)
        found = []
        with watcher, watching.RowFile(folder / "rows.csv") as file:
            for row in watching.watch(
                lambda paths: [{"score": float(value)} for value in w["pipe"].score_samples(list(paths))],
                watcher,
                file,
                monitor=w["monitor"],
            ):
                found.append(row["score"])
                watcher.stop()
        return found

    def exported() -> Any:
        return export.to_torch(w["pipe"])(torch.from_numpy(w.images).movedim(-1, 1))

    module = export.to_torch(w["pipe"])
    n = np.arange(24)[:, None]
    return {
        "persistence.save": lambda: saved(persistence.save, persistence.load, "model.joblib"),
        "persistence.load": lambda: persistence.load(w.joblib),
        "persistence.load mapped": lambda: persistence.load(w.joblib, mmap_mode="r").transform(w.new),
        "persistence.save_skops": lambda: saved(
            lambda pipe, path: persistence.save_skops(pipe[-1], path), persistence.load_skops, "model.skops"
        ),
        "persistence.load_skops": lambda: persistence.load_skops(w.skops),
        "persistence.digest_images": lambda: persistence.digest_images(w.images),
        "persistence.pixel_numbers": lambda: persistence.pixel_numbers(w.images),
        "persistence.trusted_types": lambda: persistence.trusted_types(),
        "persistence.fit_resumable": lambda: persistence.fit_resumable(
            PatchGaussianDetector(4), w.X, fresh("fit.checkpoint"), every=16
        ),
        "distributed.fit": lambda: distributed.fit(BatchedIncrementalPCA(4), [w.X[:40], w.X[40:]], n_jobs=1),
        "distributed.fit detector": lambda: distributed.fit(PatchGaussianDetector(4), [w.X[:40], w.X[32:]], n_jobs=1),
        "export.to_torch": exported,
        "export.to_torch floats": lambda: module(torch.from_numpy(w.images).movedim(-1, 1).float() / 255),
        "datasets.make_textures": lambda: datasets.make_textures(2, 2, size=64),
        "datasets.load_mvtec_ad": lambda: datasets.load_mvtec_ad(w.folder / "mvtec", "bolt"),
        "datasets.load_test_images": lambda: datasets.load_test_images(w.folder / "mvtec" / "bolt"),
        "datasets.load_magnetic_tile": lambda: datasets.load_magnetic_tile(w.folder / "tiles"),
        "OneClassKFold.split": lambda: list(model_selection.OneClassKFold(3).split(n, np.where(n[:, 0] % 4, 1, -1))),
        "OneClassKFold.get_n_splits": lambda: model_selection.OneClassKFold(3).get_n_splits(n),
        "RepeatedOneClassKFold.split": lambda: list(
            model_selection.RepeatedOneClassKFold(n_splits=3, n_repeats=2, random_state=0).split(
                n, np.where(n[:, 0] % 4, 1, -1)
            )
        ),
        "RepeatedOneClassKFold.get_n_splits": lambda: model_selection.RepeatedOneClassKFold().get_n_splits(n),
        "RowFile.append": rows,
        "watching.watch": watched,
    }


def _monitor_calls(w: World) -> dict[str, Call]:
    def watched() -> monitoring.DriftMonitor:
        return w["monitor"].update_scores(w.scores - 2)

    calls: dict[str, Call] = {
        "fit": lambda: monitoring.DriftMonitor(random_state=0).fit(w.scores),
        "from_detector": lambda: monitoring.DriftMonitor.from_detector(w["detector"], random_state=0),
        "update_scores": watched,
        "update_scores tensor": lambda: w["monitor"].update_scores(torch.from_numpy(w.scores)),
        "update": lambda: monitoring.DriftMonitor(random_state=0).fit().update(np.linspace(0, 1, 40)),
        "reset": lambda: watched().reset(),
    }
    for name in ("alarm_", "changed_since_", "direction_", "statistic_"):
        calls[name] = lambda name=name: getattr(watched(), name)
    return {f"DriftMonitor.{method}": call for method, call in calls.items()}


if __name__ == "__main__":  # in a process of its own: prints the bits of all calls
    import json

    found = {}
    for name, call in public_calls(World(Path(sys.argv[1]))).items():
        found[name] = digest(call())
    print(json.dumps(found))

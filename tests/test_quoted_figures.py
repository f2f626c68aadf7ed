"""Figures that pages quote are those of the result pages: a text made from a JSON file must stand on the page."""

from __future__ import annotations

import json
import re
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPER = "image_size=256, crop_size=224, interpolation=nearest"
PAPER_FEATURES = f"{PAPER}, normalization=imagenet, map_interpolation=nearest, pooling_size=1"


@cache
def figures(name: str) -> Any:
    return json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def text_of(page: str) -> str:
    """Return a page in one line, without bold type."""
    return re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8")).replace("**", "")


def accuracy(name: str, images: str, method: str, k: int | None, network: str = "lite0") -> dict[str, float]:
    return figures(name)["results"][f"efficientnet_{network} | {images} | {method} | {k}"]


def roc(*which: Any) -> str:
    """Return image / pixel ROCAUC in per cent."""
    found = accuracy(*which)
    return f"{found['image_roc_auc']:.1f} / {found['pixel_roc_auc']:.1f}"


def row(label: str, images: str, method: str, k: int | None, network: str = "lite0") -> str:
    """Return a row of the tables of accuracy: the size is that of leather."""
    which = (images, method, k, network)
    size = accuracy("leather_tiles", *which)["model_mb"]
    return f"| {label} | {size:.0f} | {roc('magnetic_tile', *which)} | {roc('leather_tiles', *which)} |"


def leather_k(k: int | None) -> str:
    return roc("leather_tiles", "default", "default", k)


def rival(label: str, size: str, method: str) -> str:
    of = [roc(name, "256 x 256", method, None) for name in ("magnetic_tile", "leather_tiles")]
    return f"| {label} | {size} | {of[0]} | {of[1]} |"


def other_size(method: str, size: str) -> str:
    tiles = roc("magnetic_tile", "288 x 224", method, None)
    return f"| the same, on images of our size | {size} | {tiles} | the same size |"


def one_changed(name: str, images: str, method: str | None = None, figure: str = "roc") -> str:
    """Return a figure of a page of one parameter at a time; `method` is as `images` where that has no quotes."""
    which = (f"{name}_parameters", images, method or images, None)
    return roc(*which) if figure == "roc" else f"{accuracy(*which)[figure]:.1f}"


def beside(label: str, key: str) -> str:
    """Return a row of the table of speeds; exported files do not learn."""
    value = figures("rivals_cpu")["values"][key]
    shown = [f"{value[name]:.3g}" for name in ("learning_per_s", "maps_per_s", "frame_ms")]
    if key.startswith("`to_"):
        shown[0] = ""
    shown += [f"{value['peak_mb']:.0f}", f"{value['file_mb']:.3g}", f"{value['first_s']:.2g}"]
    return re.sub(r"\s+", " ", f"| {label} | {' | '.join(shown)} |")


def of_the_network(contender: str, n_train: int) -> float:
    """Return the speed of training in per cent of that of the network alone."""
    median = {
        (one["contender"], one["n_train"]): statistics.median(run["train_images_per_s"] for run in one["runs"])
        for one in figures("end_to_end")["results"]
    }
    (network,) = (value for (of, _), value in median.items() if of == "lite0_network")
    return 100 * median[contender, n_train] / network


def few(n_images: int, method: str, name: str = "leather") -> str:
    """Return the mean image / pixel ROCAUC of fits of few images of a set."""
    draws = figures("few_images")["sets"][name][method][str(n_images)]
    return " / ".join(f"{statistics.mean(values):.1f}" for values in zip(*draws, strict=True))


def rejected_by_auto() -> list[float]:
    """Return the mean share of new normal images below the threshold of "auto" for each set, in per cent."""
    sets = figures("thresholds")["shares"].values()
    return [100 * statistics.mean(shares["prequential, images, auto"]) for shares in sets]


def latency(state: str, key: str, row: str, name: str = "latency") -> float:
    (found,) = (one for one in figures(name)["rows"] if (one["state"], one["images"], one["row"]) == (state, 1, row))
    return found[key]


IMAGENET = ("normalization=imagenet", 'normalization="imagenet"')
NEAREST = ("interpolation=nearest", 'interpolation="nearest"')
SPIN, BUSY = "`GOMP_SPINCOUNT=10000`", "2 processes that count beside it"
DEFAULT = "256 Gaussians (the default)"
TILES = "magnetic_tile"
EACH = "one for each patch, k = 16"
PADIM, PATCHCORE = "anomalib PaDiM, 100 features", "anomalib PatchCore, coreset 1 %"
AUTO = f"{min(rejected_by_auto()):.1f} to {max(rejected_by_auto()):.1f} %"
OF_THE_NETWORK = [
    of_the_network("lite0", 100),
    of_the_network("lite0", 400),
]
QUOTES = [
    (
        "docs/guide_operations.md",
        f'`amp="bfloat16"` is {roc("leather_tiles", "amp=bfloat16", "default", None)} on leather and '
        f"{roc('magnetic_tile', 'amp=bfloat16', 'default', None)} on magnetic tiles, in float32 "
        f"{roc('leather_tiles', 'default', 'default', None)} and {roc('magnetic_tile', 'default', 'default', None)}",
    ),
    ("README.md", beside("pipeline by OpenVINO", 'pipeline, engine="openvino"')),
    ("README.md", beside("`to_onnx` in onnxruntime", "`to_onnx`, onnxruntime")),
    ("README.md", beside("`to_openvino`", "`to_openvino`, OpenVINO")),
    ("README.md", beside("anomalib 2.7.0 PaDiM, torch", f"{PADIM}, torch")),
    ("README.md", beside("anomalib 2.7.0 PaDiM, ONNX in onnxruntime", f"{PADIM}, ONNX in onnxruntime")),
    (
        "README.md",
        beside(
            "anomalib 2.7.0 PatchCore, ONNX in onnxruntime", "anomalib PatchCore, coreset 10 %, ONNX in onnxruntime"
        ),
    ),
    ("README.md", row("default, EfficientNet-Lite0: 256 Gaussians, k = 96", "default", "default", None)),
    ("README.md", row("default, EfficientNet-Lite2", "default", "default", None, "lite2")),
    *(("README.md", row(f"one Gaussian for each patch, EfficientNet-Lite0, k = {k}", "default", "one per patch", k))
      for k in (16, 32)),
    (
        "docs/guide_tasks.md",
        f"image / pixel ROCAUC in per cent is {leather_k(32)} with k = 32, {leather_k(64)} with 64, "
        f"{leather_k(None)} with 96 and {leather_k(128)} with 128",
    ),
    ("README.md", rival("anomalib 2.7.0 PaDiM, 100 features, the same weights of Lite0", "165", PADIM)),
    ("README.md", rival("anomalib 2.7.0 PatchCore, coreset 1 %, the same weights", "5, leather 2", PATCHCORE)),
    ("docs/accuracy.md", rival("anomalib PaDiM (100 features), the same weights, its size", "165", PADIM)),
    (
        "docs/accuracy.md",
        rival("anomalib PatchCore (coreset 1 %), the same weights, its size", "5, leather 2", PATCHCORE),
    ),
    ("docs/accuracy.md", other_size(PADIM, "163")),
    ("docs/accuracy.md", other_size(PATCHCORE, "5")),
    *(("docs/accuracy.md", row(label, images, method, k, network))
      for label, images, method, k, network in [
          ("default, Lite0: 256 Gaussians, k = 96", "default", "default", None, "lite0"),
          ("default, Lite2", "default", "default", None, "lite2"),
          *((f"default, k = {k}", "default", "default", k, "lite0") for k in (32, 64, 128)),
          *((f"`n_gaussians={n}`", "default", f"n_gaussians={n}", None, "lite0") for n in (1024, 64, 1)),
          ('`"residual"`', "default", "residual", None, "lite0"),
          ("`margin=0`", "margin=0", "default", None, "lite0"),
          *((f"one Gaussian for each patch, k = {k}", "default", "one per patch", k, "lite0") for k in (16, 32)),
          *((f"the paper's distance, k = {k}", "default", "the paper's distance", k, "lite0") for k in (16, 32)),
          ('`covariance="full"`, 100 features (PaDiM)', "default", "our PaDiM", None, "lite0"),
          ("SubspaceAD", "default", "SubspaceAD", None, "lite0"),
          ("default", PAPER, "default", None, "lite0"),
          *((f"the paper's features and distance, k = {k}", PAPER_FEATURES, "the paper", k, "lite0") for k in (16, 32)),
      ]),
    (
        "docs/accuracy.md",
        f"no change moves a ROCAUC of the default ({one_changed('leather_tiles', 'default')}) by more than a point, "
        f"but for two: ImageNet's normalisation ({one_changed('leather_tiles', *IMAGENET)}) and 320 x 320 pixels "
        f"({one_changed('leather_tiles', 'image_size=320')}).",
    ),
    (
        "docs/accuracy.md",
        f"({one_changed('magnetic_tile', 'default')}) four do: ImageNet's normalisation "
        f"({one_changed('magnetic_tile', *IMAGENET)}), nearest neighbour ({one_changed('magnetic_tile', *NEAREST)}), "
        f"`pooling_size=1` ({one_changed('magnetic_tile', 'pooling_size=1')}), and 256 of which 224 are inspected "
        f"({one_changed('magnetic_tile', 'image_size=256, crop_size=224')}, of the centre alone). AUPRO with "
        f"320 x 320 pixels is {one_changed('magnetic_tile', 'image_size=320', figure='aupro')} for "
        f"{one_changed('magnetic_tile', 'default', figure='aupro')}.",
    ),
    (
        "docs/guide_tasks.md",
        f"with 4 images {few(4, DEFAULT)} by default, {few(4, '256 Gaussians, 7 copies')} with seven copies, "
        f"{few(4, '64 Gaussians, 7 copies')} with the copies and `n_gaussians=64`; with 16 images {few(16, DEFAULT)}, "
        f"{few(16, '256 Gaussians, 7 copies')} and {few(16, '64 Gaussians, 7 copies')}. anomalib's PatchCore: "
        f"{few(4, PATCHCORE)} and {few(16, PATCHCORE)}.",
    ),
    (
        "docs/guide_tasks.md",
        f"On the magnetic tiles (100 test images) {few(4, DEFAULT, TILES)} by default and "
        f"{few(4, '256 Gaussians, 7 copies', TILES)} with copies with 4 images, {few(16, DEFAULT, TILES)} and "
        f"{few(16, '256 Gaussians, 7 copies', TILES)} with 16; a Gaussian for each patch is as good there: "
        f"{few(4, EACH, TILES)} and {few(16, EACH, TILES)}.",
    ),
    ("docs/guide_tasks.md", f"of new normal images it rejected {AUTO} in the mean"),
    ("docs/coming_from.md", f"which {AUTO} of new normal images are below"),
    ("ipca_sklearn/detection/_patch_gaussian.py", f"{AUTO} of new normal images are below it"),
    ("ipca_sklearn/cli/_fit.py", f"which has called {AUTO} of new normal images anomalous"),
    (
        "docs/guide_tasks.md",
        f"a frame took {latency(SPIN, 'p50', 'to_torch'):.0f} ms in place of {latency('', 'p50', 'to_torch'):.0f} by "
        f"`to_torch` and {latency(SPIN, 'p50', 'pipeline'):.0f} in place of {latency('', 'p50', 'pipeline'):.0f} by "
        "the pipeline",
    ),
    (
        "docs/guide_tasks.md",
        f"the network alone was {latency(BUSY, 'p95 / p50', 'network', 'latency_busy'):.1f} times its median, and a "
        f"frame by `to_torch` took {latency(BUSY, 'p50', 'to_torch', 'latency_busy'):.0f} ms in the median; with the "
        f"variable it took {latency(f'{BUSY}, {SPIN}', 'p50', 'to_torch', 'latency_busy'):.0f}",
    ),
    (
        "docs/guide_tasks.md",
        f'(`engine="auto"`) was {latency(BUSY, "p95 / p50", "pipeline", "latency_busy"):.1f} times its median of '
        f"{latency(BUSY, 'p50', 'pipeline', 'latency_busy'):.0f} ms, and that of the ONNX file "
        f"{latency(BUSY, 'p95 / p50', 'onnx', 'latency_busy'):.1f} times "
        f"{latency(BUSY, 'p50', 'onnx', 'latency_busy'):.0f} ms",
    ),
    ("docs/dev_notes.md", "{:.0f} and {:.0f} % of the speed of the network".format(*OF_THE_NETWORK)),
    (
        "docs/dev_notes.md",
        "{:.0f}, {:.0f} and {:.0f} MB for 128, 512 and 2048".format(
            *(statistics.median(run["mb_over_imports"] for run in one["runs"])
              for one in figures("scaling_from_files")["results"])
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("page", "quote"), QUOTES)
def test_a_quoted_figure_is_that_of_the_result_page(page: str, quote: str) -> None:
    assert quote in text_of(page), f"{page} quotes other figures than docs/benchmarks: wanted {quote!r}"

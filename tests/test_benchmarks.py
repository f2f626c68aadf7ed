"""Each benchmark runs and is listed in benchmarks/README.md; its results are for benchmarks to report."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SECTIONS = ["pca", "eigensolvers", "step", "shared", "end_to_end", "engine", "paper", "scoring"]
# A question is a module, or a package with a `__main__.py`; the other packages are helpers.
QUESTIONS = sorted(
    module.name
    for module in pkgutil.iter_modules([str(BENCHMARKS)])
    if not module.ispkg or (BENCHMARKS / module.name / "__main__.py").is_file()
)

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason="benchmarks/ is part of the repository, not of a package"
)


@pytest.fixture
def importable(monkeypatch):
    """Tests that import `benchmarks` need the repository root on the path."""
    monkeypatch.syspath_prepend(str(ROOT))


def run(question, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{question}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_the_questions_are_found():
    assert {"accuracy", "end_to_end", "gpu", "paper", "pca"} <= set(QUESTIONS)
    assert "common" not in QUESTIONS


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_benchmark_says_what_it_does_and_is_in_the_readme(question, importable, monkeypatch, capsys):
    is_package = (BENCHMARKS / question).is_dir()
    module = importlib.import_module(f"benchmarks.{question}" + (".__main__" if is_package else ""))
    monkeypatch.setattr(sys, "argv", [question, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m benchmarks.{question} ")
    assert "--out" in said
    assert f"`python -m benchmarks.{question}" in (BENCHMARKS / "README.md").read_text()


def test_partitions_are_named_by_their_sizes(importable):
    from benchmarks.thresholds_few_images import sizes_of

    assert [sizes_of(text) for text in ("20x3", "40+20+80", "60")] == [(20, 20, 20), (40, 20, 80), (60,)]


def test_a_page_names_its_command_without_paths_of_the_machine(importable, tmp_path):
    from benchmarks.common.reports import argument_parser, command_line, write_results

    parser = argument_parser("benchmarks.question", "")
    parser.add_argument("images", type=Path)
    parser.add_argument("--mvtec", nargs=2)
    parser.add_argument("--pattern")
    parser.add_argument("--k", type=int, nargs="+")
    arguments = [f"{tmp_path}/a b/", "--k", "4", "8", "--pattern", "*.jpg", f"--out={tmp_path}", "--mvtec", "x/y", "y"]
    options = parser.parse_args(arguments)
    options.mvtec = (Path("x/y"), "y")
    command = command_line(options, arguments)
    assert command == "python -m benchmarks.question IMAGES --k 4 8 --pattern '*.jpg' --out=OUT --mvtec MVTEC y"

    write_results(argparse.Namespace(module="benchmarks.question", out=tmp_path), "page", "# Title\n\nText", {"a": 1})
    title, _, written, _, text = (tmp_path / "page.md").read_text().splitlines()
    assert (title, text) == ("# Title", "Text")
    assert written.startswith("Written by `python -m benchmarks.question")
    values = json.loads((tmp_path / "page.json").read_text())
    assert values.pop("command") in written
    assert values == {"a": 1}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "benchmarks").glob("*.md")), ids=lambda page: page.stem)
def test_every_result_page_names_a_benchmark(page):
    written = page.read_text().splitlines()[2]
    assert written.startswith("Written by `python -m benchmarks.") and written.endswith("`.")
    assert written.split()[4].removeprefix("benchmarks.").rstrip("`.") in QUESTIONS


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_the_accuracy_benchmark_has_scikit_learns_average_precision_and_best_f1(importable, decimals):
    from benchmarks.accuracy.evaluation import evaluate

    rng = np.random.default_rng(0)
    anomalous = rng.random(500) < 0.2
    scores = np.round(rng.normal(size=500) + anomalous, decimals)
    # The same values as scores of 500 images, and as the pixels of one.
    shape = (1, 20, 25)
    figures = evaluate(np.where(anomalous, -1, 1), scores, anomalous.reshape(shape), scores.reshape(shape))
    for what in ("image", "pixel"):
        area, best = figures[f"{what}_ap"] / 100, figures[f"{what}_f1"] / 100
        assert area == pytest.approx(average_precision_score(anomalous, scores))
        assert best == pytest.approx(max(f1_score(anomalous, scores >= threshold) for threshold in scores))


def test_a_coreset_of_the_accuracy_benchmark_takes_the_farthest_each_time(importable):
    pytest.importorskip("timm")
    from benchmarks.accuracy.rivals import choose_coreset

    vectors = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = choose_coreset(vectors, 12)
    for n in range(1, 12):
        distances = torch.cdist(vectors, chosen[:n]).amin(1)
        torch.testing.assert_close(chosen[n], vectors[distances.argmax()])


def test_the_latency_benchmark_pools_processes_and_compares_with_the_network(importable):
    from benchmarks.latency.__main__ import State, summary, tables
    from benchmarks.latency.calls import groups_of, milliseconds

    results = {
        "": {
            "network": {"ms": {"1": [[1.0, 3.0], [2.0]], "4": [[4.0]]}},
            "pipeline": {"ms": {"1": [[3.0] * 99, [9.0]], "4": [[5.0]]}},
            "compiled": {"ms": {}, "skipped": "no compiler"},
        },
        State(2, short_spin=True).title: {"pipeline": {"ms": {"1": [[10.0, 40.0]]}}},
    }
    rows = summary(results)
    one = next(row for row in rows if row["row"] == "pipeline" and row["images"] == 1 and not row["state"])
    assert (one["p50"], one["p95"], one["of the network"], one["medians"]) == (3.0, 3.0, 1.5, [3.0, 9.0])
    assert one["p99"] == pytest.approx(np.percentile([3.0] * 99 + [9.0], 99))
    text = tables(rows)
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## One image",
        "## 4 images at once",
        "## One image, 2 processes that count beside it, `GOMP_SPINCOUNT=10000`",
    ]
    assert text.count("no compiler") == 2
    assert "| pipeline, numpy array | 25 | 38.5 |" in text

    given = []
    assert len(milliseconds(given.append, ["a", "b"], 2, 3)) == 3
    assert given == ["a", "b", "a", "b", "a"]
    assert groups_of(["a", "b", "c"], 2) == [["a", "b"], ["c", "a"]]
    np.testing.assert_array_equal(groups_of(np.arange(3), 4), [[0, 1, 2, 0]])


def test_processes_that_keep_the_machine_busy_end_with_the_block(importable, monkeypatch):
    from benchmarks.latency.__main__ import busy

    begun = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args: begun.append(popen(*args)) or begun[-1])
    with pytest.raises(ZeroDivisionError), busy(2):
        assert [process.poll() for process in begun] == [None, None]
        raise ZeroDivisionError
    assert all(process.poll() is not None for process in begun)


def test_all_sections_of_the_gpu_benchmark_work_at_tiny_sizes(tmp_path):
    done = run("gpu", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(sections) == SECTIONS
    for name, section in sections.items():
        assert section["status"] == "complete", (name, section["error"])
        assert section["rows"]
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("\n## ") == len(SECTIONS)
    assert "Written by `python -m benchmarks.gpu --smoke --out OUT`." in text
    done = run("gpu.verdict", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| PCA alone, k = 16, steps of 16: images/s | >= 10000 |  | not measured |" in done.stdout
    assert "| float32 | 8 | " in done.stdout and "never the fastest, so to be deleted: " in done.stdout


def test_the_verdict_on_a_gpu_run_ranks_the_right_eigensolvers_and_checks_the_goals(importable):
    from benchmarks.gpu.verdict import verdict

    def solver(name, ms, orthogonality=1e-6):
        return {"dtype": "float32", "n": 80, "solver": name, "ms": ms, "orthogonality": orthogonality}

    sections = {
        "eigensolvers": [
            solver("fast and wrong", [0.1, 0.1, 0.2], 0.5),
            solver("ipca_sklearn triton", [2.0, 1.0, 1.5]),
            solver("torch eigh, one call", 2.4),
            {"dtype": "float32", "n": 80, "solver": "numba", "remark": "not run: numba compiles for the CPU"},
            {"dtype": "float32", "n": 80, "solver": "broken", "error": "RuntimeError"},
        ],
        "pca": [
            {"method": "ours", "m": 256, "k": k, "b": 16, "images_per_s": speed}
            for k, speed in ((16, [12_000, 11_000, 13_000]), (64, [3000]))
        ],
        "shared": [
            {"task": "update_scatter", "images": 16, "images_per_s": [9000], "deviation": 1e-3},
            {"task": "PatchGaussianDetector", "images": 16, "images_per_s": [3000]},
            {"task": "finalize_scatter", "ms": [40, 50, 60]},
        ],
        "engine": [{"learning": [2000], "maps": [6000]}, {"learning": [3100], "maps": [100]}],
        "end_to_end": [{"what": "training", "images_per_s": [3500], "inference": [4000]}, {"what": "network"}],
        "step": [
            {"task": "PatchGaussianDetector", "k": 16, "peak_mb": 500, "cudaStreamSynchronize": 2, "copies to host": 1}
        ],
    }
    results = {
        "environment": "a GPU",
        "sections": {name: {"status": "complete", "rows": rows} for name, rows in sections.items()},
    }
    text = verdict(results)
    assert "| float32 | 80 | ipca_sklearn triton | 1.5 | 1.60 times torch eigh, one call |" in text
    assert "- wrong, whatever their speed: fast and wrong, float32, n = 80: deviates by 0.5" in text
    assert "- never the fastest, so to be deleted: torch eigh, one call" in text
    assert "at best 1.60 times as fast as the next: it stays where it gains" in text
    found = [line.removesuffix(" |").rpartition(" | ")[2] for line in text.splitlines() if ">=" in line or "<=" in line]
    assert found == [
        "reached",
        "missed",
        "reached",
        "missed",
        "missed",
        "reached",
        "reached",
        "missed",
        *3 * ["reached"],
    ]
    assert "Not measured." in verdict({"environment": "", "sections": {}})


def test_a_section_that_kills_its_worker_leaves_the_others_alone(importable, tmp_path):
    from benchmarks.gpu.sections import Supervisor

    worker = tmp_path / "worker.py"
    worker.write_text(
        """
import argparse, os
from benchmarks.gpu.sections import Config, NotApplicableError, Section, work

def cells(config):
    yield {"cell": 1}, lambda: {"value": [1.0, 2.0]}
    yield {"cell": 2}, lambda: 1 / 0
    def refuse():
        raise NotApplicableError("no reason")
    yield {"cell": 3}, refuse

def crash(config):
    yield {"cell": 1}, lambda: {"value": 1.0}
    yield {"cell": 2}, lambda: os._exit(9)

parser = argparse.ArgumentParser()
parser.add_argument("--worker")
parser.add_argument("--sections", nargs="+")
options = parser.parse_args()
known = {"crash": crash, "cells": cells}
sections = [Section(name, name, "", 30, known[name]) for name in options.sections]
with open(options.worker, "a") as stream:
    work(sections, Config("cpu", True), "here", stream)
"""
    )
    supervisor = Supervisor([sys.executable, str(worker)], ["crash", "cells"], 60)
    reports = []
    supervisor.run(lambda: reports.append(supervisor.as_markdown("# Title")))
    crash, cells = supervisor.outcomes["crash"], supervisor.outcomes["cells"]
    assert crash.status == "failed" and "9" in crash.error and crash.rows == [{"cell": 1, "value": 1.0}]
    assert cells.status == "failed" and "ZeroDivisionError" in cells.rows[1]["error"]
    assert cells.rows[2] == {"cell": 3, "remark": "not run: no reason"}
    assert "1.5 (1 - 2)" in reports[-1]


def test_stages_are_timed_without_those_inside_them(importable, monkeypatch):
    from benchmarks import costs

    now = iter([0.0, 1.0, 3.0, 10.0])  # the outer one begins, the inner one takes 2 s, the outer one ends
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(now))
    clock = costs.Clock()
    clock.timed("outer", clock.timed("inner", lambda: None))()
    assert clock.ms == {"inner": 2000, "outer": 8000}


def test_the_goals_of_costs_are_compared_with_what_was_reached(importable):
    from benchmarks import costs

    def run(learning, frame, **more):
        return {
            "learning, images/s": [learning],
            "maps, images/s": [100.0],
            "a frame, ms": {"p50": frame},
            "its features, ms": {"p50": 10.0},
            "peak of a fit, MB": [300.0],
            "first score after learning, s": [1.5, 0.5, 0.7],
        }

    parts = {f"distances of {n}, ms an image": {"p50": 2.5} for n in (1, 8)} | {"file, MB": [20.0]}
    parts[f"learning features of {costs.N_MANY} images, ms an image"] = [5.5]
    starts = {"imports": [1.0], "fit": [6.5], "predict": [3.0]}
    rows = costs.goals({"other checkout": run(20.0, 20.0), "openvino": run(40.0, 11.0)}, parts, starts)
    assert "".join("+" if row[3] == "reached" else "-" for row in rows) == "++++--+-++--"
    assert rows[6][1:3] == ["<= 1.35", "1.25"] and rows[-1][1:3] == ["<= 0.5", "0.55"]


def test_the_table_beside_rivals_says_who_is_ahead_and_which_goals_are_missed(importable):
    from benchmarks.rivals_cpu.__main__ import ROWS, table, verdict

    def figures(speed, ms):
        return {"frame_ms": [ms], "maps_per_s": speed, "peak_mb": 1.0, "file_mb": 2.0, "first_s": 3.0}

    ours, theirs = 'pipeline, engine="auto"', "anomalib PaDiM, 100 features, torch"
    results = {
        "learning auto 0": {"learning_per_s": 60, "learning_mb": 5, "skipped": {}},
        "learning padim 0": {"learning_per_s": 10, "learning_mb": 4, "skipped": {"onnx": "no operator"}},
        f"{ours} 0": figures(50.0, 12.0),
        f"{theirs} 0": figures(40.0, 20.0),
    }
    text, values = table(results)
    assert list(values) == [ours, theirs] and set(values) <= set(ROWS)
    assert "not exported: no operator" in text
    said = verdict(values)
    assert "6 times, reached" in said and "0.6 times, missed" in said
    assert said.count("**behind**") == 1  # the peak of learning

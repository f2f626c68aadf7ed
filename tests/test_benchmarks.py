"""The scripts in benchmarks/ run; what they measure is for benchmarks to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks"
SECTIONS = ["pca", "eigensolvers", "step", "end_to_end", "paper", "scoring"]

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="benchmarks/ is part of the repository, not of a package")


def run(script, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    "script", ["pca.py", "scaling.py", "end_to_end.py", "gpu.py", "leather.py", "paper.py", "thresholds.py"]
)
def test_every_script_says_what_it_does(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_all_sections_of_the_gpu_benchmark_work_at_tiny_sizes(tmp_path):
    done = run("gpu.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(sections) == SECTIONS
    for name, section in sections.items():
        assert section["status"] == "complete", (name, section["error"])
        assert section["rows"]
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("\n## ") == len(SECTIONS)


def test_a_section_that_kills_its_worker_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _sections import Supervisor

    worker = tmp_path / "worker.py"
    worker.write_text(
        f"""
import argparse, os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
from _sections import Config, NotApplicableError, Section, work

def cells(config):
    yield {{"cell": 1}}, lambda: {{"value": [1.0, 2.0]}}
    yield {{"cell": 2}}, lambda: 1 / 0
    def refuse():
        raise NotApplicableError("no reason")
    yield {{"cell": 3}}, refuse

def crash(config):
    yield {{"cell": 1}}, lambda: {{"value": 1.0}}
    yield {{"cell": 2}}, lambda: os._exit(9)

parser = argparse.ArgumentParser()
parser.add_argument("--worker")
parser.add_argument("--sections", nargs="+")
options = parser.parse_args()
known = {{"crash": crash, "cells": cells}}
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

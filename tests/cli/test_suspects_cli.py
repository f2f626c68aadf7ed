"""`fit --trim`, `--report` and `--reviewed`: training images that are not all good, told, left out and ticked."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.cli import app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.persistence import load

SETTINGS = ["--image-size", "64", "--crop-size", "64", "--k", "4", "--gaussians", "16", "--device", "cpu"]


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 textures, of which one has a white square, and one is another one, saved again with loss."""
    folder = tmp_path_factory.mktemp("mixed") / "train"
    folder.mkdir()
    images = np.array([np.squeeze(image) for image in make_textures(24, 0, size=64, random_state=0).train_images])
    images[7, 20:40, 20:40] = 255
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    Image.fromarray(images[3]).save(folder / "twin.jpg", quality=90)
    return folder


def test_a_report_lists_the_most_suspicious_image_first_and_names_near_duplicates(folder, tmp_path):
    report = tmp_path / "suspects.html"
    said = run("fit", folder, "-o", tmp_path / "m.joblib", "--report", report, *SETTINGS).output
    assert re.search(r"1 of 25 training images stand out .*: \S*07\.png", said)
    assert re.search(r"1 of 25 training images are nearly the same as others: \S*(twin\.jpg|03\.png)\n", said)
    rows = re.search(r'id="rows">(\[.*?\n\])</script>', report.read_text(), re.DOTALL)
    assert rows is not None
    notes = [row["note"] for row in json.loads(rows[1]) if row["note"] is not None]
    assert len(notes) == 1 and re.fullmatch(r"nearly the same as \S*(twin\.jpg|03\.png)", notes[0])
    names = [Path(row["name"]).name for row in json.loads(rows[1])]
    assert names[0] == "07.png" and len(names) == 25
    assert load(tmp_path / "m.joblib")[-1].n_samples_seen_ == 25


@pytest.mark.parametrize("options", [[], ["--trim", "auto", "--report", "report.html"]], ids=str)
def test_the_extractor_is_fitted_once(folder, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    fit = PatchFeatureExtractor.fit
    with mock.patch.object(PatchFeatureExtractor, "fit", autospec=True, side_effect=fit) as fits:
        run("fit", folder, "-o", "m.joblib", *options, *SETTINGS)
    assert fits.call_count == 1


@pytest.mark.parametrize("trim", ["auto", "0.04"])
def test_what_is_trimmed_is_not_learnt_and_update_goes_on_without_trimming(folder, tmp_path, trim):
    model = tmp_path / "m.joblib"
    said = run("fit", folder, "-o", model, "--trim", trim, *SETTINGS).output
    assert re.search(r"1 of 25 training images were left out: \S*07\.png", said)
    pipe = load(model)
    assert pipe[-1].n_samples_seen_ == 24 and not list(tmp_path.glob("*checkpoint*"))
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "new.png")
    run("update", model, tmp_path / "new.png", folder)
    assert load(model)[-1].n_samples_seen_ == 25  # what was left out stays so


def test_ticked_defects_are_not_learnt(folder, tmp_path):
    ticks = tmp_path / "ticks.csv"
    with ticks.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], [folder / "07.png", "defect"], [folder / "02.png", "good"]])
    run("fit", folder, "-o", tmp_path / "m.joblib", "--reviewed", ticks, *SETTINGS)
    assert load(tmp_path / "m.joblib")[-1].n_samples_seen_ == 24


@pytest.mark.parametrize("trim", ["0.5", "-0.1", "all", "nan"])
def test_a_trim_that_is_no_share_below_a_half_is_refused_by_its_option(folder, tmp_path, trim):
    done = run("fit", folder, "-o", tmp_path / "m.joblib", "--trim", trim, *SETTINGS, code=1)
    assert "--trim" in done.output and not list(tmp_path.iterdir())

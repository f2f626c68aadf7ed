"""Parts that do not lie alike, from the command line: images that show none are told, in warnings, columns, reports."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import app

SIDE = 96


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def picture(path, seed, *, part=True):
    """A plate with a bright corner on dark ground, moved by some pixels; or the ground alone."""
    random = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE), 50.0)
    if part:
        top, left = random.integers(20, 30, 2)
        pixels[top : top + 44, left : left + 50] = 150
        pixels[top : top + 15, left : left + 12] = 230
    pixels += random.normal(0, 3, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("align")
    for number in range(20):
        picture(root / "train" / "good" / f"{number:02d}.png", number)
    for number in range(2):
        picture(root / "test" / "good" / f"{number}.png", 30 + number)
        picture(root / "test" / "empty" / f"{number}.png", 40 + number, part=False)
    done = run("fit", root / "train", "-o", root / "model.joblib", *SETTINGS)
    assert "could not be aligned" not in done.stderr
    return root


SETTINGS = ["--align", "translation", "--region", "auto", "--image-size", SIDE, "--k", "4", "--device", "cpu"]


def test_an_image_without_a_part_is_anomalous_and_told(root, tmp_path):
    table, page = tmp_path / "rows.csv", tmp_path / "page.html"
    done = run("predict", root / "model.joblib", root / "test", "-o", table, "--report", page, "--maps", tmp_path / "m")
    assert "2 of 4 images could not be aligned" in done.stderr and "may show no part" in done.stderr
    with table.open(newline="") as file:
        rows = {row["path"][len(str(root / "test")) + 1 :]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        is_empty = name.startswith("empty")
        assert row["aligned"] == str(not is_empty)
        assert row["label"] == "-1" or not is_empty
        assert int(row["defect_area"]) > 500 or not is_empty  # no map of zeros
    notes = re.findall(r"no part was found \(correlation with the mean image -?0\.\d\d\)", page.read_text())
    assert len(notes) == 2


def test_evaluate_tells_of_images_without_a_part(root):
    done = run("evaluate", root / "model.joblib", root, "--json")
    assert "2 of 4 images could not be aligned" in done.stderr
    json.loads(done.stdout)


def test_fit_of_images_without_a_part_tells_what_to_do(tmp_path):
    for number in range(20):
        picture(tmp_path / "empty" / f"{number:02d}.png", number, part=False)
    done = run("fit", tmp_path / "empty", "-o", tmp_path / "model.joblib", *SETTINGS)
    assert "--align 'translation': the part was found in 1 of the first 16 images only" in done.stderr
    assert "images that show no part should be taken out" in done.stderr
    assert "--region 'auto': the part is not known" in done.stderr

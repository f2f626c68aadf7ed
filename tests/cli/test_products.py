"""Folders of several products, and two models on the same images, as a user runs them."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import ProductRouter
from ipca_sklearn.cli import app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.metrics import compare_scores
from ipca_sklearn.persistence import load

runner = CliRunner()
SETTINGS = ["--image-size", "64", "--k", "4", "--gaussians", "16", "--device", "cpu"]


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.squeeze(image)).save(path)


def run(*arguments, code=0):
    done = runner.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder for each of two products, one in MVTec AD's layout, and a model of them."""
    root = tmp_path_factory.mktemp("cli") / "line"
    for material in ("fabric", "wood"):
        data = make_textures(24, 8, material=material, size=64)
        good = root / material / ("train/good" if material == "fabric" else "")
        for index, image in enumerate(data.train_images):
            save_image(good / f"{index}.png", image)
        folder = root.parent / "new" / material
        for index, (image, mask, kind) in enumerate(
            zip(data.test_images, data.test_masks, data.defect_types, strict=True)
        ):
            save_image(folder / "test" / str(kind) / f"{index}.png", image)
            if kind != "good":
                save_image(folder / "ground_truth" / str(kind) / f"{index}_mask.png", (255 * mask).astype(np.uint8))
    done = run("fit", root, "--products", "-o", root.parent / "line.joblib", *SETTINGS)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r".*line\.joblib: 2 products, \d+\.\d MB", lines[1])  # the size is that of both
    assert [lines[2], lines[4]] == ["fabric: 24 images learnt", "wood: 24 images learnt"]
    return root.parent


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_a_model_of_folders_is_that_of_the_router(root):
    pipe = load(root / "line.joblib")
    assert isinstance(pipe[-1], ProductRouter)
    assert {name: part.n_samples_seen_ for name, part in pipe[-1].detectors_.items()} == {"fabric": 24, "wood": 24}


def test_a_folder_of_products_without_the_option_is_one_model_and_says_so(tmp_path):
    for index, image in enumerate(make_textures(6, 0, material="wood", size=64).train_images):
        save_image(tmp_path / "line" / ("bolt", "nut")[index % 2] / f"{index}.png", image)
    said = f"{tmp_path / 'line'} holds images in 2 folders, and one model learns them all"
    assert said in run("fit", tmp_path / "line", "-o", tmp_path / "m.joblib", *SETTINGS).stdout
    assert load(tmp_path / "m.joblib")[-1].n_samples_seen_ == 6
    save_image(tmp_path / "line" / "loose.png", image)
    assert said not in run("fit", tmp_path / "line", "-o", tmp_path / "m.joblib", *SETTINGS).stdout


def test_predict_names_the_product_of_each_image(root, tmp_path):
    images = sorted((root / "new").glob("*/test/*/*.png"))
    stranger = tmp_path / "noise.png"
    save_image(stranger, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    done = run("predict", root / "line.joblib", *images, stranger, "--device", "cpu")
    rows, pipe = rows_of(done.stdout), load(root / "line.joblib")
    routed = pipe[-1].route(pipe[0].transform([*images, stranger]))
    assert [row["product"] for row in rows[:-1]] == [
        name if known else "" for name, known in zip(routed.products[:-1], routed.is_known[:-1], strict=True)
    ]
    assert {row["product"] for row in rows if "fabric" in row["path"]} <= {"fabric", ""}
    assert (rows[-1]["product"], rows[-1]["label"]) == ("", "-1")
    assert "of 17 images show no product that was learnt" in done.stderr
    np.testing.assert_allclose([float(row["score"]) for row in rows], routed.scores, rtol=1e-5)
    np.testing.assert_array_equal([int(row["label"]) for row in rows], routed.labels)


def test_predict_of_a_given_product_is_that_of_its_detector(root):
    images = sorted((root / "new" / "wood").glob("test/*/*.png"))
    done = run("predict", root / "line.joblib", *images, "--product", "wood", "--device", "cpu")
    pipe = load(root / "line.joblib")
    rows = rows_of(done.stdout)
    assert {row["product"] for row in rows} == {"wood"}
    n_other = sum(~pipe[-1].route(pipe[0].transform(images), "wood").is_known)
    assert f"\n{n_other} of {len(images)} images do not look like product wood\n" in done.stderr
    own = pipe[-1].detectors_["wood"]
    features = pipe[0].transform(images)
    np.testing.assert_allclose([float(row["score"]) for row in rows], own.score_samples(features), rtol=1e-5)
    assert [int(row["label"]) for row in rows] == own.predict(features).tolist()


def test_maps_masks_and_the_report_are_drawn_by_the_detector_of_each_image(root, tmp_path):
    options = ["--maps", tmp_path / "maps", "--masks", tmp_path / "masks", "--report", tmp_path / "report.html"]
    run("predict", root / "line.joblib", root / "new", "-o", tmp_path / "rows.csv", *options, "--device", "cpu")
    assert len(list((tmp_path / "maps").iterdir())) == len(rows_of((tmp_path / "rows.csv").read_text())) > 16
    page = (tmp_path / "report.html").read_text()
    assert '"threshold": 0.0' in page
    shown = re.search(r'id="rows">(\[.*?\n\])</script>', page, re.DOTALL)
    assert shown is not None
    of_path = {row["path"]: row for row in rows_of((tmp_path / "rows.csv").read_text())}
    for row in json.loads(shown[1]):
        product, label = (of_path[row["name"]][column] for column in ("product", "label"))
        assert row["note"].startswith(f"product: {product}" if product else "no product that was learnt; nearest: ")
        assert label == ("-1" if row["anomalous"] or row["score"] < 0 else "1")


def test_one_product_learns_more_and_the_other_stays(root, tmp_path):
    more = tmp_path / "more"
    for index, image in enumerate(make_textures(6, 1, material="wood", size=64, random_state=5).train_images):
        save_image(more / f"{index}.png", image)
    shutil.copy(root / "line.joblib", tmp_path / "line.joblib")
    run("update", tmp_path / "line.joblib", more, "--product", "wood", "--device", "cpu")
    before, after = load(root / "line.joblib")[-1].detectors_, load(tmp_path / "line.joblib")[-1].detectors_
    assert after["wood"].n_samples_seen_ == 30
    np.testing.assert_array_equal(after["fabric"].pca_.components_, before["fabric"].pca_.components_)
    again = run("update", tmp_path / "line.joblib", more, "--product", "wood", "--device", "cpu")
    assert "learnt already" in again.stdout
    run("threshold", tmp_path / "line.joblib", "--score", "-9", "--product", "wood", "--device", "cpu")
    changed = load(tmp_path / "line.joblib")[-1].detectors_
    assert changed["wood"].offset_ == -9 and changed["fabric"].offset_ == before["fabric"].offset_


def test_info_and_evaluate_take_a_product(root):
    told = json.loads(run("info", root / "line.joblib", "--json").stdout)["products"]
    assert told["wood"]["images learnt"] == 24
    assert "wood: images learnt 24" in run("info", root / "line.joblib").stdout
    assert json.loads(run("info", root / "line.joblib", "--json", "--product", "wood").stdout)["images learnt"] == 24
    done = run(
        "evaluate", root / "line.joblib", root / "new" / "wood", "--product", "wood", "--json", "--device", "cpu"
    )
    assert json.loads(done.stdout)["n_normal"] == 4


def test_what_is_no_folder_of_products_is_refused_by_name(root, tmp_path):
    shutil.copytree(root / "line", tmp_path / "line")
    (tmp_path / "line" / "empty").mkdir()
    done = run("fit", tmp_path / "line", "--products", "-o", tmp_path / "m.joblib", code=1)
    assert re.search(
        r"--products: no images in \S*empty; .*\. Put good images of the product there, or remove", done.stderr
    )
    (tmp_path / "line" / "empty").rmdir()
    shutil.copy(tmp_path / "line" / "wood" / "0.png", tmp_path / "line" / "0.png")
    done = run("fit", tmp_path / "line", "--products", "-o", tmp_path / "m.joblib", code=1)
    assert "0.png lies beside the folders of products" in done.stderr
    done = run("fit", tmp_path / "line" / "wood", "--products", "-o", tmp_path / "m.joblib", code=1)
    assert "holds no folder" in done.stderr or "lies beside" in done.stderr
    assert not (tmp_path / "m.joblib").exists()


def test_products_that_a_model_does_not_have_are_refused(root):
    done = run("predict", root / "line.joblib", root / "new", "--product", "stone", code=1)
    assert "--product 'stone'" in done.stderr and "'fabric', 'wood'" in done.stderr
    done = run("evaluate", root / "line.joblib", root / "new" / "wood", code=1)
    assert "name one with --product" in done.stderr


@pytest.fixture(scope="module")
def two_models(root):
    """A model of few images, and one of all."""
    good = root / "line" / "fabric" / "train" / "good"
    few = [good / f"{index}.png" for index in range(6)]
    run("fit", *few, "-o", root / "few.joblib", *SETTINGS)
    run("fit", good, "-o", root / "all.joblib", *SETTINGS)
    return root / "few.joblib", root / "all.joblib"


def test_compare_prints_and_draws_what_the_function_says(root, two_models, tmp_path):
    arguments = ["compare", *two_models, root / "new" / "fabric", "--device", "cpu"]
    told = json.loads(run(*arguments, "--json").stdout)
    pipes = [load(path) for path in two_models]
    images = sorted((root / "new" / "fabric" / "test").glob("*/*.png"))
    labels = [1 if path.parent.name == "good" else -1 for path in images]
    alone = compare_scores(labels, *(pipe.score_samples(images) for pipe in pipes))["defects"][0]["measures"]
    rows = {row["measure"]: row for row in told["defects"][0]["measures"]}
    for row in alone:
        assert rows[row["measure"]]["difference"] == pytest.approx(row["difference"], abs=1e-6)
        assert rows[row["measure"]]["interval"] == pytest.approx(row["interval"], abs=1e-6)
    assert {"found", "false_positive_rate", "pixel_roc_auc", "region_f1", "aupro"} <= set(rows)
    done = run(*arguments, "--picture", tmp_path / "compared.png")
    assert "image ROCAUC" in done.stdout and "DeLong" in done.stdout
    assert Image.open(tmp_path / "compared.png").size[0] > 1000


def test_models_of_different_parts_of_the_images_have_no_figures_of_pixels(root, two_models, tmp_path):
    good = root / "line" / "fabric" / "train" / "good"
    run("fit", good, "-o", tmp_path / "centre.joblib", *SETTINGS, "--crop-size", "48")
    done = run("compare", two_models[1], tmp_path / "centre.joblib", root / "new" / "fabric", "--json")
    assert "different parts" in done.stderr
    measures = [row["measure"] for row in json.loads(done.stdout)["defects"][0]["measures"]]
    assert "image_roc_auc" in measures and "pixel_roc_auc" not in measures

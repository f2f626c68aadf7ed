"""Lists of defects in files, as other programs read them."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import app
from ipca_sklearn.cli._annotations import DefectLines, coco_file, labelme_names, write_labelme
from ipca_sklearn.detection import find_defects
from ipca_sklearn.persistence import load

BOX = (60, 200, 40, 80)  # of the square that the second image shows


def filled(polygons, size):
    """Return the pixels whose centres lie in one of some polygons of x and y, by the even-odd rule."""
    inside = np.zeros(size, dtype=bool)
    for points in polygons:
        (x, y), (x2, y2) = np.transpose(points), np.roll(points, -1, axis=0).T
        for row in range(size[0]):
            crosses = (y <= row) != (y2 <= row)
            at = x[crosses] + (row + 0.5 - y[crosses]) / (y2 - y)[crosses] * (x2 - x)[crosses]
            inside[row] |= (at[:, None] > np.arange(size[1]) + 0.5).sum(axis=0) % 2 == 1
    return inside


def of_coco(annotation, size):
    return filled([np.reshape(points, (-1, 2)) for points in annotation["segmentation"]], size)


@given(hnp.arrays(bool, (3, 5, 6)), st.integers(1, 3))
def test_a_coco_file_gives_the_masks_back(tmp_path_factory, marked, scale):
    folder = tmp_path_factory.getbasetemp()
    paths = [folder / "images" / name for name in ("a.png", "deep/b.png", "c.png")]
    size = 5 * scale, 6 * scale
    found = find_defects(marked, 0.5, image_sizes=size, normal_maxima=[0, 1, 2])
    with coco_file(folder / "coco.json", paths) as add:
        for path, defects in zip(paths, found, strict=True):
            add(path, size, defects)
    coco = json.loads((folder / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "deep/b.png", "c.png"]
    assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, sum(map(len, found)) + 1))
    assert [category["id"] for category in coco["categories"]] == [1]
    for image, defects, mask in zip(coco["images"], found, marked, strict=True):
        assert (image["height"], image["width"]) == size
        own = [annotation for annotation in coco["annotations"] if annotation["image_id"] == image["id"]]
        assert len(own) == len(defects)
        painted = np.zeros(size, int)
        for annotation in own:
            one = of_coco(annotation, size)
            painted += one
            rows, columns = np.nonzero(one)
            left, top, width, height = annotation["bbox"]
            assert (top, left) == (rows.min(), columns.min())
            assert (height, width) == (rows.max() + 1 - top, columns.max() + 1 - left)
            assert annotation["area"] == one.sum() and annotation["iscrowd"] == 0
            assert annotation["score"] == 1 and annotation["p_value"] == 3 / 4
        np.testing.assert_array_equal(painted, np.kron(mask, np.ones((scale, scale), int)))


def test_a_coco_file_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "coco.json").write_text("old")
    with pytest.raises(RuntimeError), coco_file(tmp_path / "coco.json", [tmp_path / "a.png"]):
        raise RuntimeError
    assert (tmp_path / "coco.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]


def test_labelme_finds_the_image_and_parts_of_one_defect_are_a_group(tmp_path):
    maps = np.zeros((1, 4, 4))
    maps[0, 0, 0] = maps[0, 0, 2] = maps[0, 3, 3] = 1
    (defects,) = find_defects(maps, 0.5, image_sizes=(40, 40), merge_distance=10, normal_maxima=[])
    (tmp_path / "in").mkdir()
    write_labelme(tmp_path / "out" / "a.json", tmp_path / "in" / "a.png", (40, 40), defects)
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    assert content["imagePath"] == "../in/a.png" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (40, 40)
    groups = [shape["group_id"] for shape in content["shapes"]]
    assert groups[0] == groups[1] is not None and groups[2] is None
    np.testing.assert_array_equal(
        filled([shape["points"] for shape in content["shapes"]], (40, 40)), np.kron(maps[0], np.ones((10, 10)))
    )


def test_files_of_labelme_have_the_names_of_the_images_unless_two_have_one():
    images = [Path("x/a.png"), Path("y/A.jpg"), Path("y/b.png")]
    assert labelme_names(images) == ["000001_a.json", "000002_A.json", "b.json"]


def test_no_file_of_labelme_takes_the_numbered_name_of_another_or_one_too_long():
    long = "x" * 251  # with .png the longest name of a file, with .json one byte more
    images = [Path("x/a.png"), Path("y/a.png"), Path("y/000001_a.png"), Path(f"y/{long}.png")]
    names = labelme_names(images)
    assert names[:3] == ["000001_a.json", "000002_a.json", "000003_000001_a.json"]
    assert names[3] == f"000004_{'x' * 243}.json" and len(names[3]) == 255


def test_names_that_are_no_text_are_written_as_json(tmp_path):
    path = tmp_path / "caf\udce9.png"
    with coco_file(tmp_path / "coco.json", [path]) as add, ExitStack() as stack:
        add(path, (4, 4), [])
        DefectLines(tmp_path / "d.jsonl", stack).write(
            {"path": str(path), "size": (4, 4), "defects": [], "error": None}
        )
    assert json.loads((tmp_path / "coco.json").read_text())["images"][0]["file_name"] == path.name
    assert json.loads((tmp_path / "d.jsonl").read_text())["path"] == str(path)


def test_appended_lines_follow_whole_ones(tmp_path):
    path = tmp_path / "d.jsonl"
    row = {"path": "a.png", "size": (4, 4), "defects": [], "error": None}
    for left in ("", '{"path": "b.p', '{"path": "' + 200_000 * "b"):
        path.write_text(path.read_text() + left if path.exists() else left)
        with ExitStack() as stack:
            DefectLines(path, stack, append=True).write(row)
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == 3 * ["a.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of noise of 120 x 160, and images of 240 x 320: noise, the same with a square, and no image."""
    place = tmp_path_factory.mktemp("annotations")
    rng = np.random.default_rng(0)
    (place / "good").mkdir()
    (place / "new").mkdir()
    for number in range(26):
        pixels = rng.integers(120, 136, (120, 160, 3), dtype=np.uint8)
        if number < 24:
            Image.fromarray(pixels).save(place / "good" / f"{number}.png")
            continue
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
        if number == 25:
            top, left, height, width = BOX
            pixels[top : top + height, left : left + width] = 0
        Image.fromarray(pixels).save(place / "new" / f"{number}.png")
    (place / "new" / "broken.png").write_bytes(b"no image")
    invoke(place, "fit", "good", "-o", "model.joblib", "--crop-size", "96x128", "--image-size", "120x160", "--k", "4")
    return place


def invoke(place, *arguments, code=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert done.exit_code == code, done.output
    return done


def test_all_outputs_have_the_same_defects_at_the_place_of_the_square(place, tmp_path):
    out = {name: tmp_path / name for name in ("rows.csv", "d.jsonl", "c.json", "labelme", "masks", "maps", "r.html")}
    options = ["-o", out["rows.csv"], "--defects", out["d.jsonl"], "--export-coco", out["c.json"], "--min-area", 200]
    options += ["--export-labelme", out["labelme"], "--masks", out["masks"], "--maps", out["maps"]]
    done = invoke(
        place, "predict", "model.joblib", "new", *options, "--maps-format", "npy", "--report", out["r.html"], code=3
    )
    assert "1 of 3 images cannot be read" in done.stderr
    rows = list(csv.DictReader(out["rows.csv"].open(newline="")))
    lines = [json.loads(line) for line in out["d.jsonl"].read_text().splitlines()]
    coco = json.loads(out["c.json"].read_text())
    assert [Path(row["path"]).name for row in rows] == ["24.png", "25.png", "broken.png"]
    assert [image["file_name"] for image in coco["images"]] == ["24.png", "25.png"]
    assert lines[2]["defects"] is None and "broken.png" in lines[2]["error"] and rows[2]["n_defects"] == ""
    page = out["r.html"].read_text()
    for index in range(2):
        row, defects = rows[index], lines[index]["defects"]
        name = f"{index + 1:06d}_{24 + index}"
        mask = np.asarray(Image.open(out["masks"] / f"{name}.png"))
        assert lines[index]["size"] == list(mask.shape) == [240, 320]
        assert int(row["n_defects"]) == len(defects)
        assert int(row["defect_area"]) == sum(d["area"] for d in defects) == np.count_nonzero(mask)
        annotations = [a for a in coco["annotations"] if a["image_id"] == index + 1]
        assert [a["bbox"] for a in annotations] == [[d["left"], d["top"], d["width"], d["height"]] for d in defects]
        painted = sum((of_coco(a, (240, 320)) for a in annotations), np.zeros((240, 320), int))
        np.testing.assert_array_equal(painted * 255, mask)
        shapes = json.loads((out["labelme"] / f"{24 + index}.json").read_text())["shapes"]
        np.testing.assert_array_equal(filled([shape["points"] for shape in shapes], (240, 320)), mask > 0)
        values = np.load(out["maps"] / f"{name}.npy")
        assert values.shape == (240, 320) and values.dtype == np.float32
        assert (values[:24] == 0).all() and (values[24:216, 32:288] > 0).all() and (values[:, 288:] == 0).all()
        sides = ("top", "left", "height", "width")
        boxes = [[d[side] for side in sides] for d in defects] or [[int(row[side]) for side in sides]]
        assert f'"boxes": {json.dumps(boxes)}' in page
    worst = lines[1]["defects"][0]
    assert [worst[side] for side in ("top", "left", "height", "width")] == [
        int(rows[1][side]) for side in ("top", "left", "height", "width")
    ]
    # The network sees patches around the square as well, but the largest value lies on it.
    top, left, height, width = BOX
    peak = np.unravel_index(values.argmax(), values.shape)
    assert top <= peak[0] < top + height and left <= peak[1] < left + width
    assert worst["top"] <= top and worst["top"] + worst["height"] >= top + height
    assert worst["left"] <= left and worst["left"] + worst["width"] >= left + width
    assert worst["p_value"] < 0.1
    pipe = load(place / "model.joblib")
    features = pipe[0].transform([place / "new" / "24.png", place / "new" / "25.png"])
    found = pipe[-1].predict_regions(features, min_area=200)
    assert [[d.as_dict() for d in defects] for defects in found] == [line["defects"] for line in lines[:2]]


def test_maps_as_tiff_are_those_as_npy(place, tmp_path):
    for form in ("npy", "tiff"):
        invoke(place, "predict", "model.joblib", "new/25.png", "--maps", tmp_path, "--maps-format", form)
    with Image.open(tmp_path / "000001_25.tiff") as picture:
        assert picture.mode == "F"
        np.testing.assert_array_equal(np.asarray(picture), np.load(tmp_path / "000001_25.npy"))


def test_a_format_without_a_folder_is_an_error_with_both_options(place):
    done = invoke(place, "predict", "model.joblib", "new", "--maps-format", "npy", code=1)
    assert "--maps-format npy is what --maps writes: name a folder with --maps DIR" in done.stderr

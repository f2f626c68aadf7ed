"""The ticks of a report: what is read of the file, and what `update`, `threshold` and `evaluate` make of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from ipca_sklearn._utils._tables import as_cell, of_cell
from ipca_sklearn.cli import app
from ipca_sklearn.cli._arguments import read_ticks
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.persistence import load, new_images, record_training, save

SETTINGS = ["--image-size", "64", "--crop-size", "64", "--k", "4", "--device", "cpu"]


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def write_ticks(path: Path, rows: list[tuple[object, str]]) -> Path:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "score"])
        table.writerows([as_cell(str(image)), label, "-1.5"] for image, label in rows)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and images that it has not learnt: good00..good19 and defect00..defect09."""
    place = tmp_path_factory.mktemp("reviewed")
    data = make_textures(60, 20, size=64, random_state=0)
    defects = data.test_images[data.test_labels == -1][:10]
    assert len(defects) == 10
    parts = {"train": data.train_images[:40], "good": data.train_images[40:], "defect": defects}
    for part, images in parts.items():
        (place / part).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(np.squeeze(image)).save(place / part / f"{index:02d}.png")
    run("fit", place / "train", "-o", place / "model.joblib", *SETTINGS, "--false-positive-rate", "0.1")
    return place


@pytest.fixture
def ticks(place: Path, tmp_path: Path) -> Path:
    """20 good ones and 10 defects."""
    good, defects = sorted((place / "good").iterdir()), sorted((place / "defect").iterdir())
    rows = [(path, "good") for path in good] + [(path, "defect") for path in defects]
    return write_ticks(tmp_path / "ticks.csv", rows)


@pytest.mark.parametrize("text", ["a.png", "=1+1", "'=1", "'a", "-x", "\tx", "", "'"])
def test_cells_are_read_as_they_were_meant(text):
    if not text.startswith("'="):  # only a text that has the mark itself cannot be told from one that got it
        assert of_cell(as_cell(text)) == text


def test_names_of_any_kind_come_back_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "a, \"b\"\n'c'.png", "ünï.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        Path(name).write_bytes(b"")
    path = write_ticks(tmp_path / "ticks.csv", [(name, "good") for name in names[:3]] + [(names[3], "defect")])
    found = read_ticks(path)
    assert [str(image) for image in found.good] == names[:3]
    assert [str(image) for image in found.defects] == names[3:]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as a spreadsheet saves it
    assert read_ticks(path) == found


def test_an_image_of_two_names_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"")
    path = write_ticks(tmp_path / "ticks.csv", [("a.png", "good"), (tmp_path / "a.png", "good")])
    assert read_ticks(path).good == [Path("a.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ticks.csv, line 1: there are no columns path and label"),
        ("path;label\r\na.png;good\r\n", "line 1: there are no columns"),
        ("path,label\r\n", "ticks.csv has no ticks"),
        ("path,label\r\na.png,good\r\na.png,fine\r\n", "line 3: the label is 'fine': write good or defect"),
        ("path,label\r\na.png\r\n", "line 2: the label is ''"),
        ("path,label\r\nb.png,good\r\n", "line 2: there is no file 'b.png': run the command in the folder"),
        ("path,label\r\n,good\r\n", "line 2: there is no file ''"),
        ("path,label\r\na.png,good\r\na.png,defect\r\n", "line 3: a.png is defect, and good in line 2"),
        ('path,label\r\n"a.png,good\r\n', "ticks.csv, after line 1: this is no CSV"),
    ],
)
def test_errors_name_the_file_and_the_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"")
    Path("ticks.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_ticks(Path("ticks.csv"))


def test_update_learns_what_is_ticked_good_and_never_a_defect(place, ticks, tmp_path):
    model = tmp_path / "model.joblib"
    done = run("update", place / "model.joblib", "--reviewed", ticks, "-o", model, "--device", "cpu")
    assert "20 good images; left out: 10 defects" in done.stdout
    assert "60 images learnt" in done.stdout
    by_folder = tmp_path / "by_folder.joblib"
    run("update", place / "model.joblib", place / "good", "-o", by_folder, "--device", "cpu")
    np.testing.assert_array_equal(load(model)[-1].calibration_scores_, load(by_folder)[-1].calibration_scores_)
    # The same ticks again: all are learnt by now.
    assert "there is nothing to learn" in run("update", model, "--reviewed", ticks, "--device", "cpu").stdout
    assert load(model)[-1].n_samples_seen_ == 60
    assert str(ticks) in run("info", model).stdout


def test_update_takes_folders_and_ticks_together(place, ticks, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").symlink_to(place / "good" / f"{number:02d}.png")
    (folder / "3.png").symlink_to(place / "defect" / "00.png")
    model = tmp_path / "model.joblib"
    done = run("update", place / "model.joblib", folder, "--reviewed", ticks, "-o", model, "--device", "cpu")
    assert "17 good images; left out: 10 defects, 3 in the folders too" in done.stdout
    assert "60 images learnt" in done.stdout
    assert "nothing to learn is named" in run("update", place / "model.joblib", code=1).stderr
    # What is ticked and in the folder is learnt too: it is no image for a threshold.
    assert new_images(load(model), [*read_ticks(ticks).good, *folder.iterdir()]) == [folder / "3.png"]
    assert new_images(load(place / "model.joblib"), read_ticks(ticks).good) == read_ticks(ticks).good


def test_a_ticked_image_that_could_not_be_read_is_not_taken_for_learnt(place, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    good = place / "good" / "00.png"
    ticks, model = write_ticks(tmp_path / "ticks.csv", [(broken, "good"), (good, "good")]), tmp_path / "model.joblib"
    options = ["--reviewed", ticks, "-o", model, "--on-error", "skip", "--device", "cpu"]
    run("update", place / "model.joblib", *options)
    assert new_images(load(model), [broken, good]) == [broken]


def test_a_folder_that_has_grown_is_learnt_from_where_it_was(place, tmp_path):
    folder, model = tmp_path / "train", tmp_path / "model.joblib"
    folder.symlink_to(place / "train")
    before = (place / "model.joblib").stat()
    done = run("update", place / "model.joblib", folder, "--device", "cpu")
    assert "no image is new to" in done.stdout and (place / "model.joblib").stat() == before
    run("update", place / "model.joblib", folder, "-o", model, "--device", "cpu")
    assert load(model)[-1].n_samples_seen_ == 40  # the output is there, whether an image was new or not
    done = run("update", place / "model.joblib", folder, place / "good", "-o", model, "--device", "cpu")
    assert "40 of 60 images are learnt already and left out" in done.stdout and "60 images learnt" in done.stdout
    pipe, gone = load(model), tmp_path / "gone.png"  # deleted after it was learnt: the model is kept all the same
    pipe[-1].partial_fit(pipe[0].transform([place / "defect" / "00.png"]))
    record_training(pipe, [gone])
    shutil.copy(place / "defect" / "00.png", gone)
    assert new_images(pipe, [gone]) == [gone]


def saved_again(image, target):
    """Yield the same pixels in other files, and one of other pixels at the end."""
    picture = Image.open(image)
    shutil.copy(image, target / "copy.png")
    shutil.copy2(image, target / "with_its_times.png")
    (target / "link.png").symlink_to(image)
    (target / "hard_link.png").hardlink_to(image)
    picture.save(target / "packed.png", compress_level=9)
    picture.save(target / "other.tif")
    picture.save(target / "other.bmp")
    text = PngImagePlugin.PngInfo()
    text.add_text("Rating", "5")
    picture.save(target / "rated.png", pnginfo=text)
    return sorted(target.iterdir())


def test_a_learnt_image_is_known_by_its_pixels(place, tmp_path):
    pipe = load(place / "model.joblib")
    learnt = sorted((place / "train").iterdir())
    assert new_images(pipe, saved_again(learnt[0], tmp_path)) == []
    other = np.asarray(Image.open(learnt[0])).copy()
    other[0, 0, 0] ^= 1
    for name in ("one_level.png", "copy.png"):  # also where a learnt one was
        Image.fromarray(other).save(tmp_path / name)
        assert new_images(pipe, [tmp_path / name]) == [tmp_path / name]
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(grey)
    pipe[-1].partial_fit(pipe[0].transform([grey]))
    record_training(pipe, [grey])
    Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((8, 8), 25701, np.uint16)).save(tmp_path / "grey16_other.png")
    names = [tmp_path / f"{name}.png" for name in ("grey16", "colour", "grey16_other")]
    assert new_images(pipe, names) == names[2:]


def test_fit_decodes_no_image_for_it_alone_and_a_model_from_python_says_that_it_knows_none(
    place, tmp_path, monkeypatch
):
    def decode(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("ipca_sklearn.persistence._image_digests.decode", decode)
    model = tmp_path / "model.joblib"
    run("fit", place / "good", "-o", model, *SETTINGS)
    monkeypatch.undo()
    assert new_images(load(model), saved_again(place / "good" / "03.png", tmp_path)[1:2]) == []
    pipe = load(model)
    del pipe[-1].learnt_images_
    save(pipe, model)
    done = run("update", model, place / "good", "--device", "cpu")
    assert "does not know its images" in done.stderr and load(model)[-1].n_samples_seen_ == 40


def test_a_copied_training_folder_sets_tests_and_teaches_nothing(place, ticks, tmp_path):
    copied, model = tmp_path / "copied", tmp_path / "model.joblib"
    copied.mkdir()
    for number, image in enumerate(sorted((place / "train").iterdir())):
        shutil.copy(image, copied / f"renamed{number}.png")
        os.utime(copied / f"renamed{number}.png", (1, 1))
    done = run("update", place / "model.joblib", copied, "-o", model, "--device", "cpu")
    assert "40 of 40 images are learnt already" in done.stdout and load(model)[-1].n_samples_seen_ == 40
    options = ["--false-positive-rate", "0.1", "--device", "cpu"]
    done = run("threshold", place / "model.joblib", "--good", copied, *options, "-o", model, code=1)
    assert "40 of 40 good images were learnt" in done.stderr
    done = run("threshold", place / "model.joblib", "--good", copied, "--good", place / "good", *options, "-o", model)
    assert "40 of 60 good images were learnt" in done.stderr
    alone = tmp_path / "alone.joblib"
    run("threshold", place / "model.joblib", "--good", place / "good", *options, "-o", alone)
    assert load(model)[-1].offset_ == load(alone)[-1].offset_
    root = tmp_path / "root"
    shutil.copytree(copied, root / "test" / "good")
    shutil.copytree(place / "defect", root / "test" / "defect")
    done = run("evaluate", place / "model.joblib", root, "--json", "--device", "cpu")
    assert "40 of 40 good images were learnt" in done.stderr and json.loads(done.stdout)["n_normal"] == 0


def test_a_copy_of_a_ticked_image_is_that_image(place, ticks, tmp_path):
    folder, model = tmp_path / "more", tmp_path / "model.joblib"
    folder.mkdir()
    shutil.copy(place / "defect" / "00.png", folder / "defect.png")
    shutil.copy(place / "good" / "00.png", folder / "good.png")
    done = run("update", place / "model.joblib", folder, "--reviewed", ticks, "-o", model, "--device", "cpu")
    assert "19 good images; left out: 10 defects, 1 in the folders too" in done.stdout
    assert load(model)[-1].n_samples_seen_ == 60
    wrong = run("threshold", place / "model.joblib", "--bad", folder, "--reviewed", ticks, "--recall", "0.5",
                "--device", "cpu", code=1)  # fmt: skip
    assert "good/00.png is of --bad, and ticked otherwise" in wrong.stderr


def test_threshold_by_ticks_is_that_by_folders(place, ticks, tmp_path):
    options = ["--false-positive-rate", "0.1", "--device", "cpu"]
    by_ticks, by_folder = tmp_path / "a.joblib", tmp_path / "b.joblib"
    run("threshold", place / "model.joblib", "--reviewed", ticks, "-o", by_ticks, *options)
    both = ["--good", place / "good", "--bad", place / "defect"]
    run("threshold", place / "model.joblib", *both, "-o", by_folder, *options)
    mixed = run("threshold", place / "model.joblib", "--good", place / "good", "--reviewed", ticks, *options[2:],
                "--recall", "0.5", "-o", tmp_path / "c.joblib")  # fmt: skip
    assert "of 20" in mixed.stdout and "of 10" in mixed.stdout
    assert load(by_ticks)[-1].offset_ == load(by_folder)[-1].offset_
    assert "ticks.csv" in run("info", by_ticks).stdout
    wrong = run("threshold", place / "model.joblib", "--bad", place / "good", "--reviewed", ticks, *options, code=1)
    assert "is of --bad, and ticked otherwise" in wrong.stderr


def test_learnt_images_neither_set_nor_test_a_threshold(place, ticks, tmp_path):
    model = tmp_path / "model.joblib"
    few = write_ticks(tmp_path / "few.csv", [(place / "good" / f"{number:02d}.png", "good") for number in range(5)])
    run("update", place / "model.joblib", "--reviewed", few, "-o", model, "--device", "cpu")
    place_of = {"threshold": ["--false-positive-rate", "0.1"], "evaluate": ["--json"]}
    for command, options in place_of.items():
        done = run(command, model, "--reviewed", ticks, *options, "--device", "cpu")
        assert "5 of 20 good images were learnt by the model: they are left out" in done.stderr
    assert json.loads(done.stdout)["n_normal"] == 15
    done = run("threshold", model, "--good", place / "good", "--false-positive-rate", "0.1", "--device", "cpu")
    assert "5 of 20 good images were learnt" in done.stderr


def test_evaluate_gives_the_figures_of_images(place, ticks, tmp_path):
    done = run("evaluate", place / "model.joblib", "--reviewed", ticks, "--json", "--device", "cpu")
    report = json.loads(done.stdout)
    row = report["defects"][0]
    assert (report["n_normal"], row["n_images"], row["n_masks"]) == (20, 10, 0)
    assert 0.5 < row["image_roc_auc"] <= 1
    assert row["pixel_roc_auc"] is None
    assert "have no mask" not in done.stderr
    for arguments in ([], [place, "--reviewed", ticks]):
        assert "and not both" in run("evaluate", place / "model.joblib", *arguments, code=1).stderr

"""What is refused or told about images before they are learnt."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import app
from ipca_sklearn.cli._training_images import refuse_test_images, warn_of_copies

SETTINGS = ["--image-size", "32", "--crop-size", "32", "--k", "2", "--device", "cpu"]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def check(*folders):
    """Check all files below folders, as the command line does."""
    refuse_test_images(folders, [path for folder in folders for path in folder.rglob("*.png")])


WHOLE = ("train/good/0.png", "test/good/0.png", "test/crack/0.png", "ground_truth/crack/0_mask.png")


@pytest.mark.parametrize("named", ["", "..", "test", "test/crack", "ground_truth", "ground_truth/crack"])
def test_a_data_set_and_its_defects_are_refused_and_the_good_images_named(tmp_path, named):
    root = tmp_path / "sets" / "fabric"
    touch(root, *WHOLE)
    with pytest.raises(ValueError, match=r"learnt as normal\. Name .*fabric/train/good$"):
        check((root / named).resolve())


@pytest.mark.parametrize("named", ["test", "test/crack", "ground_truth", "ground_truth/crack"])
def test_defects_of_a_data_set_without_training_images_are_refused(tmp_path, named):
    touch(tmp_path, "test/good/0.png", "test/crack/0.png", "ground_truth/crack/0_mask.png")
    with pytest.raises(ValueError, match=r"defects or masks of a data set.* folder of normal images alone"):
        check(tmp_path / named)
    check(tmp_path / "test" / "good")


def test_a_data_set_without_the_usual_place_of_good_images_is_refused_too(tmp_path):
    touch(tmp_path, "train/0.png", "test/crack/0.png")
    with pytest.raises(ValueError, match=r"test.*Name the folder of normal images alone$"):
        check(tmp_path)
    touch(tmp_path / "b", "test/good/0.png", "ground_truth/crack/0.png")
    with pytest.raises(ValueError, match=r"Name the folder of normal images alone$"):
        check(tmp_path / "b")


@pytest.mark.parametrize("named", ["train", "train/good", "test/good"])
def test_good_images_of_a_data_set_are_learnt(tmp_path, named):
    touch(tmp_path, *WHOLE)
    check(tmp_path / named)


def test_a_folder_may_be_called_test_or_train(tmp_path):
    touch(tmp_path, "test/0.png", "other/train/0.png", "good/0.png")
    for folder in (tmp_path, tmp_path / "test", tmp_path / "other"):
        check(folder)


def test_copies_are_counted_by_content(tmp_path, capsys):
    contents = [b"a" * 9000, b"b" * 9000, b"a" * 9000, b"a" * 8999 + b"c", b"a" * 9000, b"b" * 9000, b"", b"x"]
    paths = [tmp_path / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    warn_of_copies([*paths, tmp_path / "gone.png"])
    told = capsys.readouterr().err
    assert told.startswith("warning: 3 of 9 images are exact copies of others") and told.count("\n") == 1
    warn_of_copies(paths[:2])
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_read(tmp_path, capsys):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        os.mkfifo(path)
    warn_of_copies(paths)
    assert capsys.readouterr().err == ""


def images(folder, n, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{number:04d}.png")


def warnings_of(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return [line for line in done.stderr.splitlines() if line.startswith("warning")]


@pytest.mark.filterwarnings("default:\\d+ images are few")  # ignored in all other tests
def test_few_images_are_told_once_by_fit_and_update(tmp_path):
    images(tmp_path / "good", 150)
    images(tmp_path / "more", 300, seed=1)
    model = tmp_path / "model.joblib"
    rate = ["--false-positive-rate", "0.001"]
    told = warnings_of("fit", tmp_path / "good", "-o", model, *SETTINGS, *rate, "--checkpoint-every", "16")
    assert len(told) == 1 and told[0].startswith("warning: 150 images are few")
    told = warnings_of("update", model, tmp_path / "more", "--device", "cpu")
    assert len(told) == 1 and told[0].startswith("warning: 450 images are few")
    (tmp_path / "few").mkdir()
    for number in range(10):
        (tmp_path / "good" / f"{number:04d}.png").rename(tmp_path / "few" / f"{number}.png")
    assert len(warnings_of("fit", tmp_path / "few", "-o", model, *SETTINGS)) == 1


def test_files_with_several_pages_are_told_once_with_names_and_once_in_all(tmp_path):
    images(tmp_path / "good", 40)
    model = tmp_path / "model.joblib"
    assert warnings_of("fit", tmp_path / "good", "-o", model, *SETTINGS) == []
    pages = [Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32))]
    (tmp_path / "new").mkdir()
    for number in range(40):
        pages[0].save(tmp_path / "new" / f"{number}.tif", save_all=True, append_images=pages[1:])
    told = warnings_of("predict", model, tmp_path / "new", "-o", tmp_path / "rows.csv", "--device", "cpu")
    first, total = (line for line in told if "several pages" in line)
    assert "16 of 16 images" in first and "40 images in all have several pages or frames" in total


def test_ctrl_c_says_where_the_command_goes_on(tmp_path, monkeypatch):
    from ipca_sklearn import PatchGaussianDetector

    images(tmp_path / "good", 300)
    model = tmp_path / "model.joblib"
    learn, calls = PatchGaussianDetector.partial_fit, []

    def interrupted(self, X, y=None):
        calls.append(len(X))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learn(self, X, y)

    arguments = ["fit", str(tmp_path / "good"), "-o", str(model), *SETTINGS]
    with monkeypatch.context() as patch:
        patch.setattr(PatchGaussianDetector, "partial_fit", interrupted)
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 130
    assert "interrupted: the same command goes on from there" in done.stderr and not model.exists()
    images(tmp_path / "good" / "more", 1, seed=2)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "remove" in done.stderr and "model.joblib.checkpoint" in done.stderr
    (tmp_path / "good" / "more" / "0000.png").unlink()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "300 images learnt" in done.output
    assert not (tmp_path / "model.joblib.checkpoint").exists()


def test_ctrl_c_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    from ipca_sklearn import PatchGaussianDetector

    images(tmp_path / "good", 20)

    def interrupted(self, X, y=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchGaussianDetector, "fit", interrupted)
    arguments = ["fit", str(tmp_path / "good"), "-o", str(tmp_path / "model.joblib"), *SETTINGS, "--trim", "0.1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 130
    assert "interrupted: with --products or --trim there is no checkpoint" in done.stderr

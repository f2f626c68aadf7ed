"""No output destroys an input, and what cannot be written is refused before any work."""

from __future__ import annotations

import os
import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import app
from ipca_sklearn.cli._outputs import Output, check_outputs, check_space

runner = CliRunner()
MODEL = b"no model: a command that gets as far as to load it says so"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file that is no model, a folder of images, and a data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.joblib").write_bytes(MODEL)
    for value, name in enumerate(("new/a.png", "new/deep/b.png", "set/test/good/0.png", "set/train/good/0.png")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(path)
    (tmp_path / "link.joblib").symlink_to("x.joblib")
    os.link("x.joblib", "twin.onnx")
    os.link("x.joblib", "twin.html")
    os.link("new/a.png", "twin.csv")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "000001_a.png").symlink_to(tmp_path / "new" / "deep" / "b.png")
    (tmp_path / "linked").symlink_to("new")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "b.json").write_text("{}")
    os.mkfifo("pipe.html")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export x.joblib -o x.joblib", "does not end in .onnx"),
        ("export x.joblib -o twin.onnx", "would overwrite x.joblib"),
        ("export x.joblib -o new", "is a folder"),
        ("export x.joblib -o none/x.onnx", "there is no folder none"),
        ("export x.joblib -o loop/x.onnx", "loop"),
        ("predict x.joblib new --report x.joblib", "ends in neither .html nor .htm"),
        ("predict x.joblib new --report twin.html", "would overwrite x.joblib"),
        ("predict x.joblib new --report pipe.html", "is a device or a pipe"),
        ("predict x.joblib new --report file/r.html", "is a file and no folder"),
        ("predict x.joblib new -o twin.csv", "would overwrite new/a.png"),
        ("predict x.joblib new -o r.html --report r.html", "ends in neither .csv nor .jsonl"),
        ("predict x.joblib new --maps same --masks same", "--maps same and --masks same are the same place"),
        ("predict x.joblib new --maps same --masks ./x/../same", "are the same place"),
        ("predict x.joblib new --maps new --maps-format tiff", "is, contains or lies in the folder new"),
        ("predict x.joblib new --export-labelme hand", "hand/b.json is there"),
        ("predict x.joblib new --export-coco c.json --defects c.json", "does not end in .jsonl"),
        ("predict x.joblib new --maps new", "is, contains or lies in the folder new"),
        ("predict x.joblib new --maps new/maps", "is, contains or lies in the folder new"),
        ("predict x.joblib new --masks .", "is, contains or lies in the folder new"),
        ("predict x.joblib new --masks linked/masks", "is, contains or lies in the folder new"),
        ("predict x.joblib new/a.png --maps new", "holds images that are read"),
        ("predict x.joblib new/deep/b.png --maps new", "holds images that are read"),
        ("predict x.joblib new --maps maps", "would overwrite new/deep/b.png"),
        ("predict x.joblib new --maps file", "is a file: name a folder"),
        ("predict x.joblib new --maps file/maps", "is a file and no folder"),
        ("fit new -o new", "is a folder"),
        ("fit new -o .", "is a folder"),
        ("fit new -o new/a.png", "ends in neither"),
        ("fit new -o none/m.joblib", "there is no folder none"),
        ("fit new twin.csv -o m.csv", "ends in neither"),
        ("fit x.joblib -o link.joblib", "would overwrite x.joblib"),
        ("update x.joblib new -o new", "is a folder"),
        ("update x.joblib x.joblib", "would overwrite x.joblib"),
        ("evaluate x.joblib set --picture x.joblib", "ends in neither"),
        ("evaluate x.joblib set --picture set/test/good/1.png", "lies in the folder set/test"),
        ("evaluate x.joblib set --picture none/roc.png", "there is no folder none"),
        ("evaluate x.joblib set --pimo set/test/good/1.png", "lies in the folder set/test"),
        ("evaluate x.joblib set --picture a.png --pimo a.png", "--picture a.png and --pimo a.png are the same place"),
        ("demo -o x.joblib", "ends in neither"),
        ("demo -o none/x.png", "there is no folder none"),
    ],
)
def test_outputs_that_would_do_harm_are_refused_before_any_work(place, command, message):
    before = contents(place)
    done = runner.invoke(app, command.split())
    assert done.exit_code == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert contents(place) == before


@pytest.mark.parametrize(
    "command",
    [
        "export x.joblib -o y.onnx",
        "predict x.joblib new --maps m --masks n --report r.HTML -o r.csv",
        "predict x.joblib new/a.png --maps new_maps",
        "predict x.joblib new --export-labelme new --maps new/maps --maps-format npy",
        "predict x.joblib new -o new/rows.csv",
        "update x.joblib new -o x.joblib",
        "update x.joblib new",
        "evaluate x.joblib set --picture set/roc.png",
    ],
)
def test_other_outputs_are_not(place, command):
    done = runner.invoke(app, command.split())
    assert "is not a whole model file" in done.stderr  # so it came as far as that
    assert not (place / "m").exists() and not (place / "r.csv").exists()


def test_a_disk_without_space_is_found_before_any_work(place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    check_space([Output("-o", place / "small", n_bytes=10)])
    for command in ("export x.joblib -o y.onnx", "update x.joblib new", "fit new -o y.joblib --device cpu"):
        done = runner.invoke(app, command.split())
        assert done.exit_code == 1
        assert "MB left" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(OSError, match=r"-o .* and -p .* will take"):
        check_space([Output("-o", place / "a", n_bytes=9), Output("-p", place / "b", n_bytes=9)])


def test_places_without_permission_are_found_before_any_work(place, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    (place / "old.csv").write_text("")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"old.csv is write-protected"):
        check_outputs([Output("-o", place / "old.csv")])
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"-o .*new.csv cannot be written: .*: Permission denied"):
        check_outputs([Output("-o", place / "new.csv")])


def test_paths_through_the_standard_input_are_inputs_too(place):
    done = runner.invoke(app, ["predict", "x.joblib", "-", "--maps", "new"], input="new/a.png\nnew/deep/b.png\n")
    assert done.exit_code == 1 and "holds images that are read" in done.stderr

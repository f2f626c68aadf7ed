"""Options: whole in the help of any width, and named by the errors about their values."""

from __future__ import annotations

import re
import shutil
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import persistence
from ipca_sklearn.cli import app
from ipca_sklearn.cli._parser import COMMANDS, Commands, _WarningPrinter, load_command, to_options
from ipca_sklearn.exceptions import AspectRatioWarning

FIT = ("fit", "good", "-o", "new.joblib", "--device", "cpu", "--image-size", "32", "--crop-size", "32", "--k", "2")
THRESHOLD = ("threshold", "model.joblib")
WATCH = ("watch", "model.joblib", "good", "-o", "rows.csv")
DEVICES = ("x", "cuda:99")
# What only Python has, in messages that both show.
IN_PYTHON = re.compile(
    r"\bX\b|max_pixels|MAX_IMAGE_PIXELS|list_models|\bcall |set_threshold|rejection_rate|reference_|\bNone\b|image_size"
)
# For each option that takes a value: a command line that needs nothing else, and bad values.
BAD = {
    "fit": {
        "--output": (FIT, ["new.txt", "nowhere/new.joblib", "good"]),
        "--backbone": (FIT, ["x", "timm:x", "zz*"]),
        "--k": (FIT, ["0", "x", "100000", "-1", "1.5", "1.0", "nan", ""]),
        "--gaussians": (FIT, ["0", "x", "-1", "1.5", "nan", "auto", ""]),
        "--step": (FIT, ["0", "x"]),
        "--false-positive-rate": (FIT, ["x", "0", "0.6", "nan", "-1"]),
        "--image-size": (FIT, ["x", "0", "0x5", "-1", "5x", "16"]),
        "--crop-size": (FIT, ["x", "0", "auto", "64"]),
        "--margin": (FIT, ["x", "-1", "1.5", "nan", "1000"]),
        "--trim": (FIT, ["x", "-1", "0.5", "nan"]),
        "--report": (FIT, ["new.txt", "nowhere/new.html", "good"]),
        "--reviewed": (FIT, ["nowhere.csv"]),
        "--tile-size": (FIT, ["x", "0", "-1", "5x", "100"]),
        "--tile-overlap": ((*FIT, "--tile-size", "96"), ["x", "-1", "1.5", "nan", "96", "20"]),
        "--region": (FIT, ["nowhere.png", "good", "text.png", "black.png", "auto"]),
        "--align": (FIT, ["x", ""]),
        "--on-error": (FIT, ["x", ""]),
        "--checkpoint-every": (FIT, ["0", "x"]),
        "--device": (FIT, DEVICES),
        "--jobs": (FIT, ["0", "x"]),
    },
    "update": {
        "--reviewed": (("update", "model.joblib"), ["nowhere.csv"]),
        "--output": (("update", "model.joblib", "good"), ["new.txt", "good"]),
        "--on-error": (("update", "model.joblib", "good"), ["x"]),
        "--product": (("update", "model.joblib", "good"), ["x"]),
        "--device": (("update", "model.joblib", "good"), DEVICES),
    },
    "predict": {
        "--output": (("predict", "model.joblib", "good"), ["rows.txt", "good"]),
        "--defects": (("predict", "model.joblib", "good"), ["rows.csv", "good"]),
        "--maps": (("predict", "model.joblib", "good"), ["text.png", "good"]),
        "--maps-format": (("predict", "model.joblib", "good"), ["jpg", "npy"]),
        "--masks": (("predict", "model.joblib", "good"), ["text.png", "good"]),
        "--export-coco": (("predict", "model.joblib", "good"), ["coco.jsonl", "nowhere/coco.json", "good"]),
        "--export-labelme": (("predict", "model.joblib", "good"), ["text.png", "text.png/x"]),
        "--min-area": (("predict", "model.joblib", "good"), ["-1", "nan", "inf", "x"]),
        "--merge-distance": (("predict", "model.joblib", "good"), ["-1", "nan", "inf", "x"]),
        "--report": (("predict", "model.joblib", "good"), ["page.txt", "good"]),
        "--picture-size": (("predict", "model.joblib", "good"), ["-1", "x"]),
        "--product": (("predict", "model.joblib", "good"), ["x"]),
        "--device": (("predict", "model.joblib", "good"), DEVICES),
    },
    "watch": {
        "--output": (("watch", "model.joblib", "good"), ["rows.txt", "good"]),
        "--report": (WATCH, ["page.txt", "good"]),
        "--defects": (WATCH, ["rows.csv", "good"]),
        "--min-area": (WATCH, ["-1", "nan", "inf", "x"]),
        "--merge-distance": (WATCH, ["-1", "nan", "inf", "x"]),
        "--command": (WATCH, ["", "no-such-program", "'"]),
        "--command-seconds": (WATCH, ["0", "nan", "inf", "x"]),
        "--settle": (WATCH, ["-1", "nan", "inf", "x"]),
        "--tries": (WATCH, ["0", "x"]),
        "--product": (WATCH, ["x"]),
        "--device": (WATCH, DEVICES),
    },
    "evaluate": {
        "--reviewed": (("evaluate", "model.joblib"), ["nowhere.csv"]),
        "--picture": (("evaluate", "model.joblib", "."), ["roc.txt", "good"]),
        "--pimo": (("evaluate", "model.joblib", "."), ["roc.txt", "good"]),
        "--product": (("evaluate", "model.joblib", "."), ["x"]),
        "--device": (("evaluate", "model.joblib", "."), DEVICES),
    },
    "compare": {
        "--reviewed": (("compare", "model.joblib", "model.joblib"), ["nowhere.csv"]),
        "--picture": (("compare", "model.joblib", "model.joblib", "."), ["roc.txt", "good"]),
        "--product": (("compare", "model.joblib", "model.joblib", "."), ["x"]),
        "--device": (("compare", "model.joblib", "model.joblib", "."), DEVICES),
    },
    "threshold": {
        "--good": ((*THRESHOLD, "--false-positive-rate", "0.1"), ["nowhere", "empty"]),
        "--bad": ((*THRESHOLD, "--recall", "1"), ["nowhere", "empty"]),
        "--reviewed": ((*THRESHOLD, "--recall", "1"), ["nowhere.csv"]),
        "--false-positive-rate": ((*THRESHOLD, "--good", "new"), ["0", "1", "nan", "x"]),
        "--recall": ((*THRESHOLD, "--bad", "good"), ["0", "1.1", "nan", "x"]),
        "--score": (THRESHOLD, ["nan", "inf", "x"]),
        "--confidence": ((*THRESHOLD, "--score", "-1"), ["0", "1", "nan", "x"]),
        "--output": ((*THRESHOLD, "--score", "-1"), ["new.txt", "good"]),
        "--on-error": ((*THRESHOLD, "--score", "-1"), ["x"]),
        "--product": ((*THRESHOLD, "--score", "-1"), ["x"]),
        "--device": ((*THRESHOLD, "--score", "-1"), DEVICES),
    },
    "info": {
        "--format": (("info", "model.joblib"), ["x"]),
        "--figures": (("info", "model.joblib"), ["nowhere.json", "text.png", "good"]),
        "--product": (("info", "model.joblib"), ["x"]),
    },
    "export": {
        "--output": (("export", "model.joblib"), ["new.txt", "good"]),
        "--format": (("export", "model.joblib", "-o", "new.onnx"), ["x"]),
        "--precision": (("export", "model.joblib", "-o", "new.onnx"), ["x", "FP16"]),
        "--calibration-images": (
            ("export", "model.joblib", "-o", "new.xml", "--format", "openvino", "--precision", "INT8"),
            ["nowhere", "empty"],
        ),
        "--dtype": (("export", "model.joblib", "-o", "new.onnx"), ["x", "float64"]),
        "--check": (("export", "model.joblib", "-o", "new.onnx"), ["nowhere", "empty"]),
        "--product": (("export", "model.joblib", "-o", "new.onnx"), ["x"]),
    },
    "bench": {
        "--images": (("bench", "model.joblib"), ["1", "x"]),
        "--product": (("bench", "model.joblib"), ["x"]),
    },
    "demo": {
        "--output": (("demo",), ["picture.txt", "good"]),
        "--material": (("demo",), ["x"]),
        "--n-train": (("demo",), ["0", "x"]),
        "--n-test": (("demo",), ["1", "x"]),
        "--k": (("demo", "--n-train", "2", "--n-test", "2"), ["0", "x", "100000", "1.5", "nan"]),
        "--seed": (("demo",), ["-1", "x"]),
    },
}


def options_of(name):
    """Return the options of a command that take a value, by their long names."""
    return {
        next(option for option in parameter.opts if option.startswith("--")): parameter
        for parameter in load_command(name).params
        if parameter.opts[0].startswith("-")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("options")
    for folder, seed in (("good", 0), ("new", 1)):
        (place / folder).mkdir()
        for number, image in enumerate(np.random.default_rng(seed).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)):
            Image.fromarray(image).save(place / folder / f"{number}.png")
    (place / "empty").mkdir()
    (place / "text.png").write_text("no image")
    Image.new("L", (32, 32)).save(place / "black.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = CliRunner().invoke(app, [*FIT[:3], "model.joblib", *FIT[4:]])
    assert done.exit_code == 0, done.output
    return place


def test_every_option_with_a_value_has_a_bad_one_here():
    for name in COMMANDS:
        with_values = {option for option, parameter in options_of(name).items() if not parameter.is_flag}
        assert set(BAD[name]) == with_values - {"--help"}, name


@pytest.mark.parametrize("name", BAD)
def test_an_error_about_an_option_names_it(name, place, monkeypatch):
    monkeypatch.chdir(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    for option, (arguments, values) in BAD[name].items():
        for value in values:
            done = CliRunner().invoke(app, [*arguments, option, value])
            case = f"{name} {option} {value!r}: {done.stderr}"
            assert done.exit_code in (1, 2), case
            error = done.stderr.strip().splitlines()[-1]
            assert error.lower().startswith("error: "), case
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", error) or "ticks" in case or "nowhere.csv" in error, case
            in_python = [parameter.name for parameter in options_of(name).values() if "_" in parameter.name]
            for parameter in (*in_python, "n_components", "n_gaussians", "step_size", "n_jobs", "random_state"):
                assert not re.search(rf"(?<![\w/-]){parameter}\b", error), case
            assert not IN_PYTHON.search(error), case
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_what_is_said_of_an_image_names_nothing_of_python(place, tmp_path, monkeypatch):
    Image.new("1", (9_500, 9_500)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (32, 32)).save(tmp_path / "trusted.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    done = CliRunner().invoke(app, ["predict", str(place / "model.joblib"), str(tmp_path)])
    assert done.exit_code == 3 and not IN_PYTHON.search(done.stdout)
    assert "pixels, more than the limit of 89478485; cut it into parts, or leave it out" in done.stdout
    assert "convert it to PNG, or leave it out" in done.stdout
    assert re.search(r"more pixels than Pillow trusts \(.*\); cut it into parts, or leave it out", done.stdout)


@pytest.mark.filterwarnings("always::ipca_sklearn.FewImagesWarning")
def test_what_is_said_of_models_names_nothing_of_python(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("good", "mixed", "products/a", "products/b"):
        shutil.copytree(place / "good", folder)
    Image.new("RGB", (64, 32)).save("mixed/wide.png")
    (tmp_path / "more").mkdir()
    for number, image in enumerate(np.random.default_rng(2).integers(0, 255, (64, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(image).save(f"more/{number}.png")
    Image.new("RGB", (32, 32)).save("flat.png")
    pipe = persistence.load(place / "model.joblib")
    pipe[-1].set_params(distance="residual")  # the thresholds are for another one
    persistence.save(pipe, "changed.joblib")
    threshold = ["threshold", "model.joblib", "--good", str(place / "new"), "--false-positive-rate", "0.2"]
    for arguments, message in (
        ([*FIT[:3], "model.joblib", *FIT[4:]], "calibrate or choose them with normal images that were not learnt"),
        (["info", "model.joblib"], "calibrate or choose them with normal images that were not learnt"),
        ([*threshold, "--device", "cpu"], "4 normal images are few"),
        (["update", "model.joblib", "more"], "the chosen threshold (--false-positive-rate 0.2) was multiplied by"),
        (["predict", "changed.joblib", "good"], "fit again, or calibrate with normal images that were not learnt"),
        (["fit", "products", "--products", *FIT[2:]], "will be called unknown, not the rejection rate of 1.0%"),
        (["fit", "mixed", *FIT[2:6], "--gaussians", "1"], "or fit with an --image-size of height and width"),
        ([*FIT, "--align", "translation"], ""),
        (["predict", "new.joblib", "flat.png"], "and so their scores say little: look at them"),
    ):
        output = CliRunner().invoke(app, arguments).output
        told = "\n".join(line for line in output.splitlines() if line.startswith(("warning: ", "error: ")))
        assert message in told and not IN_PYTHON.search(told), (arguments, output)


def test_warnings_that_come_again_name_options_of_fit_in_any_command(capsys):
    warning: Any = AspectRatioWarning("stretched; or fit with an image_size of height and width")
    warning.remark, warning.n_images = "are stretched", 1
    group = Commands()
    group.resolve_command(typer.Context(group), ["predict"])
    _WarningPrinter(group._translate)(warning, AspectRatioWarning)
    assert capsys.readouterr().err == "warning: stretched; or fit with an --image-size of height and width\n"
    assert group._translate("crop_size=3, min_area=2") == "--crop-size 3, --min-area 2"


def test_wishes_of_a_threshold_are_named_as_options(place, monkeypatch):
    monkeypatch.chdir(place)
    for arguments in ([], ["--score", "1", "--recall", "1"]):
        error = CliRunner().invoke(app, [*THRESHOLD, *arguments]).stderr
        assert "one of --false-positive-rate, --recall and --score" in error
    for wish, folder in (("--false-positive-rate", "--good"), ("--recall", "--bad")):
        error = CliRunner().invoke(app, [*THRESHOLD, wish, "0.5"]).stderr
        assert f"{wish} 0.5 takes" in error and f"name some with {folder}" in error
    told = CliRunner().invoke(app, [*THRESHOLD, "--good", "new", "--false-positive-rate", "0.1", "-o", "t.joblib"])
    assert told.exit_code == 0 and "--false-positive-rate 0.1 takes the scores of 9 normal images" in told.stderr


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "n_components=9 is larger than n_features=8; lower n_components",
            "--k 9 is larger than n_features=8; lower --k",
        ),
        ("The 'step_size' parameter of X must be", "The '--step' parameter of X must be"),
        ("takes one of image_size=, crop_size= and margin=", "takes one of --image-size, --crop-size and --margin"),
        ("no image at /in/margin=3/step_size.png", "no image at /in/margin=3/step_size.png"),
        ("the margin and the region of the device", "the margin and the region of the device"),
        ("margin='x' is wrong", "--margin 'x' is wrong"),
        ("set on_error='skip'", "set --on-error 'skip'"),
        ("(features__margin=16 then, 0 now)", "(--margin 16 then, 0 now)"),
        ("or fit with an image_size of height and width", "or fit with an --image-size of height and width"),
    ],
)
def test_only_names_of_parameters_are_put_in_other_words(message, expected):
    assert to_options(load_command("fit").params)(message) == expected


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_option_is_cut_in_the_help(name, columns):
    text = CliRunner().invoke(app, [*name.split(), "--help"], terminal_width=columns).output
    assert "…" not in text and max(map(len, text.splitlines())) <= max(columns, 60)
    if not name:
        for command in COMMANDS:
            assert re.search(rf"^  {command} ", text, re.MULTILINE)
            if columns >= 80:
                assert load_command(command).help.partition("\n")[0] in " ".join(text.split())
        return
    for option, parameter in options_of(name).items():
        for spelling in (option, *parameter.opts, *parameter.secondary_opts):
            assert re.search(rf"(?<![\w-]){spelling}(?![\w-])", text), spelling

"""The command line as a user runs it."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, __main__, __version__
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli import _terminal, app
from ipca_sklearn.cli._annotations import picture_folder, picture_names
from ipca_sklearn.cli._parser import COMMANDS, load_command
from ipca_sklearn.cli._terminal import Table

runner = CliRunner()


def test_demo_prints_figures_and_writes_a_picture(tmp_path):
    picture = tmp_path / "demo.png"
    result = runner.invoke(app, ["demo", "-o", str(picture), "--n-train", "20", "--n-test", "6", "--k", "4"])
    assert result.exit_code == 0, result.output
    values = [float(line.split()[-1]) for line in result.output.splitlines() if "ROCAUC" in line or "AUPRO" in line]
    assert len(values) == 3
    assert values[1] > 0.8  # reached with every seed that was tried
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--material", "lether"], "leather"), (["--k", "500"], "--k 500 is larger than n_features=256")],
)
def test_demo_errors_are_one_line_without_a_traceback(arguments, message, tmp_path):
    options = ["-o", str(tmp_path / "x.png"), "--n-train", "4", "--n-test", "2"]
    result = runner.invoke(app, ["demo", *options, *arguments])
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output


def test_version_and_help():
    assert runner.invoke(app, ["version"]).output.strip() == __version__
    assert "demo" in runner.invoke(app, ["--help"]).output


def test_a_missing_typer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "ipca_sklearn.cli")
    with pytest.raises(SystemExit, match="pip install typer rich"):
        __main__.main()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_summary_of_a_command_is_the_first_line_of_its_help(name):
    summary = load_command(name).help.partition("\n")[0]
    text = " ".join(runner.invoke(app, ["--help"], terminal_width=200, env={"COLUMNS": "200"}).output.split())
    assert name in text and summary in text


def test_defaults_of_fit_are_those_of_the_estimators():
    """The options are declared without them, which would import torch."""
    defaults = {parameter.name: parameter.default for parameter in load_command("fit").params}
    assert defaults["backbone"] == PatchFeatureExtractor().backbone
    assert defaults["gaussians"] == str(PatchGaussianDetector().n_gaussians)


def test_a_misspelt_command_gets_a_suggestion():
    done = runner.invoke(app, ["predic"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "Did you mean 'predict'" in done.output


@pytest.mark.parametrize("arguments", [["--backbone"], ["--backbone", "list"], ["-o", "x", "--backbone", "list"]])
def test_fit_lists_its_backbones_without_images(arguments):
    done = runner.invoke(app, ["fit", *arguments])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [f"efficientnet_lite{size}" for size in range(3)]
    assert any(line.startswith("resnet18 ") for line in lines)
    assert lines[-1].startswith("timm:<name> ")
    assert len({re.match(r"\S+ +", line).end() for line in lines}) == 1  # one column


def test_a_pattern_lists_the_backbones_that_match():
    done = runner.invoke(app, ["fit", "--backbone", "resnet?8"])
    assert done.exit_code == 0 and [line.split()[0] for line in done.stdout.splitlines()] == ["resnet18"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite5", r"'efficientnet_lite5' is unknown \(nearest: efficientnet_lite\d.*`--backbone list`"),
        ("googlenet", r"no layers are known for 'googlenet'; name some in Python"),
        ("lite*", r"no backbone matches 'lite\*'; `--backbone list`"),
    ],
)
def test_a_wrong_backbone_is_told_before_images_are_read(name, message, tmp_path):
    arguments = ["fit", str(tmp_path), "-o", str(tmp_path / "model"), "--backbone", name]
    done = runner.invoke(app, arguments, env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert done.exit_code == 2
    assert re.search(message, " ".join(done.output.replace("│", " ").split())), done.output


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: now)
    with _terminal.Progress(100) as progress:
        for done in range(1, 101):
            now += 0.3  # 30 s in all
            progress.show(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" images, ")[0] for line in lines] == ["34/100", "68/100", "100/100"]
    assert lines[0].endswith(" images/s, 0:00:20 left")
    assert lines[1].endswith("3.3 images/s, 0:00:10 left")
    assert lines[2].endswith("3.3 images/s")


def test_progress_in_a_terminal_is_a_bar_on_the_standard_error(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with _terminal.Progress(20) as progress:
        progress.show(5)
        progress.show(20)
        print("a row of the table")
    captured = capsys.readouterr()
    assert "20/20" in captured.err and "images/s" in captured.err
    assert captured.out == "a row of the table\n"


def python(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "ipca_sklearn", *arguments], text=True, **options)


def test_the_version_is_an_option_too():
    done = runner.invoke(app, ["--version"])
    assert done.exit_code == 0 and done.output.strip() == __version__


@pytest.mark.parametrize("command", ["--help", "fit --help", "version"])
def test_a_reader_that_goes_ends_a_command_without_a_message(command):
    """As `ipca-sklearn ... | head` does, but sooner: nothing has been written yet."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        done = python(*command.split(), stdout=stdout, stderr=subprocess.PIPE)
    assert done.stderr == ""
    assert done.returncode == 141


def test_control_characters_of_names_never_reach_the_terminal(tmp_path):
    nasty = tmp_path / "a\x1b[2Jb\r.png"
    nasty.write_bytes(b"no image")
    for arguments in (["fit", nasty, "-o", tmp_path / "m.joblib"], ["info", nasty], ["fit", nasty, "-o", nasty]):
        done = runner.invoke(app, list(map(str, arguments)))
        assert done.exit_code == 1
        assert all(character.isprintable() for character in done.stderr.rstrip("\n")), done.stderr
    assert "[2Jb" in done.stderr


def test_json_is_strict():
    value = {"a": [1.0, -math.inf], "b": (math.nan, None), "c": "x"}
    assert json.loads(to_json(value)) == {"a": [1.0, None], "b": [None, None], "c": "x"}


def test_cells_that_a_spreadsheet_would_run_are_text(tmp_path):
    path = tmp_path / "rows.csv"
    names = [
        "=1+1.png",
        "+a.png",
        "-a.png",
        "@a.png",
        "\ta.png",
        "\ra.png",
        "a=1.png",
        "'a.png",
        os.fsdecode(b"\xff.png"),
    ]
    with ExitStack() as stack:
        table = Table(path, stack)
        for name in names:
            table.write({"path": name, "score": -1.5, "label": -1})
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"'{name}" for name in names[:6]] + names[6:]
    assert {row["score"] for row in rows} == {"-1.5"} and {row["label"] for row in rows} == {"-1"}
    assert b"\xff.png" in path.read_bytes()


def test_a_table_in_a_terminal_controls_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with ExitStack() as stack:
        Table(Path("-"), stack).write({"path": "a\x1b[2J\udce9.png"})
    assert capsys.readouterr().out.splitlines()[1].startswith(r"a\x1b[2J\xe9.png,")


@pytest.mark.parametrize("n_rows", [1, 10_000])  # few rows are written when the file is closed
def test_a_full_disk_is_told_with_the_file(tmp_path, n_rows):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    link = tmp_path / "full.csv"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*full\.csv"), ExitStack() as stack:
        table = Table(link, stack)
        for _ in range(n_rows):
            table.write({})


def test_pictures_of_earlier_runs_stay_and_are_told(tmp_path, capsys):
    for name in ("000001_a.png", "000002_b.png", "mine.png"):
        (tmp_path / name).write_bytes(b"old")
    with picture_folder("--maps", tmp_path) as save:
        save(Image.new("L", (2, 2)), "000001_a.png")
    assert "also holds 1 pictures of an earlier run, such as 000002_b.png" in capsys.readouterr().err
    assert (tmp_path / "000002_b.png").read_bytes() == (tmp_path / "mine.png").read_bytes() == b"old"
    (tmp_path / "000002_b.png").unlink()
    with picture_folder("--maps", tmp_path) as save:
        save(Image.new("L", (2, 2)), "000001_a.png")
    assert capsys.readouterr().err == ""


def test_names_of_pictures_fit_into_the_file_system(tmp_path):
    long = Path("ü" * 125 + ".png")
    names = picture_names([Path("new/a.png"), Path("old/a.png"), long, Path(os.fsdecode(b"\xff.png"))])
    assert names[:2] == ["000001_a.png", "000002_a.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert names[2].startswith("000003_üü") and os.fsencode(names[3]) == b"000004_\xff.png"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_of_openmp_sleep_early_unless_the_user_decides(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr("ipca_sklearn.cli.app", lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    __main__.main()
    assert seen == [expected]
    assert gc.isenabled()

"""The command line as a user runs it."""

from __future__ import annotations

import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import __main__, __version__
from ipca_sklearn.cli import _progress, app
from ipca_sklearn.cli._commands import COMMANDS, load_command

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
    [(["--material", "lether"], "leather"), (["--k", "500"], "n_components=500 is larger than n_features=256")],
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
    with pytest.raises(SystemExit, match=r"pip install 'ipca_sklearn\[cli\]'"):
        __main__.main()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_summary_of_a_command_is_the_first_line_of_its_help(name):
    summary = COMMANDS[name][1]
    assert load_command(name).help.partition("\n")[0] == summary
    text = " ".join(runner.invoke(app, ["--help"], terminal_width=200, env={"COLUMNS": "200"}).output.split())
    assert name in text and summary in text


def test_a_misspelt_command_gets_a_suggestion():
    done = runner.invoke(app, ["predic"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "Did you mean 'predict'" in done.output


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now)
    with _progress.Progress(100) as progress:
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
    with _progress.Progress(20) as progress:
        progress.show(5)
        progress.show(20)
        print("a row of the table")
    captured = capsys.readouterr()
    assert "20/20" in captured.err and "images/s" in captured.err
    assert captured.out == "a row of the table\n"

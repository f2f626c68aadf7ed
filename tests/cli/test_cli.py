"""The command line as a user runs it."""

from __future__ import annotations

import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn import __main__, __version__
from ipca_sklearn.cli import app

runner = CliRunner()


def test_demo_prints_figures_and_writes_a_picture(tmp_path):
    picture = tmp_path / "demo.png"
    result = runner.invoke(app, ["demo", "-o", str(picture), "--n-train", "20", "--n-test", "6", "--k", "4"])
    assert result.exit_code == 0, result.output
    values = [float(line.split()[-1]) for line in result.output.splitlines() if "ROCAUC" in line or "AUPRO" in line]
    assert len(values) == 3
    assert values[1] > 0.8  # the pixels of textile defects are found, with any seed tried
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

"""`watch`, as it runs on a line."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import _images, app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import HtmlReport

runner = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    for number, image in enumerate(make_textures(24, 0, size=64, random_state=0).train_images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    path = folder / "model.joblib"
    settings = ["--image-size", "64", "--k", "2", "--device", "cpu", "--false-positive-rate", "0.1"]
    done = runner.invoke(app, ["fit", str(folder), "-o", str(path), *settings])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def incoming(model, tmp_path):
    """Two good images, one without any texture, and one that cannot be read."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (0, 1):
        (folder / f"{number}.png").write_bytes((model.parent / f"{number:02d}.png").read_bytes())
    Image.new("RGB", (64, 64), "white").save(folder / "white spot.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def read(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments, table, n_rows, send=None):
    """Run `watch` until the table has some rows, then send a signal."""
    over = threading.Event()

    def wait():
        while not over.wait(0.05):
            if send is not None and table.exists() and table.read_bytes().count(b"\n") > n_rows:
                os.kill(os.getpid(), send)
                return

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        options = ["-o", str(table), "--settle", "0", "--poll", "--device", "cpu"]
        return runner.invoke(app, ["watch", *map(str, arguments), *options])
    finally:
        over.set()
        waiting.join()


def test_rows_are_those_of_predict_and_go_on_after_an_interruption(model, incoming, tmp_path):
    table, page, heard = tmp_path / "rows.csv", tmp_path / "page.html", tmp_path / "heard; $(touch no)"
    listener = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(sys.stdin.read())"
    command = shlex.join([sys.executable, "-c", listener, str(heard)])
    lists = tmp_path / "defects.jsonl"
    options = [model, incoming, "--tries", "1", "--report", page, "--command", command, "--defects", lists]
    done = run(*options, table=table, n_rows=4, send=signal.SIGINT)
    assert done.exit_code == 130, done.output
    rows = {os.path.basename(row["path"]): row for row in read(table)}
    assert sorted(rows) == ["0.png", "1.png", "broken.png", "white spot.png"]
    assert [row["path"] for row in read(table)] == [row["path"] for row in by_time(read(table))]
    assert "broken.png is not an image" in rows["broken.png"]["error"]
    assert rows["white spot.png"]["label"] == "-1"
    for name in ("0.png", "1.png", "white spot.png"):
        assert name in page.read_text()
        assert (int(rows[name]["n_bytes"]), int(rows[name]["modified_ns"])) == (
            (incoming / name).stat().st_size,
            (incoming / name).stat().st_mtime_ns,
        )
    lines = [json.loads(line) for line in lists.read_text().splitlines()]
    assert [line["path"] for line in lines] == [row["path"] for row in read(table)]
    for line, row in zip(lines, read(table), strict=True):
        assert row["n_defects"] == ("" if line["defects"] is None else str(len(line["defects"])))
    told = [json.loads(line) for line in heard.read_text().splitlines()]
    anomalous = [row for row in read(table) if row["label"] == "-1"]
    assert [row["path"] for row in told] == [row["path"] for row in anomalous]
    assert told[-1]["score"] == float(anomalous[-1]["score"]) and set(told[-1]) == set(anomalous[-1])
    assert f"4 images scored, {len(anomalous)} anomalous, 1 cannot be read" in done.stderr

    predicted = runner.invoke(app, ["predict", str(model), str(incoming), "--device", "cpu"])
    for expected in csv.DictReader(predicted.stdout.splitlines()):
        row = rows[os.path.basename(expected.pop("path"))]
        assert row["score"] == expected["score"] or float(row["score"]) == pytest.approx(
            float(expected["score"]), rel=1e-5
        )
        assert {name: row[name] for name in ("label", "error")} == {name: expected[name] for name in ("label", "error")}

    (incoming / "2.png").write_bytes((model.parent / "02.png").read_bytes())
    report = HtmlReport(page, threshold=0, title=f"{model.name}, {incoming}, the latest 500 images")
    before = report.read_encoded()
    done = run(model, incoming, "--report", page, table=table, n_rows=5, send=signal.SIGTERM)
    assert done.exit_code == 143 and "1 images scored" in done.stderr
    assert [os.path.basename(row["path"]) for row in read(table)[4:]] == ["2.png"]
    after = report.read_encoded()
    assert after[:-1] == before and [image.row["name"] for image in after] == [row["path"] for row in read(table)]


def by_time(rows):
    return sorted(rows, key=lambda row: (int(row["modified_ns"]), row["path"]))


def test_a_command_that_fails_is_a_warning_with_the_image(model, incoming, tmp_path):
    command = shlex.join([sys.executable, "-c", "import sys; sys.exit(5)"])
    table = tmp_path / "rows.csv"
    done = run(model, incoming, "--tries", "1", "--command", command, table=table, n_rows=4, send=signal.SIGINT)
    assert done.exit_code == 130 and len(read(table)) == 4
    assert "ended with exit code 5" in done.stderr and "white spot.png" in done.stderr


def test_a_drift_alarm_is_told_once_and_stops_only_if_asked_to(model, incoming, tmp_path):
    white = (incoming / "white spot.png").read_bytes()
    for number in range(30):  # the light is far too bright
        (incoming / f"bright-{number}.png").write_bytes(white)
    table = tmp_path / "rows.csv"
    done = run(model, incoming, "--tries", "1", "--drift-alarm", table=table, n_rows=34, send=signal.SIGINT)
    assert done.exit_code == 130, done.output
    drift = [row["drift"] for row in read(table)]
    n_before = drift.index("1")
    assert drift == ["0"] * n_before + ["1"] * (34 - n_before)
    assert done.stderr.count("drift alarm at image ") == 1
    assert "scores are lower since about image" in " ".join(done.stderr.split())

    table.write_bytes(b"".join(line + b"\n" for line in table.read_bytes().split(b"\n")[: n_before + 1]))
    done = run(model, incoming, "--tries", "1", "--stop-on-drift", table=table, n_rows=34)
    assert done.exit_code == 4, done.output
    # The scores of the first run count: the alarm comes with the same row.
    assert [row["drift"] for row in read(table)] == drift[: n_before + 1]
    assert done.stderr.count("drift alarm at image ") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--command", "no-such-program x"], "there is no such program. It is not run by a shell"),
        (["--command", "'x"], "cannot be split"),
        (["--command", ""], "there is no such program"),
        (["-o", "rows.txt"], "neither .csv nor .jsonl"),
        (["-o", "others.csv"], "others.csv has other columns"),
    ],
)
def test_errors_are_told_before_anything_is_scored(arguments, message, model, incoming, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others.csv").write_text("path,score\n")
    done = runner.invoke(app, ["watch", str(model), str(incoming), "-o", "rows.csv", *arguments])
    assert done.exit_code == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def add(report, row, pictures):
    report.add(row["path"], row["score"], p_value=row["p_value"], error=row["error"], **pictures)


def test_the_report_is_written_now_and_then_and_never_ends_the_watch(tmp_path, monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(_images.time, "monotonic", lambda: now)
    page = tmp_path / "page.html"
    report = _images.LatestReport(page, n_images=500, threshold=-1.0, title="line", normal_scores=np.zeros(9))
    row = {"path": "/in/first.png", "score": -2.0, "p_value": 0.1, "error": None}
    add(report, row, {"image": Image.new("RGB", (8, 8)), "heat_map": Image.new("RGBA", (8, 8))})
    assert "first.png" in page.read_text()
    now += 59
    add(report, row | {"path": "/in/second.png"}, {})
    assert "second.png" not in page.read_text()
    now += 1
    report.write_if_due()
    assert "second.png" in page.read_text()
    page.unlink()
    now += 60
    report.write_if_due()  # no news
    assert not page.exists()
    page.mkdir()
    add(report, row, {})
    assert "the report is not written" in capsys.readouterr().err
    for _ in range(600):
        add(report, row, {})
    assert len(report._latest) == 500


def test_a_new_start_goes_on_with_the_images_of_the_page_that_are_in_the_table(tmp_path, capsys):
    page = tmp_path / "page.html"

    def latest(title, paths):
        report = _images.LatestReport(page, n_images=500, threshold=-1.0, title=title, normal_scores=np.zeros(9))
        report.go_on(paths)
        return [image.row["name"] for image in report._latest], capsys.readouterr().err

    assert latest("line", ["a.png"]) == ([], "")
    report = _images.LatestReport(page, n_images=500, threshold=-1.0, title="line", normal_scores=np.zeros(9))
    for name, score in (("b.png", -2.0), ("a</script>.png", -3.0), ("c.png", None)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))
        row = {"path": name, "score": score, "p_value": 0.1, "error": "no image" if score is None else None}
        add(report, row, {} if score is None else {"image": picture})
    report.write()
    assert report.read_encoded() == list(report._latest)
    assert latest("line", ["b.png", "x.png", "a</script>.png"]) == (["b.png", "a</script>.png"], "")
    assert latest("line", []) == ([], "")  # a table that begins anew
    for damage, message in (
        (lambda text: text.replace("line,", "another,"), "page.html is no report of line"),
        (lambda text: text.replace('"score":', '"scor":'), "page.html is damaged"),
        (lambda text: text[: len(text) // 4], "page.html is damaged"),
    ):
        whole = page.read_text()
        page.write_text(damage(whole))
        kept, said = latest("line", ["b.png"])
        assert kept == [] and "the report begins anew: " in said and message in said
        page.write_text(whole)

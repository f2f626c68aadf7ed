"""The HTML report: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from typer.testing import CliRunner

import ipca_sklearn
from ipca_sklearn import PatchGaussianDetector
from ipca_sklearn.cli import app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import HtmlReport, _report
from ipca_sklearn.persistence import load

NASTY = "</script><script>alert(1)</script> \"quoted\" 'single' & <b>ünïcode</b> \u2028 {{rows}} {{title}}.png"


def noise(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def write(path: Path, scores: list[float | None], **options: Any) -> Path:
    with HtmlReport(path, **{"threshold": -3.0, **options}) as report:
        for number, score in enumerate(scores):
            if score is None:
                report.add(f"broken{number}.png", error=NASTY)
            else:
                report.add(f"part{number}.png", score, p_value=0.25, image=noise(number), heat_map=noise(-number % 99))
    return path


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Return rows, settings and the whole text of a page."""
    text = path.read_text(encoding="utf-8")
    found = dict(re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', text, re.DOTALL))
    return json.loads(found["rows"]), json.loads(found["settings"]), text


def test_images_come_by_score_with_those_without_first(tmp_path: Path) -> None:
    rows, settings, _ = read(write(tmp_path / "report.html", [-1.0, None, -5.0, -2.0, None, -5.0]))
    assert [row["name"] for row in rows] == [
        "broken1.png", "broken4.png", "part2.png", "part5.png", "part3.png", "part0.png",
    ]  # fmt: skip
    assert [row["score"] for row in rows] == [None, None, -5, -5, -2, -1]
    assert settings == {"threshold": -3.0, "normal_scores": []}


def decoded(address: str) -> Image.Image:
    """Return the picture of an address in the page."""
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def large_pictures(text: str) -> dict[int, Image.Image]:
    found = re.findall(r'<script type="text/plain" id="picture-(\d+)">(.*?)</script>', text)
    return {int(number): decoded(address) for number, address in found}


def test_pictures_are_small_and_large_and_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with HtmlReport(path, threshold=0, thumbnail_size=32, picture_size=100) as report:
        report.add("a", 1.0, image=noise(0, (100, 200)), heat_map=noise(1, (40, 80)))
        report.add("b", 2.0, image=noise(0, (10, 20)))
    rows, _, text = read(path)
    assert [decoded(rows[0][name]).size for name in ("image", "heat")] == [(32, 16), (64, 32)]
    assert [row["size"] for row in rows] == [[100, 200], [10, 20]]
    assert {number: picture.size for number, picture in large_pictures(text).items()} == {0: (100, 50)}
    for none in (0, None):
        with HtmlReport(path, threshold=0, picture_size=none) as report:
            report.add("a", 1.0, image=noise(0, (300, 200)))
        assert large_pictures(read(path)[2]) == {}


def test_a_large_picture_is_that_of_its_row(tmp_path: Path) -> None:
    with HtmlReport(tmp_path / "report.html", threshold=0) as report:
        for number in (2, 0, 1):  # rows are sorted, pictures are not
            report.add(f"{number}", float(number), image=Image.new("RGB", (200 + number, 200)))
    rows, _, text = read(tmp_path / "report.html")
    pictures = large_pictures(text)
    assert [pictures[row["id"]].width for row in rows] == [200, 201, 202]


def test_a_layer_stays_transparent_and_an_empty_one_costs_nothing(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (80, 40))
    layer.paste((255, 0, 0, 200), (0, 0, 40, 40))
    with HtmlReport(tmp_path / "report.html", threshold=0) as report:
        report.add("a", 1.0, image=noise(0, (40, 80)), heat_map=layer, boxes=[(np.int64(1), 2, 3, 4)])
        report.add("b", 2.0, image=noise(0, (40, 80)), heat_map=Image.new("RGBA", (80, 40)), size=(400, 800))
    rows, _, _ = read(tmp_path / "report.html")
    found = decoded(rows[0]["heat"])
    assert found.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(found)[..., 3], np.asarray(layer)[..., 3])
    assert rows[0]["boxes"] == [[1, 2, 3, 4]]
    assert (rows[1]["heat"], rows[1]["size"]) == (None, [400, 800])


def test_of_a_thousand_boxes_the_page_holds_the_first_hundred_and_their_number(tmp_path: Path) -> None:
    boxes = [(2 * number, 0, 1, 1) for number in range(1000)]
    with HtmlReport(tmp_path / "report.html", threshold=0) as report:
        report.add("a", -1.0, image=noise(0, (40, 80)), boxes=boxes)
    rows, _, _ = read(tmp_path / "report.html")
    assert rows[0]["boxes"] == [list(box) for box in boxes[:100]]
    assert rows[0]["n_boxes"] == 1000


def test_encoded_images_fit_any_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_now", lambda: datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    direct, packed = tmp_path / "direct.html", tmp_path / "packed.html"
    write(direct, [-1.0, None, -5.0])
    images = []
    template = HtmlReport(packed, threshold=-3.0)
    monkeypatch.setattr(template, "add_encoded", images.append)
    template.add("part0.png", -1.0, p_value=0.25, image=noise(0), heat_map=noise(0))
    template.add("broken1.png", error=NASTY)
    template.add("part2.png", -5.0, p_value=0.25, image=noise(2), heat_map=noise(97))
    with HtmlReport(packed, threshold=-3.0) as report:
        for image in images:
            report.add_encoded(image)
    assert packed.read_bytes() == direct.read_bytes()


def test_names_titles_and_messages_are_text_and_nothing_else(tmp_path: Path) -> None:
    with HtmlReport(tmp_path / "report.html", threshold=0, title=NASTY) as report:
        report.add(NASTY, 1.0)
        report.add("b", error=NASTY)
    rows, _, text = read(tmp_path / "report.html")
    assert rows[1]["name"] == rows[0]["error"] == NASTY
    assert text.count("<script") == 3  # settings, rows, ours
    assert text.count("alert(1)") == text.count("alert(1)\\u003c") + 2  # two of them in the escaped title
    assert html.escape(NASTY.partition("{{")[0]) in text


def test_the_page_asks_for_nothing_but_itself(tmp_path: Path) -> None:
    _, _, text = read(write(tmp_path / "report.html", [-1.0]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    for kind, tag in (("script-src", "<script>"), ("style-src", "<style>")):
        inside = text.partition(tag)[2].partition(tag.replace("<", "</"))[0]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]

    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found += [name for name, _ in attributes if name in ("src", "href", "style") or name.startswith("on")]

    links = Links()
    links.feed(text)
    assert links.found == []


def test_an_error_in_the_block_leaves_the_old_page(tmp_path: Path) -> None:
    path = write(tmp_path / "report.html", [-1.0])
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), HtmlReport(path, threshold=0) as report:
        report.add("a", 1 / 0)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        HtmlReport(tmp_path / "missing" / "report.html", threshold=0).__enter__()


def provenance(text: str) -> str:
    """Return what the page says about itself, without marks."""
    found = re.search(r'<p id="provenance">(.*?)</p>', text)
    assert found is not None
    return html.unescape(re.sub(r"<.*?>", "", found[1]))


def test_the_page_says_which_model_when_and_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_now", lambda: datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    file = tmp_path / "line 7 & <8>.joblib"
    file.write_bytes(b"a model")
    digest = hashlib.sha256(b"a model").hexdigest()
    version = ipca_sklearn.__version__
    _, _, text = read(write(tmp_path / "report.html", [-1.0, None], model=file, source="/parts/<today>"))
    expected = f"Model: line 7 & <8>.joblib (SHA-256 {digest[:12]}) · 2 images: /parts/<today> · 2026-01-02 03:04 +0000"
    assert provenance(text) == f"{expected} · ipca_sklearn {version}"
    _, _, text = read(write(tmp_path / "report.html", [-1.0]))
    assert provenance(text) == f"1 image · 2026-01-02 03:04 +0000 · ipca_sklearn {version}"
    for model in ("a text", "caf\udce9\n"):
        assert "\n" not in provenance(read(write(tmp_path / "report.html", [], model=model))[2])


def test_a_fitted_estimator_is_told_by_what_it_has_learnt(tmp_path: Path) -> None:
    steps = [np.random.default_rng(seed).normal(size=(40, 2, 6)) for seed in (0, 0, 1)]
    models = [make_pipeline(FunctionTransformer(), PatchGaussianDetector(2)).fit(X) for X in steps]
    texts = [provenance(read(write(tmp_path / "report.html", [-1.0], model=model))[2]) for model in models]
    assert re.match(r"Model: FunctionTransformer, PatchGaussianDetector \(digest [0-9a-f]{12}\) · 1 image", texts[0])
    assert texts[0].partition(" · ")[0] == texts[1].partition(" · ")[0] != texts[2].partition(" · ")[0]


def test_a_model_that_is_none_is_refused_before_the_page_is_begun(tmp_path: Path) -> None:
    path = write(tmp_path / "report.html", [-1.0])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="model is a int; give its file"):
        HtmlReport(path, threshold=0, model=3).__enter__()
    with pytest.raises(FileNotFoundError, match=r"missing\.joblib"):
        HtmlReport(path, threshold=0, model=tmp_path / "missing.joblib").__enter__()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_nothing_to_show_and_no_threshold_are_pages_too(tmp_path: Path) -> None:
    rows, settings, _ = read(write(tmp_path / "report.html", [], threshold=-np.inf))
    assert rows == []
    assert settings["threshold"] is None
    rows, _, _ = read(write(tmp_path / "report.html", [np.nan]))
    assert rows[0]["score"] is None


class Score:
    """A number of another library."""

    def __float__(self) -> float:
        return -1.25


def test_numbers_of_any_kind_paths_and_errors_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with HtmlReport(path, threshold=np.float32(-2.5), title="caf\udce9") as report:
        report.add(Path("a") / "b.png", np.float32(-1.5), p_value=np.float64(0.5))
        report.add("c.png", Score(), p_value=np.nan)  # type: ignore[arg-type]
        report.add("d.png", np.float64("nan"), p_value=np.float64(0.5), error=ValueError("no image"))
        report.add("caf\udce9.png", np.float16(-np.inf))
        report.add("f.png", np.int64(-1), p_value=None)
    rows, settings, text = read(path)
    assert settings["threshold"] == -2.5
    assert "caf\\udce9" in text
    found = {row["name"]: (row["score"], row["p"], row["error"]) for row in rows}
    assert found == {
        str(Path("a") / "b.png"): (-1.5, 0.5, None),
        "c.png": (-1.25, None, None),
        "d.png": (None, None, "no image"),
        "caf\udce9.png": (None, None, None),
        "f.png": (-1.0, None, None),
    }


def test_predict_writes_a_report(tmp_path: Path) -> None:
    data = make_textures(24, 4, size=64, random_state=0)
    for part, images in (("good", data.train_images), ("new", data.test_images)):
        (tmp_path / part).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(np.squeeze(image)).save(tmp_path / part / f"{index:02d}.png")
    (tmp_path / "new" / "broken.png").write_text("no image")
    model, report = tmp_path / "model.joblib", tmp_path / "report.html"
    settings = [
        "--image-size",
        "64",
        "--crop-size",
        "64",
        "--k",
        "4",
        "--device",
        "cpu",
        "--false-positive-rate",
        "0.2",
    ]
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "good"), "-o", str(model), *settings])
    assert done.exit_code == 0, done.output
    lines = tmp_path / "rows.jsonl"
    places = [str(model), str(tmp_path / "new")]
    done = CliRunner().invoke(app, ["predict", *places, "-o", str(lines), "--report", str(report), "--device", "cpu"])
    assert done.exit_code == 3, done.output
    table = {row["path"]: row for row in map(json.loads, lines.read_text().splitlines())}
    rows, settings_, text = read(report)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    said = f"Model: model.joblib (SHA-256 {digest}) · {len(rows)} images: {(tmp_path / 'new').absolute()} · "
    assert provenance(text).startswith(said)
    assert {row["name"]: row["score"] for row in rows} == {path: row["score"] for path, row in table.items()}
    assert rows[0]["name"].endswith("broken.png")
    assert "not an image" in rows[0]["error"]
    labels = [1 if row["score"] >= settings_["threshold"] else -1 for row in rows[1:]]
    assert labels == [table[row["name"]]["label"] for row in rows[1:]]
    for row in rows[1:]:
        assert row["size"] == [64, 64]
        assert row["boxes"][0] == [table[row["name"]][side] for side in ("top", "left", "height", "width")]
        assert row["heat"] is None or decoded(row["heat"]).mode == "RGBA"
    assert any(row["heat"] for row in rows[1:])
    assert len(settings_["normal_scores"]) == len(load(model)[-1].calibration_scores_)

"""The HTML report: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipca_sklearn.cli import app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import HtmlReport

NASTY = "</script><script>alert(1)</script> \"quoted\" 'single' & <b>ünïcode</b> \u2028 {{rows}} {{title}}.png"


def noise(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


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


def test_pictures_are_small_and_keep_their_shape(tmp_path: Path) -> None:
    with HtmlReport(tmp_path / "report.html", threshold=0, thumbnail_size=32) as report:
        report.add("a", 1.0, image=noise(0, (100, 200)), heat_map=noise(1, (20, 10)))
    rows, _, _ = read(tmp_path / "report.html")
    assert [decoded(rows[0][name]).size for name in ("image", "heat")] == [(32, 16), (10, 20)]


def test_a_page_has_large_pictures_layers_boxes_and_normal_scores(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (200, 100))
    clear = layer.copy()
    layer.putpixel((50, 50), (255, 0, 0, 255))
    pages = {}
    for side in (100, None):
        options = {"threshold": 0, "thumbnail_size": 32, "picture_size": side, "normal_scores": [2.0, np.nan, 1.0]}
        with HtmlReport(tmp_path / "report.html", **options) as report:  # type: ignore[arg-type]
            report.add("a", 2.0, image=noise(0, (100, 200)), heat_map=layer, boxes=[(1, 2, 3, np.int64(4))])
            report.add("b", 1.0, image=noise(1, (100, 200)), heat_map=clear, size=(1000, 2000))
        pages[side] = read(tmp_path / "report.html")
    rows, settings, text = pages[100]
    assert settings["normal_scores"] == [1.0, 2.0]
    assert [row["name"] for row in rows] == ["b", "a"]
    assert rows[0]["heat"] is None and rows[0]["size"] == [1000, 2000]
    assert decoded(rows[1]["heat"]).mode == "RGBA" and decoded(rows[1]["heat"]).getchannel("A").getextrema()[0] == 0
    assert rows[1]["boxes"] == [[1, 2, 3, 4]] and rows[1]["size"] == [100, 200]
    large = dict(re.findall(r'<script type="text/plain" id="picture-(\d+)">(.*?)</script>', text))
    assert {decoded(large[str(row["id"])]).size for row in rows} == {(100, 50)}
    assert 'id="picture-' not in pages[None][2]


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


def test_printing_shows_all_pictures_and_the_header_hides_no_card(tmp_path: Path) -> None:
    """What the page asks of a browser; the page itself was not printed here."""
    _, _, text = read(write(tmp_path / "report.html", [-1.0]))
    assert re.search(r'addEventListener\("beforeprint", .*shown\.forEach.*showPictures', text)
    assert re.search(r"@media print {.*li { content-visibility: visible", text, re.DOTALL)
    assert "scrollPaddingTop = covers" in text and "position: sticky" in text


def test_predict_writes_a_report(tmp_path: Path) -> None:
    data = make_textures(24, 4, size=64, random_state=0)
    for part, images in (("good", data.train_images), ("new", data.test_images)):
        (tmp_path / part).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(np.squeeze(image)).save(tmp_path / part / f"{index:02d}.png")
    (tmp_path / "new" / "broken.png").write_text("no image")
    model, report = tmp_path / "model.joblib", tmp_path / "report.html"
    settings = ["--image-size", "64", "--crop-size", "64", "--k", "4", "--device", "cpu"]
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "good"), "-o", str(model), *settings])
    assert done.exit_code == 0, done.output
    lines = tmp_path / "rows.jsonl"
    places = [str(model), str(tmp_path / "new")]
    done = CliRunner().invoke(app, ["predict", *places, "-o", str(lines), "--report", str(report), "--device", "cpu"])
    assert done.exit_code == 3, done.output
    table = {row["path"]: row for row in map(json.loads, lines.read_text().splitlines())}
    rows, settings_, _ = read(report)
    assert {row["name"]: row["score"] for row in rows} == {path: row["score"] for path, row in table.items()}
    assert rows[0]["name"].endswith("broken.png")
    assert "not an image" in rows[0]["error"]
    labels = [1 if row["score"] >= settings_["threshold"] else -1 for row in rows[1:]]
    assert labels == [table[row["name"]]["label"] for row in rows[1:]]


# -------------------------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A tab of a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--single-process", "--no-zygote"]
        with driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as chromium:
            page = chromium.new_page(viewport={"width": 1000, "height": 800})
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            yield page
            assert errors == []


def names(page: Any) -> list[str]:
    """Return the names of the images that are shown, in order."""
    return [card.get_attribute("title") for card in page.locator("li:not([hidden]) .name").all()]


def go(page: Any, path: Path, fragment: str = "") -> None:
    page.goto("about:blank")
    page.goto(f"{path.as_uri()}#{fragment}")


def test_a_browser_shows_the_images_and_moves_the_threshold(tmp_path: Path, browser: Any) -> None:
    path = write(tmp_path / "report.html", [-1.0, None, -5.0, -2.0, -4.0])
    go(browser, path)
    assert names(browser) == ["broken1.png", "part2.png", "part4.png", "part3.png", "part0.png"]
    assert "2 of 4 images anomalous, 1 unreadable; 5 shown" in browser.text_content("#status")
    go(browser, path, "threshold=-1.5")
    assert "3 of 4 images anomalous" in browser.text_content("#status")
    for fragment, expected in {
        "label=anomalous": ["part2.png", "part4.png"],
        "label=error&text=BROKEN": ["broken1.png"],
        "label=normal&text=part0&threshold=-4.5": ["part0.png"],
    }.items():
        go(browser, path, fragment)
        assert names(browser) == expected
    go(browser, path, "text=nothing")
    assert browser.locator("#none").is_visible()


def test_a_browser_takes_names_as_text(tmp_path: Path, browser: Any) -> None:
    with HtmlReport(tmp_path / "report.html", threshold=0) as report:
        report.add(NASTY, 1.0, image=noise(0))
    go(browser, tmp_path / "report.html")
    assert names(browser) == [NASTY]
    assert browser.locator("main b").count() == 0


def test_images_are_ticked_by_keyboard_kept_and_saved(tmp_path: Path, browser: Any) -> None:
    path = write(tmp_path / "report.html", [-1.0, -5.0, -4.0])
    go(browser, path)
    browser.locator("li .open").first.focus()
    browser.keyboard.press("Enter")
    assert browser.text_content("#viewer-name") == "part1.png"
    browser.keyboard.press("d")
    browser.keyboard.press("ArrowRight")
    assert browser.text_content("#viewer-name") == "part2.png"
    browser.keyboard.press("g")
    browser.keyboard.press("Escape")
    assert not browser.locator("#viewer").is_visible()
    browser.reload()
    assert "ticked: 1 good, 1 defect" in browser.text_content("#status")
    with browser.expect_download() as download:
        browser.get_by_text("Save ticks").click()
    download.value.save_as(tmp_path / "ticks.csv")
    with (tmp_path / "ticks.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], float(row["score"])) for row in rows] == [
        ("part1.png", "defect", -5.0), ("part2.png", "good", -4.0),
    ]  # fmt: skip


def test_ten_thousand_images_load_only_the_pictures_near_the_window(tmp_path: Path, browser: Any) -> None:
    picture = noise(0, (48, 48))
    with HtmlReport(tmp_path / "report.html", threshold=500) as report:
        for number in range(10_000):
            report.add(f"part{number}.png", float(number), p_value=0.5, image=picture, heat_map=picture)
    go(browser, tmp_path / "report.html")
    assert "500 of 10000 images anomalous; 10000 shown" in browser.text_content("#status")
    browser.wait_for_selector("img.image[src]")
    assert 0 < browser.locator("img[src]").count() < 1000

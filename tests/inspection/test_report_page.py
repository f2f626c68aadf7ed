"""The HTML report in a browser: what it shows, and what it does by pointer and by keyboard.

Needs playwright (`pip install --group browser`) and a Chromium: on the PATH, or named by IPCA_SKLEARN_CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ipca_sklearn.cli._arguments import read_ticks
from ipca_sklearn.inspection import HtmlReport

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the group browser")
CHROMIUM = os.environ.get("IPCA_SKLEARN_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")
NASTY = "</script><script>alert(1)</script> \"quoted\" 'single' & <b>ünïcode</b> \u2028 {{rows}} {{title}}.png"


def noise(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def write(path: Path, scores: dict[str, float | None], **options: Any) -> Path:
    """A page of these names and scores; None is an image that could not be read."""
    layer = Image.new("RGBA", (90, 60))
    layer.paste((255, 0, 0, 200), (0, 0, 20, 20))
    with HtmlReport(path, **{"threshold": -3.0, **options}) as report:
        for number, (name, score) in enumerate(scores.items()):
            if score is None:
                report.add(name, error="it is no image")
            else:
                report.add(
                    name,
                    score,
                    p_value=0.25,
                    image=noise(number),
                    heat_map=layer,
                    boxes=[(0, 0, 20, 20), (30, 40, 5, 5)],
                )
    return path


SCORES = {"a/one.png": -1.0, "a/two.png": None, "b/three.png": -5.0, "b/four.png": -2.0, "b/ten.png": -4.0}
WORST_FIRST = ["a/two.png", "b/three.png", "b/ten.png", "b/four.png", "a/one.png"]


class Window:
    """A page in a browser."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, path: Path, fragment: str = "") -> Window:
        self.page.goto("about:blank")  # else only what is after # changes, and nothing is loaded
        self.page.goto(f"{path.as_uri()}#{fragment}")
        return self.settle()

    def settle(self) -> Window:
        """Wait until two frames have been drawn: the page updates once a frame."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self

    def press(self, *keys: str) -> Window:
        for key in keys:
            self.page.keyboard.press(key)
        return self.settle()

    @property
    def names(self) -> list[str]:
        """The images that are shown, in the order of the document, which is that of a screen reader."""
        return self.page.eval_on_selector_all("li:not([hidden]) .name", "(names) => names.map((name) => name.title)")

    @property
    def focused(self) -> str:
        """The name of the card in focus."""
        return self.page.evaluate("document.activeElement.closest('li')?.querySelector('.name').title ?? ''")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def browser_of(tmp_path: Path) -> Iterator[Callable[..., Window]]:
    """Start a browser with a window; an error of the page's script or policy fails the test."""
    problems: list[str] = []
    with playwright_api.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])

        def start(**options: Any) -> Window:
            page = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options}).new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
            return Window(page)

        yield start
        browser.close()
    assert problems == []


@pytest.fixture
def window(browser_of: Callable[..., Window]) -> Window:
    return browser_of()


def test_images_are_filtered_by_label_path_and_threshold(window, tmp_path):
    path = write(tmp_path / "report.html", SCORES)
    window.open(path)
    assert window.names == WORST_FIRST
    assert window.text("#status") == "2 of 4 images anomalous, 1 unreadable; 5 shown"
    assert window.page.locator("li img[src^='data:image/jpeg']").count() == 4
    window.open(path, "threshold=-1.5")
    assert window.text("#status").startswith("3 of 4 images anomalous")
    assert window.open(path, "label=anomalous").names == ["b/three.png", "b/ten.png"]
    assert window.open(path, "label=error&text=TWO").names == ["a/two.png"]
    assert window.open(path, "label=normal&text=one&threshold=-4.5").names == ["a/one.png"]
    assert window.open(path, "text=nothing").page.locator("#none").is_visible()


def test_images_are_sorted_and_grouped_and_the_address_keeps_it(window, tmp_path):
    path = write(tmp_path / "report.html", SCORES)
    window.open(path).page.evaluate("document.querySelector('li').mark = 1")
    orders = {
        "normal": ["a/one.png", "b/four.png", "b/ten.png", "b/three.png", "a/two.png"],
        "doubt": ["b/ten.png", "b/four.png", "b/three.png", "a/one.png", "a/two.png"],
        "path": ["a/one.png", "a/two.png", "b/four.png", "b/ten.png", "b/three.png"],
    }
    for sort, names in orders.items():
        window.page.select_option("#sort", sort)
        assert window.settle().names == names
    window.page.select_option("#sort", "anomalous")
    window.page.check("#group")
    assert window.settle().names == ["a/two.png", "a/one.png", "b/three.png", "b/ten.png", "b/four.png"]
    assert window.page.locator("h2:visible").all_inner_texts() == ["a 2 images, 0 anomalous", "b 3 images, 2 anomalous"]
    window.page.fill("#text", "three")
    assert window.settle().page.locator("section:visible").count() == 1
    assert window.page.evaluate("[...document.querySelectorAll('li')].filter((card) => card.mark).length") == 1
    fragment = window.page.url.partition("#")[2]
    assert set(fragment.split("&")) == {"text=three", "group=1"}
    window.open(path, fragment)
    assert window.page.is_checked("#group")
    assert window.names == ["b/three.png"]


def test_the_threshold_is_dragged_and_moved_by_keys(window, tmp_path):
    scores = {f"{number}.png": -float(number) for number in range(11)}
    window.open(write(tmp_path / "report.html", scores, normal_scores=np.linspace(-5, 0, 99)))
    assert window.text("#status").startswith("7 of 11 images anomalous")
    assert window.text("#threshold-words") == "about 41 % of new normal images would be called anomalous"
    place = window.page.locator("#threshold").bounding_box()
    start = place["x"] + 12 + (place["width"] - 24) * (-3 + 10.2) / 10.4
    window.page.mouse.move(start, place["y"] + 40)
    window.page.mouse.down()
    window.page.mouse.move(place["x"] + 12 + (place["width"] - 24) * (-7.5 + 10.2) / 10.4, place["y"] + 40)
    window.page.mouse.up()
    assert window.settle().text("#status").startswith("3 of 11 images anomalous")
    assert float(window.page.input_value("#threshold")) == pytest.approx(-7.5, abs=0.05)
    x = float(window.page.locator("svg#histogram rect").nth(1).get_attribute("x"))
    assert x == pytest.approx(1000 * 2.7 / 10.4, abs=5)
    assert window.text("#threshold-words").startswith("fewer than 1 in 99")
    window.page.focus("#threshold")
    window.press(*["ArrowRight"] * 20)
    assert float(window.page.input_value("#threshold")) > -6.5
    window.page.click("#reset")
    assert window.settle().text("#status").startswith("7 of 11")


@pytest.mark.parametrize(
    ("p_value", "words", "long"),
    [
        (0.005, "as rare as 1 in 200", "about 1 in 200 scores as low"),
        (1 / 1234, "as rare as 1 in 1200", "about 1 in 1200 scores"),
        (1 / 5000, "at least as rare as 1 in 5000", "It is at least as rare as 1 in 5000 normal images."),
        (0.75, "like 3 of 4 normal images", "3 of 4 score as low as this one or lower"),
        (0.5, "like 1 of 2 normal images", "1 of 2"),
        (0.12, "like 1 of 10 normal images", "1 of 10"),
        (0.999, "like almost all normal images", "almost all"),
    ],
)
def test_p_values_are_shares_in_words(p_value, words, long, window, tmp_path):
    with HtmlReport(tmp_path / "report.html", threshold=-3, normal_scores=np.zeros(4999)) as report:
        report.add("a.png", -1.0, p_value=p_value)
    window.open(tmp_path / "report.html")
    assert words in window.page.locator("li .values").all_inner_texts()
    window.page.click(".open")
    assert long in window.text("#viewer-words")


def test_an_image_is_opened_large_and_gone_through_by_keys(window, tmp_path):
    path = write(tmp_path / "report.html", SCORES, thumbnail_size=20)
    window.open(path).press(*["Tab"] * 12)
    while window.focused != WORST_FIRST[0]:
        window.press("Tab")
    window.press("ArrowRight", "Enter")
    page = window.page
    assert page.locator("#viewer").is_visible()
    assert window.text("#viewer-name") == "b/three.png"
    assert window.text("#viewer-place") == "2 of 5"
    assert window.text("#viewer-label") == "anomalous"
    assert page.eval_on_selector("#viewer-image", "(image) => image.decode().then(() => image.naturalWidth)") == 90
    assert page.locator("#viewer-boxes rect").count() == 2
    frame, heat, image = (page.locator(f"#viewer-{part}").bounding_box() for part in ("frame", "heat", "image"))
    assert frame == heat == image
    assert frame["width"] / frame["height"] == pytest.approx(1.5, rel=0.01)
    assert frame["width"] > 500
    window.press("ArrowRight", "ArrowRight")
    assert window.text("#viewer-name") == "b/four.png"
    assert page.locator("#viewer-boxes rect.faint").count() == 2  # of a normal image
    window.press("o")
    assert not page.locator("#viewer-boxes").is_visible()
    opacity = "getComputedStyle(document.querySelector('#viewer-heat')).opacity"
    assert page.evaluate(opacity) == "0.6"
    window.press("h")
    assert page.evaluate(opacity) == "0"
    window.press("h")
    page.fill("#viewer-heat-control", "100")
    assert window.settle().page.evaluate(opacity) == "1"
    assert page.input_value("#heat") == "100"
    window.press("ArrowRight", "ArrowRight")  # in the slider: it has the keys itself
    assert window.text("#viewer-name") == "b/four.png"
    page.click("#next")
    assert window.text("#viewer-name") == "a/one.png"
    assert page.is_disabled("#next")
    window.press("ArrowRight", "Escape")
    assert not page.locator("#viewer").is_visible()
    assert window.focused == "a/one.png"


def test_many_regions_are_counted_and_the_worst_are_outlined(window, tmp_path):
    path = tmp_path / "report.html"
    with HtmlReport(path, threshold=0.0) as report:
        for name, n_boxes in (("many.png", 1000), ("few.png", 3)):
            report.add(name, -1.0, image=noise(0), boxes=[(number, 0, 1, 1) for number in range(n_boxes)])
    window.open(path).page.click("text=many.png")
    assert window.settle().page.locator("#viewer-boxes rect.thin").count() == 100
    assert window.text("#viewer-regions") == "1000 regions; outlines show the 100 worst."
    window.press("ArrowRight")
    assert window.page.locator("#viewer-boxes rect").count() == 3
    assert not window.page.locator("#viewer-regions").is_visible()


@pytest.mark.parametrize("width", [390, 1200])
def test_a_long_note_is_cut_on_its_card_and_whole_in_the_large_view(window, tmp_path, width):
    path, note = tmp_path / "report.html", f"no product that was learnt; nearest: {'zinc_plated_nut_M8x1.25_' * 12}left"
    with HtmlReport(path, threshold=0.0) as report:
        report.add("a.png", -1.0, image=noise(0), note=note)
    page = window.page
    page.set_viewport_size({"width": width, "height": 900})
    window.open(path)
    card = page.locator("li .remark")
    assert card.bounding_box()["height"] < 90
    assert card.evaluate("(it) => it.scrollHeight > it.clientHeight && it.scrollWidth <= it.clientWidth")
    page.click("text=a.png")
    large = window.settle().page.locator("#viewer-note")
    assert large.evaluate("(it) => it.scrollHeight <= it.clientHeight && it.scrollWidth <= it.clientWidth")
    assert large.bounding_box()["x"] + large.bounding_box()["width"] <= width


def test_arrow_keys_go_along_lines_and_columns(window, tmp_path):
    scores = {f"{number}.png": float(number) for number in range(20)}
    window.open(write(tmp_path / "report.html", scores)).page.focus(".open")
    tops = window.page.eval_on_selector_all("li", "(cards) => cards.map((card) => card.offsetTop)")
    columns = tops.count(tops[0])
    assert 1 < columns < 10
    for key, number in (("ArrowDown", columns), ("ArrowRight", columns + 1), ("ArrowUp", 1), ("ArrowLeft", 0),
                        ("ArrowLeft", 0), ("End", 19), ("Home", 0)):  # fmt: skip
        assert window.press(key).focused == f"{number}.png"
    tabs = window.page.locator("li button[tabindex='0']").count()
    assert tabs == 3  # one card at a time is in the way of the tab key, with its two ticks


def test_ticks_are_kept_by_the_browser_and_saved_as_a_file_that_python_reads(window, tmp_path, monkeypatch):
    names = ['a, "b".png', "=1+1.png", "ünï.png", os.fsdecode(b"caf\xe9.png")]
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).write_bytes(b"")
    path = write(tmp_path / "report.html", {name: -float(number) for number, name in enumerate(names)}, threshold=9)
    window.open(path)
    assert window.page.is_disabled("#save")
    window.page.focus("li:last-of-type .open")  # the most normal one: the first of the names
    window.press("g", "ArrowLeft", "g", "ArrowLeft", "d", "ArrowLeft", "g", "d")
    assert window.text("#status").endswith("ticked: 2 good, 2 defects")
    assert window.page.locator("li [aria-pressed='true']").all_inner_texts() == ["defect", "defect", "good", "good"]
    window.open(path)
    assert window.text("#status").endswith("ticked: 2 good, 2 defects")
    assert len(window.open(path, "label=contrary").names) == 2
    assert len(window.open(path, "label=defect").names) == 2
    with window.page.expect_download() as waiting:
        window.page.click("#save")
    assert waiting.value.suggested_filename == "ticks.csv"
    waiting.value.save_as(tmp_path / "ticks.csv")
    ticks = read_ticks(tmp_path / "ticks.csv")
    assert [str(image) for image in ticks.good] == names[:2]
    assert [str(image) for image in ticks.defects] == names[2:]
    assert (
        (tmp_path / "ticks.csv").read_bytes().startswith(b'\xef\xbb\xbfpath,label,score\r\n"a, ""b"".png",good,0\r\n')
    )
    window.page.on("dialog", lambda dialog: dialog.accept())
    window.page.click("#forget")
    assert "ticked" not in window.settle().text("#status")


def test_a_tick_is_taken_back_and_set_in_the_large_view(window, tmp_path):
    path = write(tmp_path / "report.html", SCORES)
    window.open(path, "label=unticked").page.click("text=three.png")
    window.press("d", "ArrowRight", "g", "g")
    window.page.click("text=This is good")
    assert window.settle().page.get_attribute("#viewer [data-tick=good]", "aria-pressed") == "true"
    window.press("ArrowLeft")  # it is not shown in the list any more, but it is gone through
    assert window.text("#viewer-name") == "b/three.png"
    assert window.page.get_attribute("#viewer [data-tick=defect]", "aria-pressed") == "true"
    window.press("Escape")
    assert window.names == ["a/two.png", "b/four.png", "a/one.png"]
    assert window.focused == "a/two.png"


def test_ticks_of_images_that_left_the_page_stay_in_the_file(window, tmp_path):
    path = write(tmp_path / "report.html", SCORES)
    window.open(path).page.click("li:nth-of-type(2) [data-tick=defect]")
    window.settle()
    write(path, {"c.png": -1.0})
    assert "0 good, 0 defects, 1 that is not on this page" in window.open(path).text("#status")


def test_without_storage_the_page_says_so_and_ticks_hold_while_it_is_open(browser_of, tmp_path):
    window = browser_of()
    window.page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })")
    window.open(write(tmp_path / "report.html", SCORES))
    assert "keeps no ticks" in window.text("#not-kept")
    window.page.click("li:nth-of-type(2) [data-tick=defect]")
    assert window.settle().text("#status").endswith("ticked: 0 good, 1 defect")


def test_names_are_text(window, tmp_path):
    with HtmlReport(tmp_path / "report.html", threshold=0) as report:
        report.add(NASTY, 1.0, image=noise(0))
        report.add("b.png", error=NASTY)
    window.open(tmp_path / "report.html")
    assert window.names == ["b.png", NASTY]
    window.page.click("li:nth-of-type(2) .open")
    assert window.page.locator("#viewer-name").text_content() == NASTY
    window.press("ArrowLeft")
    assert window.page.locator("#viewer-error").text_content() == NASTY
    assert window.page.locator("b").count() == 0


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
NARROW = {"viewport": {"width": 500, "height": 1240}, "color_scheme": "dark"}
LAPTOP = {"viewport": {"width": 1440, "height": 900}}
SMALL = {"viewport": {"width": 1000, "height": 700}}
SHAPES = {"tall": [(250, 50)], "upright": [(250, 100)], "square": [(90, 90)], "wide": [(50, 250)]}
SHAPES["mixed"] = [shape for shapes in SHAPES.values() for shape in shapes]


@pytest.mark.parametrize(
    ("screen", "shape"),
    [
        pytest.param(screen, shape, id=f"{name}-{shape}")
        for name, screen, shapes in [
            ("phone", PHONE, ("tall", "upright", "mixed")),
            ("narrow", NARROW, ("tall", "mixed")),
            ("laptop", LAPTOP, ("wide", "mixed")),
            ("small", SMALL, ("square", "mixed")),
        ]
        for shape in shapes
    ],
)
def test_pictures_fill_their_places_and_cover_nothing(screen, shape, browser_of, tmp_path):
    window = browser_of(**screen)
    with HtmlReport(tmp_path / "report.html", threshold=-3, normal_scores=np.linspace(-5, 0, 99)) as report:
        for number in range(24):
            size = SHAPES[shape][number % len(SHAPES[shape])]
            report.add(f"long_{'name_' * 3}{number:05}.png", float(-number), p_value=0.01, image=noise(number, size))
    page = window.open(tmp_path / "report.html").page
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate(FILLED) > 0.95
    assert page.evaluate(TORN) == []
    page.mouse.wheel(0, 5000)
    header = window.settle().page.locator("header").bounding_box()
    assert max(0, min(header["height"], header["y"] + header["height"])) < 0.2 * page.viewport_size["height"]
    for index in range(len(SHAPES[shape])):
        page.evaluate("(index) => document.querySelectorAll('.open')[index].click()", index)
        window.settle()
        frame = page.locator("#viewer-frame").bounding_box()
        for part in (".facts", ".bar", ".ticks.large", "#viewer-name"):
            box = page.locator(f"#viewer {part}").bounding_box()
            apart = frame["y"] + frame["height"] <= box["y"] + 0.5 or frame["x"] + frame["width"] <= box["x"] + 0.5
            assert apart, (part, frame, box)
        buttons = page.locator(".ticks.large").bounding_box()
        assert buttons["y"] + buttons["height"] <= page.viewport_size["height"]  # on the screen, with the picture
        height, width = SHAPES[shape][::-1][index]
        assert frame["width"] / frame["height"] == pytest.approx(width / height, rel=0.03)
        assert max(frame["width"], frame["height"]) > 300
        page.keyboard.press("Escape")


# The smallest share of the place of a picture that it fills.
FILLED = """() => {
  const area = (item) => item.getBoundingClientRect().width * item.getBoundingClientRect().height;
  return Math.min(...[...document.querySelectorAll("li img")].map((picture) => {
    const card = picture.closest("li").getBoundingClientRect();
    const { width, height } = picture.getBoundingClientRect();
    const about = picture.closest("li").querySelector(".about").getBoundingClientRect();
    const beside = about.left > card.left + 5; // the text is beside the picture: in the width that it leaves
    const place = (beside ? about.left - card.left : card.width) * (beside ? height : about.top - card.top);
    return (width * height) / place;
  }));
}"""
# Ends of names that are broken, and texts that a card cuts off.
TORN = """() => [...document.querySelectorAll("li .tail, li .label")]
  .filter((text) => text.getClientRects().length !== 1
    || text.getBoundingClientRect().right > text.closest("li").getBoundingClientRect().right)
  .map((text) => text.textContent)"""


@pytest.mark.parametrize(
    "name", ["part.png", "a_very_long_name_0000000000000123456789.jpeg", "x" * 90 + ".tiff", "noend"]
)
def test_a_name_breaks_before_its_end_and_never_in_the_suffix(name, browser_of, tmp_path):
    window = browser_of(**PHONE)
    with HtmlReport(
        tmp_path / "report.html", threshold=-3, model=f"{name} (a model)", title=f"{name}, 1 image"
    ) as report:
        report.add(f"folder/{name}", -5.0, image=noise(0, (250, 50)))
    page = window.open(tmp_path / "report.html").page
    suffix = name.rpartition(".")[2] if "." in name else ""
    page.evaluate("document.querySelector('.open').click()")
    for place in (".file", "#viewer-name", "h1", "#provenance b"):
        assert name in page.locator(place).text_content()
        tails = page.locator(f"{place} .tail").all_inner_texts()
        assert [text.rpartition(".")[2] for text in tails] == ([suffix] if suffix else [])
    assert page.evaluate(TORN.replace("li .tail, li .label", ".file .tail")) == []
    rows = "(places) => places.map((place) => place.getClientRects().length)"
    assert set(page.eval_on_selector_all(".tail", rows)) <= {1}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_text_can_be_read(scheme, browser_of, tmp_path):
    window = browser_of(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme)
    names = {f"{'long' * 30}/{number}.png": float(-number) for number in range(8)}
    with HtmlReport(tmp_path / "report.html", threshold=-3, title="t" * 200) as report:
        for name, score in names.items():
            report.add(name, score, image=noise(0, (124, 50)))
    window.open(tmp_path / "report.html")
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert window.page.evaluate(overflow) <= 0
    ratios = window.page.evaluate(CONTRAST)
    assert len(ratios) > 10
    assert min(ratios.values()) >= 4.5, ratios
    window.page.tap(".open")
    assert window.settle().page.locator("#viewer").is_visible()
    assert window.page.evaluate("document.querySelector('#viewer').scrollWidth - innerWidth") <= 0
    frame = window.page.locator("#viewer-frame").bounding_box()
    assert frame["height"] / frame["width"] == pytest.approx(124 / 50, rel=0.02)
    assert frame["height"] < 844


# Contrast of text with the nearest background that is not transparent, WCAG 2.2.
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = {};
  for (const item of document.querySelectorAll("body *")) {
    const own = [...item.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !item.checkVisibility() || item.matches("script, style, option, :disabled")) continue;
    let behind = item;
    const isClear = (colour) => numbers(colour)[3] === 0;
    while (isClear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const pair = [getComputedStyle(item).color, getComputedStyle(behind).backgroundColor].map((c) => light(numbers(c)));
    const name = `${item.tagName} ${item.className} ${item.id}`;
    found[name] = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }
  return found;
}"""


def test_all_controls_have_names(window, tmp_path):
    window.open(write(tmp_path / "report.html", SCORES))
    window.page.click("li:nth-of-type(2) .open")
    nameless = window.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select")].filter((control) =>
          !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim())).length"""
    )
    assert nameless == 0
    assert window.page.evaluate("document.querySelector('#viewer').contains(document.activeElement)")


def test_printing_shows_all_pictures(window, tmp_path):
    scores = {f"{number}.png": float(number) for number in range(200)}
    window.open(write(tmp_path / "report.html", scores))
    assert window.page.locator("li img.image[src]").count() < 200
    window.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert window.page.locator("li img.image[src]").count() == 200
    window.page.emulate_media(media="print")
    assert not window.page.locator(".controls").is_visible()
    assert window.page.evaluate("getComputedStyle(document.querySelector('li')).contentVisibility") == "visible"


def test_the_header_hides_no_card_in_focus(window, tmp_path):
    scores = {f"{number}.png": float(number) for number in range(60)}
    window.open(write(tmp_path / "report.html", scores)).page.focus(".open")
    window.press("End", *["ArrowUp"] * 3)
    header = window.page.locator("header").bounding_box()
    card = window.page.locator("li:focus-within").bounding_box()
    assert card["y"] >= header["y"] + header["height"]


def test_ten_thousand_images_decode_only_the_pictures_near_the_window(window, tmp_path):
    picture = noise(0, (48, 48))
    with HtmlReport(tmp_path / "report.html", threshold=500) as report:
        for number in range(10_000):
            report.add(f"{number % 7}/part{number}.png", float(number), p_value=0.5, image=picture, heat_map=picture)
    window.open(tmp_path / "report.html")
    assert window.text("#status") == "500 of 10000 images anomalous; 10000 shown"
    assert 0 < window.page.locator("li img[src]").count() < 1000
    window.page.check("#group")
    window.page.fill("#text", "part9999")
    assert window.settle().names == ["3/part9999.png"]
    assert window.page.locator("li:visible img[src]").count() == 2

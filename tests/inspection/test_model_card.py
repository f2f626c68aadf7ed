"""The card of a model says what is stored and what was given, and nothing else."""

from __future__ import annotations

import hashlib
import html
import json
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import ipca_sklearn
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter
from ipca_sklearn.inspection import HtmlReport, ModelCard, model_card
from ipca_sklearn.metrics import evaluation_report
from ipca_sklearn.persistence import record_training, save

X = np.random.default_rng(0).normal(size=(200, 4, 4, 8))
IMAGES = np.random.default_rng(1).integers(0, 255, (40, 40, 40, 3), dtype=np.uint8)
NASTY = "</td><script>alert(1)</script> | a | `b` *c* [d](e)\n\x1b[2J"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64, n_jobs=2)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4, n_gaussians=8))]).fit(IMAGES)


def facts(model: Any, **options: Any) -> dict[str, Any]:
    return model_card(model, **options).to_dict()


def test_the_facts_are_those_of_the_model(pipe: Pipeline, tmp_path: Path) -> None:
    save(pipe, tmp_path / "model.joblib")
    found = facts(pipe, file=tmp_path / "model.joblib")
    detector = pipe[-1]
    assert found["SHA-256"] == hashlib.sha256((tmp_path / "model.joblib").read_bytes()).hexdigest()
    assert (found["images learnt"], found["images learnt without a record"], found["learnt from"]) == (40, 40, [])
    assert found["digest of the weights"] == pipe[0].weights_digest()
    assert (found["weights"], found["licence of the weights"]) == ("random", "none: random weights")
    assert (found["offset"], found["map threshold"]) == (detector.offset_, detector.map_threshold_)
    assert found["calibrated with images"] == len(detector.calibration_scores_)
    assert found["parameters of the detector"] == {"n_components": 4, "n_gaussians": 8}
    given = {"backbone": "mobilenet_v3_small", "weights": None, "random_state": 0, "image_size": 64}
    assert found["parameters of the extractor"] == given
    here = {"ipca_sklearn": ipca_sklearn.__version__, "torch": torch.__version__, "scikit-learn": sklearn.__version__}
    assert found["versions"].items() >= {**here, "numpy": np.__version__}.items()
    assert found["figures"] is None


def test_the_card_is_strict_json_and_the_same_facts(pipe: Pipeline) -> None:
    card = model_card(pipe)
    assert json.loads(card.to_json()) == card.to_dict()
    unset = model_card(PatchGaussianDetector(2).fit(X[:1]))
    assert json.loads(unset.to_json())["offset"] is None  # minus infinity: there is no threshold yet


def test_a_card_changes_nothing_and_two_equal_fits_have_equal_cards(pipe: Pipeline) -> None:
    before = pickle.dumps(pipe[-1])
    first = model_card(pipe)
    assert pickle.dumps(pipe[-1]) == before
    assert model_card(clone(pipe).fit(IMAGES)) == first


@pytest.mark.parametrize("calibration", ["prequential", 0.25])
def test_thresholds_say_where_they_come_from(calibration: Any) -> None:
    detector = PatchGaussianDetector(2, calibration=calibration, false_positive_rate=0.05).fit(X)
    found = facts(detector)
    words = "by models that had not learnt them" if calibration == "prequential" else "held out of the training"
    assert found["thresholds from"].endswith(words)
    assert found["thresholds from"].startswith(f"{len(detector.calibration_scores_)} scores")
    assert (found["calibration"], found["false positive rate"]) == (calibration, 0.05)
    detector.calibrate(X[:80])
    assert facts(detector)["thresholds from"] == "80 scores: those of images that calibrate was given"
    detector.partial_fit(X[:50])
    assert "calibrate was given, and those of images that were learnt later" in facts(detector)["thresholds from"]
    detector.set_threshold(X[:100], false_positive_rate=0.1, source="line 2")
    assert facts(detector)["thresholds from"].startswith("false_positive_rate=0.1, from line 2: false alarms ")
    detector.set_params(false_positive_rate=0.1)  # which replaces the chosen one
    assert "calibrate" in facts(detector)["thresholds from"]
    assert "calibrate" not in facts(detector.fit(X))["thresholds from"]


def test_what_fit_warned_of_is_on_the_card() -> None:
    with pytest.warns(UserWarning, match="are few") as warned:
        few = PatchGaussianDetector(2, false_positive_rate=0.01).fit(X[:40])
    assert facts(few)["warning"] == str(warned[0].message)
    assert facts(PatchGaussianDetector(2).fit(X))["warning"] is None


def test_images_that_were_left_out_are_counted() -> None:
    dirty = X.copy()
    dirty[5] += 8
    found = facts(PatchGaussianDetector(2, trim="auto").fit(dirty))
    assert (found["images learnt"], found["images left out as suspects"]) == (199, 1)
    assert "images left out as suspects" not in facts(PatchGaussianDetector(2).fit(X))


def test_each_product_has_a_card_and_keeps_its_own_record() -> None:
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64)
    line = Pipeline([("features", extractor), ("products", ProductRouter(PatchGaussianDetector(4, n_gaussians=8)))])
    line.fit(IMAGES, np.repeat(["bolt", "nut"], 20))
    record = record_training(line, IMAGES[:20], source="bolts", product="bolt")
    card = model_card(line)
    assert card.products["bolt"].to_dict()["learnt from"] == [record]
    assert card.products["nut"].to_dict()["images learnt without a record"] == 20
    assert card.to_dict()["number of products"] == 2
    told = card.to_dict()["products"]["bolt"]
    assert told["offset"] == line[-1].detectors_["bolt"].offset_
    assert told["called unknown"] == round(line[-1].rejection_rates_["bolt"], 4)
    assert "## nut" in card.to_markdown() and "<h2>nut</h2>" in card.to_html()


def test_figures_are_shown_as_given_and_those_of_another_file_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    labels, scores = np.repeat([1, -1], 40), np.r_[np.arange(30, 70), np.arange(0, 40)]
    report = evaluation_report(labels, scores, offset=30, n_resamples=50)
    card = model_card(pipe, figures=report)
    assert card.to_dict()["figures"] == report
    row = next(line for line in card.to_markdown().splitlines() if line.startswith("| found |"))
    assert row.startswith("| found | 0.75 (0.5")
    assert "none were given" in model_card(pipe).to_markdown()
    file = tmp_path / "model.joblib"
    save(pipe, file)
    digest = facts(pipe, file=file)["SHA-256"]
    assert facts(pipe, file=file, figures=report | {"model": {"SHA-256": digest}})["figures"]["n_normal"] == 40
    with pytest.raises(ValueError, match=r"model\.joblib has another: evaluate this model"):
        model_card(pipe, file=file, figures=report | {"model": {"SHA-256": "0" * 64}})
    with pytest.raises(TypeError, match="figures is a list: pass a dict"):
        model_card(pipe, figures=[1])  # type: ignore[arg-type]


class Cells(HTMLParser):
    """Tags of a page, and the texts of the cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_cannot_leave_their_cell() -> None:
    card = ModelCard(NASTY, {NASTY: {NASTY: NASTY, "records": [{"sources": [NASTY]}]}}, {NASTY: ModelCard("", {})})
    page = card.to_html()
    assert "script" not in Cells(page).tags and html.escape("<script>") in page
    lines = card.to_markdown().splitlines()
    assert not [line for line in lines if "\x1b" in line or "<script>" in line.replace("\\<", "")]
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_the_report_has_the_card_in_a_part_that_opens(pipe: Pipeline, tmp_path: Path) -> None:
    pages = []
    for card in (None, model_card(pipe)):
        with HtmlReport(tmp_path / "page.html", threshold=0, card=card) as report:
            report.add("a.png", 1.0)
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    without, page = pages
    assert "64 x 64" in Cells(page).texts
    assert '<details id="card">' in page and pipe[0].weights_digest() in Cells(page).texts
    assert '<details id="card">' not in without and "{{" not in without


def test_what_has_no_card_is_refused() -> None:
    with pytest.raises(TypeError, match="there is no card of a StandardScaler"):
        model_card(StandardScaler().fit([[1.0]]))
    with pytest.raises(NotFittedError):
        model_card(PatchGaussianDetector())
    with pytest.raises(FileNotFoundError):
        model_card(PatchGaussianDetector(2).fit(X), file="nowhere.joblib")

"""Displays as they are seen: nothing is covered, nothing leaves the axes, and what differs has different colours."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from ipca_sklearn.cli._figures import draw_roc
from ipca_sklearn.inspection import DriftDisplay, ExplainedVarianceDisplay, ThresholdDisplay

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    yield
    plt.close("all")


def axes_and_legend(ax: Any) -> tuple[Any, Any]:
    """The boxes of the axes and of the legend, in pixels, and that the legend is within the figure."""
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    whole = ax.figure.bbox
    assert legend.x0 >= whole.x0 and legend.x1 <= whole.x1 and legend.y0 >= whole.y0 and legend.y1 <= whole.y1
    return ax.get_window_extent(), legend


@pytest.mark.parametrize("own_axes", [False, True])
@pytest.mark.parametrize("offset", [-9.0, -3.0, 0.0, 4.0])
@pytest.mark.parametrize("n_new", [0, 40])
def test_the_legend_covers_neither_the_threshold_nor_a_bar(offset: float, n_new: int, own_axes: bool) -> None:
    rng = np.random.default_rng(0)
    new = {"scores": rng.normal(-3, 2, n_new), "y": np.where(np.arange(n_new) % 2, 1, -1)} if n_new else {}
    ax = plt.subplots()[1] if own_axes else None
    display = ThresholdDisplay(rng.normal(size=100), offset, **new).plot(ax=ax)
    box, legend = axes_and_legend(display.ax_)
    assert legend.y0 >= box.y1 - 1
    assert not legend.overlaps(display.line_.get_window_extent())


@pytest.mark.parametrize("largest", [0.0, 4.0, 12.0, 400.0])
@pytest.mark.parametrize("smallest", [0.0, -8.0])
def test_the_course_of_a_drift_stays_within_the_axes(largest: float, smallest: float) -> None:
    powers = np.r_[np.linspace(0, smallest, 50), np.linspace(smallest, largest, 50)]
    display = DriftDisplay(
        np.arange(1, 101), powers * np.log(10), alpha=0.01, alarm_at=70 if largest > 2 else None, changed_since=60
    ).plot()
    box, legend = axes_and_legend(display.ax_)
    drawn = display.line_.get_window_extent()
    assert box.x0 - 1 <= drawn.x0 and drawn.x1 <= box.x1 + 1
    assert box.y0 < drawn.y0 and drawn.y1 < box.y1
    assert legend.y0 >= box.y1 - 1
    inside = (powers > -0.9) & (powers < 4.9)
    np.testing.assert_allclose(display.line_.get_ydata()[inside], powers[inside], atol=1e-9)
    told = display.ax_.get_legend().get_texts()[0].get_text()
    assert (f"10^{{{largest:.0f}}}" in told) == (largest > 5)


def test_an_alarm_after_the_last_point_of_a_thinned_course_is_drawn() -> None:
    display = DriftDisplay(np.array([1, 9]), np.zeros(2), alpha=0.01, alarm_at=12, changed_since=11).plot()
    assert display.ax_.get_xlim() == (1, 12)


def colours(display: ExplainedVarianceDisplay) -> np.ndarray:
    image = display.axes_[0].images[0]
    return np.unique(image.to_rgba(image.get_array()).reshape(-1, 4), axis=0)


def test_a_map_of_too_few_components_shows_what_they_explain() -> None:
    ratio = np.random.default_rng(0).uniform(0.02, 0.05, (6, 7, 4))
    display = ExplainedVarianceDisplay(ratio, share=0.9).plot()
    assert (display.n_components_needed == 5).all()
    assert len(colours(display)) > 20
    np.testing.assert_allclose(display.axes_[0].images[0].get_array(), ratio.sum(-1))
    assert "explained by 4 components" in display.axes_[0].get_title()
    assert "no patch reaches 90%" in display.axes_[0].get_title()
    ratio[0, 0, 0] = 0.9
    title = ExplainedVarianceDisplay(ratio, share=0.9).plot().axes_[0].get_title()
    assert "2% of the patches reach 90%" in title


def test_a_few_patches_that_need_more_components_are_grey() -> None:
    ratio = np.full((2, 3, 4), 0.24)
    ratio[0, 0] = 0.01
    display = ExplainedVarianceDisplay(ratio, share=0.9).plot()
    np.testing.assert_array_equal(display.axes_[0].images[0].get_array(), display.n_components_needed)
    assert [0.6, 0.6, 0.6, 1] in colours(display).tolist() and len(colours(display)) == 2


@pytest.mark.parametrize("distance", [1.0, 12.0])
@pytest.mark.parametrize("types", [["hole"], ["all"], ["hole", "scratch", "stain"]])
def test_the_roc_of_all_images_is_seen_and_the_threshold_lies_on_each_curve(
    distance: float, types: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, -1], [40, 30])
    kinds = np.array(["good"] * 40 + [types[index % len(types)] for index in range(30)])
    scores, offset = rng.normal(0, 1, 70) - distance * (labels < 0), -1.2
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw_roc(tmp_path / "roc.png", labels, scores, kinds, offset)
    ax = figures[0].axes[0]
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told[0].startswith("all: ")
    curves = [line for line in ax.lines if "area" in str(line.get_label())]
    points = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    shown = [] if types == ["all"] else sorted(types)
    assert [str(line.get_label()).split(":")[0] for line in curves] == ["all", *shown]
    assert len({line.get_color() for line in curves}) == len(curves) == len(points)
    assert all(curves[0].get_linewidth() > line.get_linewidth() + 2 for line in curves[1:])
    false_alarms = np.mean(scores[labels == 1] < offset)
    assert len({float(point.get_xdata()[0]) for point in points}) == 1
    for name, curve, point in zip(["all", *shown], curves, points, strict=True):
        mine = (labels == -1) & ((kinds == name) | (name == "all"))
        found = np.mean(scores[mine] < offset)
        assert (float(point.get_xdata()[0]), float(point.get_ydata()[0])) == pytest.approx((false_alarms, found))
        x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
        at = np.isclose(x, false_alarms)  # of a staircase, between the ends of the step
        assert not at.any() or y[at].min() - 1e-9 <= found <= y[at].max() + 1e-9
        assert point.get_color() == curve.get_color()


def test_the_threshold_of_the_curves_is_not_rounded_to_the_dtype_of_the_scores(tmp_path: Any, monkeypatch: Any) -> None:
    scores = np.array([0.1, 0.3, 0.1, 0.0], dtype=np.float32)
    offset = float(scores[0]) + 1e-12  # above the score, and equal to it in float32
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    labels, kinds = np.array([1, 1, -1, -1]), np.array(["good", "good", "hole", "hole"])
    draw_roc(tmp_path / "roc.png", labels, scores, kinds, offset)
    told = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert told[0].startswith("all: 100% found") and told[-1].endswith("50% false alarms")

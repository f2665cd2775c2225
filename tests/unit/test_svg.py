"""The look that figures of papers share: nothing of the caller's style in it, the same bytes every time."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from kdbench.report.svg import INCHES, reach, shade, style, svg
from kdbench.verdict import summarise


def line(salt: str) -> str:
    with style(salt):
        figure = Figure(figsize=INCHES)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], marker="o", clip_on=True)
        axes.set_title("a line")
        return svg(figure)


def test_a_figure_has_the_same_bytes_under_any_style_of_the_caller() -> None:
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        drawn = line("paper")
        assert matplotlib.rcParams["font.size"] == 20  # the caller's style is his again
    assert drawn == line("paper")
    assert "dc:date" not in drawn
    root = ElementTree.fromstring(drawn.encode())
    assert (root.get("width"), root.get("height")) == ("504pt", "360pt")


def test_ids_are_the_salt_s_own() -> None:
    """Figures of two papers on one page do not refer to each other's parts."""
    assert line("paper") != line("another")


def test_the_caller_s_style_comes_back_after_a_fault() -> None:
    before = matplotlib.rcParams["font.size"]
    with pytest.raises(KeyError), style("paper"):
        matplotlib.rcParams["no such setting"] = before
    assert matplotlib.rcParams["font.size"] == before


def test_reach_is_the_interval_on_both_sides_of_the_mean() -> None:
    below, above = reach(summarise([1.0, 2.0, 3.0]))
    assert below == pytest.approx(above) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom
    for values in ([], [1.0], [1.0, 1.0]):
        assert reach(summarise(values)) == (0.0, 0.0)


def test_shades_are_told_apart_in_grey_too() -> None:
    greys = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue, _ in map(shade, (0, 1 / 3, 2 / 3, 1))]
    assert greys == sorted(greys)
    assert min(after - before for before, after in pairwise(greys)) > 0.1

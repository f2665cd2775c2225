"""The figures of a run: what is on them, that they are the same every time, and that nothing unmeasured is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from survey_smoke import smoke_run

from kdbench.result import Reproduction, read_run
from kdbench_survey_metric.figures import figures
from kdbench_survey_metric.study import WIDTHS

NAMES = ["golden-score-against-alpha", "score-against-alpha", "size-accuracy-front"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, kdbench_cache: Path) -> Reproduction:
    return smoke_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def drawn(result: Reproduction) -> dict[str, str]:
    return figures(result)


def words(svg: str) -> str:
    """All text of a figure: matplotlib writes each string as outlines, with the string itself in a comment."""
    return " | ".join(re.findall(r"<!-- (.*?) -->", svg, flags=re.DOTALL))


def test_a_run_draws_its_figures_and_keeps_them(result: Reproduction, drawn: dict[str, str]) -> None:
    assert list(drawn) == NAMES
    assert result.complete, result.run.failures
    for name, svg in drawn.items():
        assert (result.path / "figures" / f"{name}.svg").read_text(encoding="utf-8") == svg


def test_the_same_run_gives_the_same_bytes(result: Reproduction, drawn: dict[str, str]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert figures(read_run(result.path)) == drawn
    assert not any("dc:date" in svg for svg in drawn.values())


def test_every_figure_is_seven_by_five_inches_with_named_axes(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root = ElementTree.fromstring(svg.encode())
        assert (root.get("width"), root.get("height")) == ("504pt", "360pt")  # 72 points an inch
    for name in NAMES[:2]:
        assert "alpha, weight of the size" in words(drawn[name])
        assert "distillation score DS (no unit; lower is better)" in words(drawn[name])
    assert "size, % of the teacher's trainable parameters (log scale)" in words(drawn["size-accuracy-front"])
    assert "test accuracy, % (mean and 95 % t interval over seeds)" in words(drawn["size-accuracy-front"])


def test_mandatory_rows_and_every_width_are_drawn(drawn: dict[str, str]) -> None:
    for name in NAMES[1:]:
        text = words(drawn[name])
        for word in ("the teacher itself", "constant predictor", "MNIST-1D, tier smoke, n = 2 seeds", *WIDTHS):
            assert word in text, name


def test_golden_crossovers_are_named_to_three_decimals(drawn: dict[str, str]) -> None:
    text = words(drawn["golden-score-against-alpha"])
    assert all(f"| {alpha} |" in text for alpha in ("0.095", "0.224", "0.705"))
    assert all(f"| {size} % |" in text for size in ("62.84", "35.36", "15.25", "3.74"))


def test_what_was_not_measured_is_not_drawn(kdbench_smoke: Callable[..., Reproduction]) -> None:
    result = kdbench_smoke("survey-metric", claims="G1,G2")
    assert list(figures(result)) == NAMES[:1]
    assert [path.stem for path in sorted((result.path / "figures").iterdir())] == NAMES[:1]


def test_a_seed_without_a_value_leaves_the_others(result: Reproduction) -> None:
    import msgspec

    values = tuple(
        msgspec.structs.replace(value, value=None) if value.seed == 1 else value for value in result.run.values
    )
    partly = Reproduction(msgspec.structs.replace(result.run, values=values), result.path)
    assert list(figures(partly)) == NAMES

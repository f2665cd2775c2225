"""The figures of a run: what is on them, that they are the same every time, and that nothing unmeasured is drawn."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from isls_planted import ARMS, planted, without

from kdbench.result import Reproduction, read_run
from kdbench_isls.figures import figures

NAMES = ["generations", "reliability", "arms"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    return planted(tmp_path_factory.mktemp("planted"), seeds=10)


@pytest.fixture(scope="module")
def drawn(result: Reproduction) -> dict[str, str]:
    return figures(result)


def words(svg: str) -> list[str]:
    """All text of a figure: matplotlib writes each string as outlines, with the string itself in a comment."""
    return [line for text in re.findall(r"<!-- (.*?) -->", svg, flags=re.DOTALL) for line in text.splitlines()]


def test_a_run_draws_its_figures_and_keeps_them(kdbench_smoke: Callable[..., Reproduction]) -> None:
    result = kdbench_smoke("isls", claims="H1,H2,H4-ece", seeds=2)
    assert result.complete, result.run.failures
    made = figures(read_run(result.path))
    assert list(made) == NAMES
    for name, svg in made.items():
        assert (result.path / "figures" / f"{name}.svg").read_text(encoding="utf-8") == svg
        said = next(line for line in words(svg) if "seeds" in line and "label noise" in line)
        assert re.fullmatch(r"MNIST-1D, tier smoke, protocol clean, \w+, 20 % label noise, n = 2 seeds", said)


def test_the_same_run_gives_the_same_bytes(result: Reproduction, drawn: dict[str, str]) -> None:
    import matplotlib

    assert list(drawn) == NAMES
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert figures(read_run(result.path)) == drawn
    assert not any("dc:date" in svg for svg in drawn.values())


def test_every_figure_is_seven_by_five_inches_under_its_conditions(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root = ElementTree.fromstring(svg.encode())
        assert (root.get("width"), root.get("height")) == ("504pt", "360pt")  # 72 points an inch
        assert "Planted, tier laptop, protocol clean, plain4, 20 % label noise, n = 10 seeds" in words(svg)


def test_every_level_has_its_set(tmp_path: Path) -> None:
    levels = {"networks": ("resnet34", "densenet100"), "noises": ("0", "40")}
    made = figures(planted(tmp_path, seeds=1, sweep=False, **levels))
    assert list(made) == [
        f"{name}-{network}-noise-{noise}"
        for network in levels["networks"]
        for noise in levels["noises"]
        for name in NAMES
    ]
    for name, svg in made.items():
        _, network, _, noise = name.split("-")
        assert f"Planted, tier laptop, protocol clean, {network}, {noise} % label noise, n = 1 seed" in words(svg)


def test_generations_have_a_line_a_temperature_and_named_references(drawn: dict[str, str]) -> None:
    text = words(drawn["generations"])
    for word in ("temperature of the teachers: T 1", "T 1.5", "T 4 (default)", "(generation g teaches g + 1)"):
        assert word in text
    # From the highest: names stand in the order of their means, and arms that have generations or are controls do not.
    heights = {word: height for word, height in _placed(drawn["generations"]) if word in ARMS}
    assert sorted(heights, key=heights.__getitem__) == ["shuffled", "Beta", "LS-matched", "LS", "CE"]
    assert "single seeds" not in text


def test_names_of_references_do_not_touch(tmp_path: Path) -> None:
    """Even where their means are the same."""
    result = planted(tmp_path, seeds=2)
    values = tuple(
        msgspec.structs.replace(value, value=70.0) if value.cell.startswith("accuracy/") else value
        for value in result.run.values
    )
    made = figures(Reproduction(msgspec.structs.replace(result.run, values=values), result.path))
    heights = sorted(height for word, height in _placed(made["generations"]) if word in ARMS)
    assert len(heights) == 5
    assert min(above - below for below, above in pairwise(heights)) > 8.0  # points of the font


def test_the_only_line_shows_its_seeds(tmp_path: Path) -> None:
    text = words(figures(planted(tmp_path, sweep=False))["generations"])
    assert "temperature of the teachers: T 4 (default)" in text
    assert "single seeds" in text


def test_every_arm_has_its_diagram_and_its_row(drawn: dict[str, str]) -> None:
    reliability, arms = words(drawn["reliability"]), words(drawn["arms"])
    for place, arm in enumerate(ARMS):
        # Ten seeds from 5 + place on in steps of 0.5: mean 2.25 above the first, sd 0.5 sqrt(110 / 12).
        assert reliability[reliability.index(arm) + 1] == f"ECE {7.25 + place:.1f} ± 1.5, n = 10"
        assert arm in arms
    assert "expected calibration error, %" in arms
    assert [word for word in arms if word in ARMS] == list(ARMS)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    made = figures(planted(tmp_path / "arms", arms=("LS", "Beta"), sweep=False, statistics=()))
    assert list(made) == ["reliability", "arms"]
    assert not any("CE" in word.split() for word in words(made["arms"]))

    made = figures(planted(tmp_path / "teachers", arms=(), sweep=False, statistics=("diversity",)))
    assert list(made) == ["generations"]
    text = words(made["generations"])
    assert "diversity: differential" in text
    assert not {"test accuracy, %", "generation, as a student", "variance of p(label)"} & {*text}

    made = figures(planted(tmp_path / "students", sweep=False, statistics=()))
    assert "test accuracy, %" in words(made["generations"])
    assert "(generation g teaches g + 1)" not in words(made["generations"])

    assert figures(planted(tmp_path / "nothing", arms=(), sweep=False, statistics=())) == {}


def test_without_records_there_is_no_reliability(tmp_path: Path) -> None:
    result = planted(tmp_path)
    shutil.rmtree(tmp_path / "stages")
    assert list(figures(result)) == ["generations", "arms"]


def test_a_seed_without_a_value_leaves_the_others_and_is_counted(result: Reproduction, drawn: dict[str, str]) -> None:
    partly = without(result, cell="accuracy/plain4/planted/noise-20/Beta", seed=1)
    partly = without(partly, cell="ece/plain4/planted/noise-20/LS", seed=1)
    made = figures(partly)
    assert list(made) == NAMES
    for svg in made.values():
        assert any(word.endswith("n = 10 seeds, fewer where values are missing") for word in words(svg))
    arms = words(made["arms"])
    assert arms[arms.index("Beta") + 1] == "(n = 9, 10)"
    assert arms[arms.index("LS") + 1] == "(n = 10, 9)"
    assert not any(word.startswith("(n =") for word in words(drawn["arms"]))


def _placed(svg: str) -> list[tuple[str, float]]:
    """Texts with their heights in points from the top."""
    found = re.findall(r"<!-- (\S+) -->\s*<g[^>]*transform=\"translate\([-\d.]+ ([-\d.]+)\)", svg)
    return [(word, float(height)) for word, height in found]

"""The figures of a run: what is on them, that they are the same every time, and that nothing unmeasured is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import msgspec
import pytest
from orth_runs import DATASET, NONE, PRUNED, SEEDS, TUNED, Cells, equivalence, planted

import kdbench_orthogonality.figures as module
from kdbench.errors import KdbenchError
from kdbench.result import Reproduction, Value, read_run, write_run
from kdbench_orthogonality._front import Box, free
from kdbench_orthogonality.interaction import interactions
from kdbench_orthogonality.readings import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ["gains", "ensemble", "front", "grid", "augmentation"]
CONDITIONS = "MNIST-1D pool, tier laptop, protocol clean, n = 5 seeds"

MIXED: Cells = {"mixup/CE": [94.2, 94.9, 94.4, 95.3, 94.1], "mixup/KD": [95.3, 95.8, 95.5, 96.2, 95.1]}
PARTS: Mapping[str, tuple[float, ...]] = {  # single, ensemble, gain, bias, variance, disagreement
    "CE": (86.0, 95.0, 9.0, 0.10, 0.11, 0.20),
    "KD-own": (89.0, 95.5, 6.5, 0.08, 0.07, 0.15),
}
BYTES = {"none": 12904.0, "none+ft": 12904.0, "prune50": 6452.0, "mixup": 12904.0}
MARGIN = [equivalence("H2p-additive", f"interaction/{DATASET}/prune50/accuracy", 0.7)]


def spread(mean: float, step: float = 0.1) -> list[float]:
    """Five seeds about a mean."""
    return [mean + step * place for place in (-2, -1, 0, 1, 2)]


def ensemble() -> dict[str, list[float]]:
    columns = ("single", "ensemble", "gain", "bias", "variance", "disagreement")
    found = {
        f"ensemble/{DATASET}/{arm}/{column}": spread(mean, 0.01 if mean < 1 else 0.1)
        for arm, means in PARTS.items()
        for column, mean in zip(columns, means, strict=True)
    }
    return {**found, f"ensemble/{DATASET}/KD-bagged/single": spread(90.0)}


def others() -> dict[str, list[float]]:
    """Everything that the figures show besides the accuracies of the factorial."""
    cells = {**ensemble(), **{f"front/{DATASET}/{arm}/bytes": [size] * 5 for arm, size in BYTES.items()}}
    for place, gain in {"w1-d2": 1.0, "w1-d4": -0.5, "w2-d2": 0.05}.items():
        cells[f"grid/{DATASET}/{place}/CE"] = spread(90.0)
        cells[f"grid/{DATASET}/{place}/KD"] = [
            ce + gain + more for ce, more in zip(spread(90.0), (0.1, -0.1, 0.1, -0.1, 0.1), strict=True)
        ]
    for row, gain in {"n1000": 2.0, "n500": 3.0, "n2000": 1.0, "shift-off": 1.0, "shift-on": 0.5}.items():
        cells[f"augmentation/{DATASET}/{row}/gain"] = spread(gain)
    return {**cells, f"augmentation/{DATASET}/n/slope": spread(-1.0)}


def run_of(
    folder: Path, *cells: Cells, more: Mapping[str, Sequence[float | None]] | None = None, **options: Any
) -> Reproduction:
    """A finished run of the accuracies ``cells`` and of ``more``, by the whole name of the cell."""
    run = planted(*cells, **options)
    seeds = run.request.seeds
    added = tuple(
        Value(cell, seed, "planted", values[place], ())
        for cell, values in (more or {}).items()
        for place, seed in enumerate(seeds)
    )
    write_run(folder, run := msgspec.structs.replace(run, values=run.values + added))
    return Reproduction(run, folder)


def canvases(result: Reproduction) -> dict[str, Figure]:
    """What is drawn, before it becomes text."""
    kept: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "svg", lambda figure: kept.append(figure) or "")
        names = list(module.figures(result))
    return dict(zip(names, kept, strict=True))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    folder = tmp_path_factory.mktemp("planted")
    return run_of(folder, NONE, MIXED, TUNED, PRUNED, claims=MARGIN, more=others())


@pytest.fixture(scope="module")
def drawn(result: Reproduction) -> dict[str, str]:
    return module.figures(result)


@pytest.fixture(scope="module")
def shown(result: Reproduction) -> dict[str, Figure]:
    return canvases(result)


def words(svg: str) -> list[str]:
    """All text of a figure: matplotlib writes each string as outlines, with the string itself in a comment."""
    return [line for text in re.findall(r"<!-- (.*?) -->", svg, flags=re.DOTALL) for line in text.splitlines()]


def dots(axes: Axes) -> list[tuple[float, float]]:
    """Mean and row of every marker with an interval."""
    places = [container.lines[0].get_xydata()[0] for container in axes.containers if hasattr(container, "has_xerr")]
    return [(float(x), float(y)) for x, y in places]


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Row, start and length of every bar."""
    return [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in axes.patches]


# ------------------------------------------------------------------------------------------------------------- the set


def test_a_run_draws_its_figures_and_keeps_them(kdbench_smoke: Callable[..., Reproduction]) -> None:
    result = kdbench_smoke("orthogonality", claims="H4-additive", seeds=2, threads=1)
    assert result.complete, result.run.failures
    made = module.figures(read_run(result.path))
    assert list(made) == ["gains", "front"], "what one place of the grid or one training set would show is no figure"
    for name, svg in made.items():
        assert (result.path / "figures" / f"{name}.svg").read_text(encoding="utf-8") == svg
        assert "MNIST-1D pool, tier smoke, protocol clean, n = 2 seeds" in words(svg)


def test_the_same_run_gives_the_same_bytes(result: Reproduction, drawn: dict[str, str]) -> None:
    import matplotlib

    assert list(drawn) == NAMES
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert module.figures(read_run(result.path)) == drawn
    assert not any("dc:date" in svg for svg in drawn.values())


def test_every_figure_is_seven_by_five_inches_under_its_conditions(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root = ElementTree.fromstring(svg.encode())
        assert (root.get("width"), root.get("height")) == ("504pt", "360pt")  # 72 points an inch
        assert CONDITIONS in words(svg)


def test_nothing_is_cut_off_at_the_edge(shown: dict[str, Figure]) -> None:
    for name, figure in shown.items():
        found = figure.get_tightbbox()  # of all that is drawn, in inches
        assert 0 <= found.x0 <= found.x1 <= 7, name
        assert 0 <= found.y0 <= found.y1 <= 5, name


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert module.figures(run_of(tmp_path / "controls", NONE, TUNED)) == {}
    assert list(module.figures(run_of(tmp_path / "factorial", NONE, MIXED))) == ["gains"]
    assert list(module.figures(run_of(tmp_path / "members", more=ensemble()))) == ["ensemble"]
    sizes = {f"front/{DATASET}/{arm}/bytes": [size] * 5 for arm, size in BYTES.items()}
    assert module.figures(run_of(tmp_path / "sizes", more=sizes)) == {}, "a size without an accuracy is no point"


def test_a_technique_all_of_whose_seeds_failed_has_no_row(tmp_path: Path) -> None:
    failed: Cells = {"mixup/CE": MIXED["mixup/CE"], "mixup/KD": [None] * 5}
    assert module.figures(run_of(tmp_path / "alone", NONE, failed)) == {}
    text = words(module.figures(run_of(tmp_path / "beside", NONE, failed, TUNED, PRUNED))["gains"])
    assert "prune50" in text
    assert "mixup" not in text


def test_one_seed_has_means_without_intervals(tmp_path: Path) -> None:
    one = ({name: values[:1] for name, values in cells.items()} for cells in (TUNED, PRUNED))
    more = {cell: values[:1] for cell, values in others().items()}
    made = module.figures(run_of(tmp_path, *one, more=more, seeds=SEEDS[:1]))
    assert list(made) == NAMES
    for svg in made.values():
        assert "MNIST-1D pool, tier laptop, protocol clean, n = 1 seed" in words(svg)
    assert words(made["gains"]).count("undecided") == 2
    assert not any("±" in word or "[" in word for svg in made.values() for word in words(svg))


def test_a_seed_without_a_value_leaves_the_others_and_is_counted(tmp_path: Path) -> None:
    gappy: Cells = {"prune50/CE": PRUNED["prune50/CE"], "prune50/KD": [None, *PRUNED["prune50/KD"][1:]]}
    more: dict[str, Any] = others()
    for cell in ("ensemble/mnist1d-pool/CE/bias", "grid/mnist1d-pool/w1-d2/KD", "augmentation/mnist1d-pool/n500/gain"):
        more[cell] = [None, *more[cell][1:]]
    made = module.figures(run_of(tmp_path, NONE, MIXED, TUNED, gappy, more=more))
    assert list(made) == NAMES
    for svg in made.values():
        assert f"{CONDITIONS}, fewer where values are missing" in words(svg)
    assert {"prune50 (n = 4)", "mixup"} <= {*words(made["gains"])}
    assert {"CE (n = 4)", "KD-own"} <= {*words(made["ensemble"])}
    assert sum(word.endswith("n = 4") for word in words(made["grid"])) == 1
    assert words(made["augmentation"]).count("(n = 4)") == 1


def test_a_run_that_contradicts_itself_is_not_drawn(tmp_path: Path) -> None:
    wrong = {"mixup/accuracy": [1.0, 2.0, 3.0, 4.0, 5.0]}
    with pytest.raises(KdbenchError, match="follows from the run's accuracies"):
        module.figures(run_of(tmp_path, NONE, MIXED, interactions=wrong))


# --------------------------------------------------------------------------------------------------------------- gains


def test_gains_stand_beside_those_of_their_controls(result: Reproduction, shown: dict[str, Figure]) -> None:
    gains, differences = shown["gains"].axes
    found = [each for each in interactions(result) if each.scale == "accuracy"]
    assert [label.get_text() for label in gains.get_yticklabels()] == ["mixup", "prune50"]
    assert [each.control for each in found] == ["none", "none+ft"]
    pairs = [mean for each in found for mean in (each.without.mean, each.under.mean)]
    assert [mean for mean, _ in dots(gains)] == pytest.approx(pairs)
    assert [mean for mean, _ in dots(differences)] == pytest.approx([each.interaction.mean for each in found])
    assert [round(row) for _, row in dots(gains)] == [0, 0, 1, 1]
    ends = [container.lines[2][0].get_segments()[0][:, 0] for container in differences.containers]
    for (low, high), each in zip(ends, found, strict=True):
        assert (low, high) == pytest.approx((each.interaction.low, each.interaction.high))


def test_the_band_is_the_margin_that_each_claim_declares(shown: dict[str, Figure]) -> None:
    (band,) = shown["gains"].axes[1].collections[:1]
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert {(0.5, -0.5), (-0.5, 0.5), (0.7, 0.5), (-0.7, 1.5)} <= corners
    assert max(x for x, _ in corners) == 0.7


def test_grades_are_in_words(result: Reproduction, drawn: dict[str, str]) -> None:
    text = words(drawn["gains"])
    grades = [each.grade for each in interactions(result) if each.scale == "accuracy"]
    assert [grade.gain for grade in grades] == ["orthogonal (weak)"] * 2
    assert [grade.interaction for grade in grades] == ["additive"] * 2
    assert (text.count("orthogonal (weak)"), text.count("additive")) == (2, 2)
    for word in ("under X", "without X: none", "without X: none+ft", "band: within the margin m"):
        assert word in text


def test_without_a_control_there_is_no_interaction(tmp_path: Path) -> None:
    result = run_of(tmp_path, PRUNED)
    assert len(canvases(result)["gains"].axes) == 1
    text = words(module.figures(result)["gains"])
    assert "orthogonal (weak)" in text
    assert not any(word.startswith(("I(X)", "without X", "band", "undecided")) for word in text)


# ------------------------------------------------------------------------------------------------------------ ensemble


def test_bias_and_variance_are_stacked(shown: dict[str, Figure]) -> None:
    parts = shown["ensemble"].axes[0]
    assert [label.get_text() for label in parts.get_yticklabels()] == ["CE", "KD-own", "KD-bagged"]
    expected = []
    for row, (_, _, _, bias, variance, _) in enumerate(PARTS.values()):
        expected += [(row, 0.0, bias), (row, bias, variance)]
    for found, bar in zip(bars(parts), expected, strict=True):
        assert found == pytest.approx(bar)


def test_members_stand_beside_their_ensemble(shown: dict[str, Figure], drawn: dict[str, str]) -> None:
    _, accuracies, disagreement = shown["ensemble"].axes
    assert [mean for mean, _ in dots(accuracies)] == pytest.approx([86.0, 95.0, 89.0, 95.5, 90.0])
    assert [mean for mean, _ in dots(disagreement)] == pytest.approx([0.20, 0.15])
    # Half of the interval of five seeds .1 apart: t(.975, 4) = 2.776, sd .1 sqrt(10 / 4) = .158, over sqrt 5.
    assert {"+9.0 ±0.2", "+6.5 ±0.2"} <= {*words(drawn["ensemble"])}


def test_a_part_that_was_not_measured_has_no_panel(tmp_path: Path) -> None:
    variance = {cell: values for cell, values in ensemble().items() if cell.endswith("/variance")}
    (axes,) = canvases(run_of(tmp_path, more=variance))["ensemble"].axes
    assert [start for _, start, _ in bars(axes)] == [0.0, 0.0]
    assert [length for _, _, length in bars(axes)] == pytest.approx([0.11, 0.07])
    text = words(module.figures(run_of(tmp_path / "again", more=variance))["ensemble"])
    assert "variance" in text
    assert not {"squared bias", "their ensemble", "test accuracy, %"} & {*text}


# --------------------------------------------------------------------------------------------------------------- front


def test_a_front_has_what_nothing_of_its_size_equals_or_beats() -> None:
    points = [(8.0, 90.0), (2.0, 80.0), (4.0, 85.0), (2.0, 79.0), (4.0, 80.0), (6.0, 85.0), (8.0, 84.0)]
    assert front(points) == [(2.0, 80.0), (4.0, 85.0), (8.0, 90.0)]
    assert front([]) == []


def test_a_box_moves_as_little_as_it_must() -> None:
    wanted, taken = Box(0, 10, 0, 10), [Box(5, 15, 0, 10), Box(0, 10, -8, 0)]
    assert free(wanted, [], 1.0) == wanted
    assert free(wanted, [Box(10, 20, 0, 10)], 1.0) == wanted, "boxes that touch do not meet"
    assert free(wanted, taken, 1.0) == Box(0, 10, 10, 20)
    assert free(wanted, [Box(0, 10, 2, 12)], 1.0) == Box(0, 10, -8, 2)


def test_every_arm_has_two_points_at_its_size(shown: dict[str, Figure]) -> None:
    (axes,) = shown["front"].axes
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    assert len(points) == 2 * len(BYTES)
    for (left, _), (right, _), size in zip(points[::2], points[1::2], sorted(BYTES.values()), strict=True):
        assert left < size < right
        assert left * right == pytest.approx(size**2)
    assert points[1][1] == pytest.approx(94.4), "prune50, the smallest, with distillation"
    assert sorted(y for _, y in points[3::2]) == pytest.approx([95.58, 95.6, 95.9])
    # At equal size the most accurate is on the front, and a smaller network is, as nothing smaller beats it.
    assert {text.get_text(): text.get_color() for text in axes.texts} == {
        **dict.fromkeys(("none+ft", "prune50"), module.INK),
        **dict.fromkeys(("none", "mixup"), "0.3"),
    }


def test_arms_of_one_size_are_no_front(tmp_path: Path) -> None:
    sizes = {f"front/{DATASET}/{arm}/bytes": [12904.0] * 5 for arm in ("none", "mixup")}
    assert list(module.figures(run_of(tmp_path, NONE, MIXED, more=sizes))) == ["gains"]


def test_names_do_not_touch_even_where_sizes_and_accuracies_are_the_same(tmp_path: Path) -> None:
    from matplotlib.text import Text

    arms = ["none", "none+ft", "prune30", "prune50", "prune70", "mixup", "cutmix", "label-smoothing", "weight-decay"]
    arms += ["dropout", "separable", "structured33", "int8-qat"]
    cells = {f"{arm}/{column}": spread(94.0 + (column == "KD")) for arm in arms for column in ("CE", "KD")}
    sizes = {f"front/{DATASET}/{arm}/bytes": [12904.0 if arm in arms[:10] else 10240.0] * 5 for arm in arms}
    figure = canvases(run_of(tmp_path, cells, more=sizes))["front"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}  # without the line to the point
    assert {*boxes} == {*arms}
    for (_, one), (_, other) in combinations(boxes.items(), 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10,240", "12,904"]


# ----------------------------------------------------------------------------------------------- grid and augmentation


def test_the_grid_shows_signs(shown: dict[str, Figure], drawn: dict[str, str]) -> None:
    (axes,) = shown["grid"].axes
    colours = {(round(each.get_x() + 0.48), round(each.get_y() + 0.48)): each.get_facecolor() for each in axes.patches}
    assert {*colours} == {(0, 0), (1, 0), (0, 1)}, "what was not measured stays blank"
    red, _, blue, _ = colours[0, 0]
    assert blue > red, "a gain"
    red, _, blue, _ = colours[1, 0]
    assert blue < red, "a loss"
    weights = {text.get_text(): text.get_fontweight() for text in axes.texts if text.get_fontsize() > 10}
    assert weights == {"+1.02": "bold", "-0.48": "bold", "+0.07": "normal"}
    assert {"d2", "d4", "w1", "w2", "CE 90.0   KD 91.0 %, n = 5"} <= {*words(drawn["grid"])}


def test_gains_go_from_the_smallest_training_set(shown: dict[str, Figure], drawn: dict[str, str]) -> None:
    sizes, moves = shown["augmentation"].axes
    assert [label.get_text() for label in sizes.get_xticklabels()] == ["500", "1,000", "2,000"]
    for axes, means in ((sizes, [3.0, 2.0, 1.0]), (moves, [1.0, 0.5])):
        assert list(axes.containers[0].lines[0].get_ydata()) == pytest.approx(means)
        assert all(one < other for one, other in pairwise(axes.containers[0].lines[0].get_xdata()))
    assert "slope: -1.00 ±0.20 points a doubling" in words(drawn["augmentation"])


def test_only_the_measured_half_is_drawn(tmp_path: Path) -> None:
    moved = {cell: values for cell, values in others().items() if "/shift-" in cell}
    (axes,) = canvases(run_of(tmp_path / "moved", more=moved))["augmentation"].axes
    assert axes.get_xlabel() == "inputs"
    sizes = {cell: values for cell, values in others().items() if re.search(r"/n\d+/gain$", cell)}
    (axes,) = canvases(run_of(tmp_path / "sizes", more=sizes))["augmentation"].axes
    assert axes.get_xlabel() == "training examples"
    assert not axes.get_title(loc="left"), "no slope was measured"

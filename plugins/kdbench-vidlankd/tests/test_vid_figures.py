"""The figures of a run: what is on them, that they are the same every time, and that nothing unmeasured is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from vid_runs import GUESSING, SEEDS, everything, leave_picture, run_of, spread

import kdbench_vidlankd.figures as module
from kdbench.api import prepare
from kdbench.result import Reproduction, read_run
from kdbench_vidlankd._names import Box, beside, box_of
from kdbench_vidlankd.probes import PROBES
from kdbench_vidlankd.readings import GROUPS, Readings, grouped
from kdbench_vidlankd.recipes import WEIGHTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ["probes", "grounding", "retrieval", "harm", "weights"]
CONDITIONS = "The unspoken world, tier laptop, protocol clean, "
ARMS = [arm for members in GROUPS.values() for arm in members]
WORDS = ["[CLS]", "look", "at", "badog", "[SEP]"]
COSINES = [[round(0.1 * row - 0.05 * column, 3) for column in range(9)] for row in range(5)]
EVENTS = {"shakes": 6, "glows": 2}


def planted(folder: Path, cells: Mapping[str, Sequence[float | None]], **options: Any) -> Reproduction:
    """A run of ``cells`` and, where it retrieved, the pictures of its first two seeds."""
    result = run_of(folder, cells, **options)
    for arm, sign in (("crd", 1.0), ("teacher", -1.0)):
        for seed in SEEDS[:2]:
            cosines = [[sign * value + seed for value in row] for row in COSINES]
            leave_picture(result, f"retrieval-{arm}-{seed}", {"words": WORDS, "cosines": cosines, "events": EVENTS})
    return result


def canvases(result: Reproduction) -> dict[str, Figure]:
    """What is drawn, before it becomes text."""
    kept: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "svg", lambda figure: kept.append(figure) or "")
        names = list(module.figures(result))
    return dict(zip(names, kept, strict=True))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    return planted(tmp_path_factory.mktemp("planted"), everything())


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
    """Place of every marker with an interval."""
    return [tuple(container.lines[0].get_xydata()[0]) for container in axes.containers]


def only(tables: Sequence[str]) -> dict[str, list[float]]:
    return {cell: values for cell, values in everything().items() if cell.partition("/")[0] in tables}


# ------------------------------------------------------------------------------------------------------------- the set


def test_the_same_run_gives_the_same_bytes(result: Reproduction, drawn: dict[str, str]) -> None:
    import matplotlib

    assert list(drawn) == NAMES
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert module.figures(read_run(result.path)) == drawn
    assert not any("dc:date" in svg for svg in drawn.values())


def test_every_figure_is_seven_by_five_inches_under_its_conditions(drawn: dict[str, str]) -> None:
    seeds = {"grounding": "seed 0", "weights": "n = 2 seeds"}
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg.encode())
        assert (root.get("width"), root.get("height")) == ("504pt", "360pt")  # 72 points an inch
        assert CONDITIONS + seeds.get(name, "n = 5 seeds") in words(svg)


@pytest.mark.parametrize("claims", ["all", "core"])
def test_nothing_is_cut_off_at_the_edge(claims: str, result: Reproduction, tmp_path: Path) -> None:
    core = {cell: values for cell, values in everything().items() if cell.split("/")[1] in (*GROUPS["core"], "video")}
    for name, figure in canvases(result if claims == "all" else planted(tmp_path, core)).items():
        found = figure.get_tightbbox()  # of all that is drawn, in inches
        assert 0 <= found.x0 <= found.x1 <= 7, name
        assert 0 <= found.y0 <= found.y1 <= 5, name


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert module.figures(planted(tmp_path / "nothing", {})) == {}
    assert module.figures(planted(tmp_path / "text", only(["text"]))) == {}, "without colours there is no cost of them"
    assert list(module.figures(planted(tmp_path / "probes", only(["probe"])))) == ["probes"]
    assert list(module.figures(run_of(tmp_path / "retrieval", only(["retrieval"])))) == ["retrieval"], "no record"
    chance = {cell: values for cell, values in everything().items() if "/chance/" in cell}
    assert module.figures(planted(tmp_path / "chance", chance)) == {}, "chance alone is no result"
    centre = {f"weights/{name}@{WEIGHTS[name]:g}/colour": spread(80.0)[:2] for name in ("nst", "crd")}
    assert module.figures(planted(tmp_path / "centre", centre)) == {}, "every run has the weight of the arms"


def test_core_has_the_probes_and_what_they_cost(tmp_path: Path) -> None:
    core = {cell: values for cell, values in everything().items() if cell.split("/")[1] in (*GROUPS["core"], "chance")}
    core = {cell: values for cell, values in core.items() if not cell.startswith("retrieval/crd")}
    figures = canvases(planted(tmp_path, core))
    assert list(figures) == ["probes", "harm"]
    names = [label.get_text() for label in figures["probes"].axes[0].get_yticklabels()]
    assert names == list(GROUPS["core"]), "a single group has no name"


def test_one_seed_has_means_without_intervals(tmp_path: Path) -> None:
    one = {cell: values[:1] for cell, values in everything().items()}
    figures = canvases(planted(tmp_path, one, seeds=SEEDS[:1]))
    assert list(figures) == NAMES
    for name in ("probes", "harm", "retrieval"):
        assert any("n = 1 seed" in text.get_text() for text in figures[name].texts)
        for axes in figures[name].axes:
            for container in axes.containers:
                for bar in container.lines[2]:
                    (start, end) = bar.get_segments()[0]
                    assert tuple(start) == tuple(end)


def test_a_seed_without_a_value_leaves_the_others_and_is_counted(tmp_path: Path) -> None:
    cells: dict[str, list[float | None]] = dict(everything())
    cells["probe/crd/colour"] = [None, *everything()["probe/crd/colour"][1:]]
    cells["retrieval/crd/recall1"] = [float("nan"), *everything()["retrieval/crd/recall1"][1:]]
    made = module.figures(planted(tmp_path, cells))
    for name in ("probes", "harm", "retrieval"):
        assert f"{CONDITIONS}n = 5 seeds, fewer where values are missing" in words(made[name])
    assert "crd (n = 4)" in words(made["probes"])
    assert "crd (n = 5, 4)" in words(made["harm"])
    assert CONDITIONS + "n = 2 seeds" in words(made["weights"]), "of its own cells none is missing"
    first = canvases(read_run(tmp_path))["retrieval"].axes[0].containers[0].lines[0].get_ydata()[0]
    assert first == pytest.approx(60.0 + 2.0 / 4), "the mean of the seeds that there are"


# --------------------------------------------------------------------------------------------------------------- probes


def test_every_probe_has_a_panel_and_every_arm_a_row(shown: dict[str, Figure]) -> None:
    panels = shown["probes"].axes
    assert [axes.get_title(loc="left").replace("\n", "") for axes in panels] == list(PROBES)
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    heads = [label.get_text() for label in panels[0].get_yticklabels() if label.get_fontweight() == "bold"]
    assert heads == list(GROUPS)
    assert names == [name for group, arms in GROUPS.items() for name in (group, *arms)]
    cells = everything()
    for axes, column in zip(panels, PROBES, strict=True):
        means = {arm: sum(cells[f"probe/{arm}/{column}"]) / 5 for arm in ARMS}
        assert [mean for mean, _ in dots(axes)] == pytest.approx([means[arm] for arm in ARMS])
        assert [row for _, row in dots(axes)] == [names.index(arm) for arm in ARMS]


def test_chance_is_a_line_and_the_teacher_a_band(shown: dict[str, Figure]) -> None:
    for axes, chance in zip(shown["probes"].axes, PROBES.values(), strict=True):
        lines = {
            line.get_linestyle(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() in (":", "--")
        }
        assert lines == {":": chance, "--": 95.0}
        (band,) = axes.patches
        # Five seeds 1 apart: t(.975, 4) = 2.776 times sd 2 sqrt(2.5 / 4) = 1.581 over sqrt 5.
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((95 - 1.963, 95 + 1.963), abs=1e-3)


def test_without_a_teacher_there_is_no_band(tmp_path: Path) -> None:
    made = module.figures(planted(tmp_path, only(["probe"])))["probes"]
    assert "chance" in words(made)
    assert not any("video teacher" in word for word in words(made))


def test_a_column_that_failed_has_no_panel(tmp_path: Path) -> None:
    *others, failed = PROBES
    cells: dict[str, list[float | None]] = {
        cell: [None] * 5 if cell.endswith(f"/{failed}") else list(values) for cell, values in only(["probe"]).items()
    }
    panels = canvases(planted(tmp_path, cells))["probes"].axes
    assert [axes.get_title(loc="left").replace("\n", "") for axes in panels] == others


def test_arms_of_no_group_come_last() -> None:
    found = grouped(["new", "crd", "soft", "text", "other"])
    assert found == {"core": ["text", "crd"], "objectives": ["soft"], "others": ["new", "other"]}


def test_every_arm_of_the_study_has_a_group() -> None:
    pytest.importorskip("transformers", reason="needs kdbench-vidlankd[bert]")
    plan = prepare("vidlankd", tier="laptop", claims="all", seeds=1, device="cpu", fetch=False).plan
    rows = {m.cell.split("/")[2] for m in plan.measurements if m.cell.startswith("probe/")}
    assert rows - {"chance"} == {*ARMS}


# ---------------------------------------------------------------------------------------------- grounding and retrieval


def test_a_picture_is_of_the_first_seed(shown: dict[str, Figure]) -> None:
    crd, teacher, bar = shown["grounding"].axes
    for axes, sign in ((crd, 1.0), (teacher, -1.0)):
        (mesh,) = axes.collections
        assert mesh.get_array().reshape(5, 9).tolist() == [[pytest.approx(sign * v) for v in row] for row in COSINES]
        assert mesh.get_clim() == (-0.4, 0.4), "both have one scale, with nothing at 0 in its middle"
        assert [label.get_text() for label in axes.get_yticklabels()] == WORDS
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(frame) for frame in range(1, 10)]
        assert {text.get_text(): text.get_position()[0] for text in axes.texts} == {"shakes": 6.5, "glows": 2.5}
        low, high = axes.get_ylim()
        assert low > high, "the sentence reads downwards"
    assert bar.get_title(loc="left") == "cosine"


def test_a_picture_is_of_the_next_seed_where_the_first_has_none(tmp_path: Path) -> None:
    result = run_of(tmp_path, only(["retrieval"]))
    leave_picture(result, "retrieval-crd-3", {"words": WORDS, "cosines": COSINES})
    made = module.figures(read_run(tmp_path))
    assert list(made) == ["grounding", "retrieval"]
    assert CONDITIONS + "seed 3" in words(made["grounding"])
    assert "tokens of teacher" not in words(made["grounding"])


def test_recall_stands_beside_chance(shown: dict[str, Figure], drawn: dict[str, str]) -> None:
    (axes,) = shown["retrieval"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["recall@1", "recall@5"]
    assert [y for _, y in dots(axes)] == pytest.approx([60.0, 70.0, 85.0, 95.0])
    assert [round(x) for x, _ in dots(axes)] == [0, 0, 1, 1]
    chance = [line.get_segments()[0][0][1] for line in axes.collections if line.get_linestyle()[0][1] is not None]
    assert chance == pytest.approx([3.125, 14.93])
    assert {"60.0", "95.0", "14.9", "crd", "teacher", "chance"} <= {*words(drawn["retrieval"])}


# ----------------------------------------------------------------------------------------------------- cost and weights


def test_every_arm_with_text_and_colour_is_a_point_with_its_name(shown: dict[str, Figure]) -> None:
    (axes,) = shown["harm"].axes
    cells = everything()
    arms = [arm for arm in ARMS if f"text/{arm}/mlm" in cells]
    expected = {arm: (sum(cells[f"probe/{arm}/colour"]) / 5, sum(cells[f"text/{arm}/mlm"]) / 5) for arm in arms}
    assert sorted(dots(axes)) == [pytest.approx(place) for place in sorted(expected.values())]
    assert sorted(text.get_text() for text in axes.texts) == sorted(arms)
    assert all(expected[arm][0] < 40 for arm in GUESSING if arm in arms)


def test_no_harm_is_what_its_claim_declares(shown: dict[str, Figure], tmp_path: Path) -> None:
    (band,) = shown["harm"].axes[0].patches
    text = everything()["text/text/mlm"]
    assert (band.get_y(), band.get_height()) == pytest.approx((sum(text) / 5, 0.05))
    figure = canvases(planted(tmp_path, everything(), claims=()))["harm"]
    assert not figure.axes[0].patches
    assert "no harm" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_names_do_not_touch_even_where_arms_are_equal(tmp_path: Path) -> None:
    from matplotlib.text import Text

    cells = {f"probe/{arm}/colour": spread(97.0) for arm in ARMS}
    cells |= {f"text/{arm}/mlm": spread(1.4 + 0.001 * (place % 3), 0.01) for place, arm in enumerate(ARMS)}
    figure = canvases(planted(tmp_path, cells))["harm"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert {*boxes} == {*ARMS}
    for (_, one), (_, other) in combinations(boxes.items(), 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


def test_names_stand_near_their_points_and_on_no_other() -> None:
    page = Box(0, 400, 0, 300)
    points = [(200.0, 150.0), (206.0, 150.0), (200.0, 158.0), (398.0, 298.0)]
    names = ["crd", "nst", "soft", "a longer name"]
    boxes = beside(names, points, page)
    marks = [box_of(point) for point in points]
    assert all(box.within(page) for box in boxes)
    assert not any(box.meets(mark) for box in boxes for mark in marks)
    assert not any(one.meets(other) for one, other in combinations(boxes, 2))
    assert boxes[1].left > points[1][0], "outward, away from the others"
    assert boxes[2].low > points[2][1]
    assert boxes[3].right <= 400
    assert beside(names, points, page) == boxes


def test_where_there_is_no_room_a_name_stands_on_its_point() -> None:
    assert beside(["much too long for this page"], [(5.0, 5.0)], Box(0, 10, 0, 10)) == [box_of((5.0, 5.0))]


def test_weights_go_from_the_smallest_and_the_chosen_one_is_marked(shown: dict[str, Figure]) -> None:
    soft, nst = shown["weights"].axes
    for axes, name in ((soft, "soft"), (nst, "nst")):
        assert axes.get_title(loc="left") == name
        assert axes.get_xscale() == "log"
        mean = next(line for line in axes.lines if line.get_color() == module.INK)
        assert list(mean.get_xdata()) == pytest.approx([WEIGHTS[name] / 4, WEIGHTS[name], 4 * WEIGHTS[name]])
        assert list(mean.get_ydata()) == pytest.approx([39.5, 59.5, 79.5])
        seeds = [line for line in axes.lines if line.get_color() == "0.75"]
        assert [line.get_ydata()[0] for line in seeds] == pytest.approx([38.0, 41.0])
        marked = [line.get_xdata()[0] for line in axes.lines if line.get_color() == module.BAND]
        assert marked == [WEIGHTS[name]]


def test_a_weight_that_was_not_swept_is_not_marked(tmp_path: Path) -> None:
    cells = {f"weights/crd@{weight}/colour": spread(50.0)[:2] for weight in (7, 9)}
    result = planted(tmp_path, cells)
    assert list(Readings(result).swept()) == ["crd"]
    (axes,) = canvases(result)["weights"].axes
    assert not [line for line in axes.lines if line.get_color() == module.BAND]

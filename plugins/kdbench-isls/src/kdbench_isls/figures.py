"""Figures of a run: generations as students and as teachers, reliability of every arm, all arms beside each other.

One set for each network and level of label noise. What the run did not measure is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench.report.grids import data_name
from kdbench.report.svg import INCHES, reach, shade, style, svg
from kdbench.result import Reproduction
from kdbench.verdict import summarise
from kdbench_isls.readings import STATISTICS, Diagram, Level, Lines, Readings, Seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

ACCURACY = "test accuracy, %"
AS_TEACHERS = dict(
    zip(
        STATISTICS,
        (
            "uncertainty: mean entropy\nof the predictions, nats",
            "diversity: differential\nentropy of p(label), nats",
            "variance of p(label)",
        ),
        strict=True,
    )
)
REFERENCES = ("CE", "LS", "LS-matched", "Beta", "shuffled")
SIZES = {0.01: "1 %", 0.1: "10 %", 0.5: "50 % of the examples"}  # of the points in a reliability diagram's legend
INK = "#3b528b"
FAINT = "0.6"


class Panel(NamedTuple):
    """One quantity against the generation."""

    title: str
    lines: Lines


def figures(result: Reproduction) -> dict[str, str]:
    """SVG texts by name, which says network and noise where the run has several of either."""
    readings = Readings(result)
    levels = readings.levels()
    drawn: dict[str, str] = {}
    with style("kdbench-isls"):
        for level in levels:
            suffix = f"-{level.network}-{level.noise}" if len(levels) > 1 else ""
            for name, draw in (("generations", _generations), ("reliability", _reliability), ("arms", _arms)):
                if (figure := draw(readings, level)) is not None:
                    drawn[name + suffix] = svg(figure)
    return drawn


def _generations(readings: Readings, level: Level) -> Figure | None:
    """Accuracy of the generations as students, and what their predictions are like as teachers."""
    accuracy = Panel(ACCURACY, readings.lines(level, "accuracy"))
    teachers = [Panel(title, readings.lines(level, table)) for table, title in AS_TEACHERS.items()]
    teachers = [panel for panel in teachers if panel.lines]
    if not accuracy.lines and not teachers:
        return None
    figure = _canvas("Generations of self-distillation: mean and 95 % t interval over seeds", readings, level)
    columns = bool(accuracy.lines) + bool(teachers)
    space: dict[str, Any] = {"left": 0.09, "right": 0.98 if teachers else 0.85, "bottom": 0.15, "top": 0.785}
    grid = figure.add_gridspec(max(len(teachers), 1), columns, hspace=0.55, wspace=0.55, **space)
    places = [(figure.add_subplot(grid[:, 0]), accuracy)] if accuracy.lines else []
    places += [(figure.add_subplot(grid[row, -1]), panel) for row, panel in enumerate(teachers)]
    names = list(dict.fromkeys(name for _, panel in places for name in panel.lines))
    for axes, panel in places:
        _draw_lines(axes, panel, names)
    if accuracy.lines:
        places[0][0].set_xlabel("generation, as a student")
        _draw_references(places[0][0], readings, level)
    if teachers:
        for axes, _ in places[-len(teachers) : -1]:
            axes.tick_params(labelbottom=False)
        places[-1][0].set_xlabel("generation, as the teacher of the next\n(generation g teaches g + 1)")
    _name_lines(figure, names)
    return figure


def _draw_lines(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """One line a temperature, side by side; its seeds behind it where it is the only one."""
    for name, generations in panel.lines.items():
        if len(names) == 1:
            for seed in sorted({seed for seeds in generations.values() for seed in seeds}):
                points = [(number, seeds[seed]) for number, seeds in generations.items() if seed in seeds]
                axes.plot(*zip(*points, strict=True), color="0.8", linewidth=0.7, zorder=1)
        place = names.index(name)
        beside = 0.05 * (place - (len(names) - 1) / 2)
        summaries = [summarise(seeds.values()) for seeds in generations.values()]
        axes.errorbar(
            [number + beside for number in generations],
            [summary.mean or 0.0 for summary in summaries],
            yerr=list(zip(*map(reach, summaries), strict=True)),
            color=shade(place / max(len(names) - 1, 1)),
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            elinewidth=0.9,
            capsize=2,
        )
    numbers = sorted({number for generations in panel.lines.values() for number in generations})
    axes.set(xticks=numbers, xlim=(numbers[0] - 0.25, numbers[-1] + 0.25))
    axes.set_title(panel.title, loc="left", fontsize=8)


def _draw_references(axes: Axes, readings: Readings, level: Level) -> None:
    """Means of arms beside the generations, each with its name at the end of its line."""
    from scipy.optimize import isotonic_regression

    means = [(readings.summary(level, "accuracy", arm).mean, arm) for arm in REFERENCES]
    ordered = sorted((mean, arm) for mean, arm in means if mean is not None)
    if not ordered:
        return
    for mean, arm in ordered:
        axes.axhline(mean, color=FAINT, linewidth=0.8, linestyle="--" if arm == "CE" else ":", zorder=0)
    low, high = axes.get_ylim()
    line = 10.0 / (axes.get_position().height * INCHES[1] * 72) * (high - low)  # 10 points in units of the axis
    # Names stay as close to their lines as they can without touching each other.
    heights = isotonic_regression([mean - line * index for index, (mean, _) in enumerate(ordered)]).x
    for index, (mean, arm) in enumerate(ordered):
        axes.annotate(
            arm,
            xy=(1.0, mean),
            xytext=(1.06, heights[index] + line * index),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _name_lines(figure: Figure, names: Sequence[str]) -> None:
    """What the colours are, in one row under the title."""
    from matplotlib.lines import Line2D

    colours = [shade(place / max(len(names) - 1, 1)) for place in range(len(names))]
    shown = [Line2D([], [], color=colour, marker="o", markersize=3.5) for colour in colours]
    labels = [f"temperature of the teachers: {names[0]}", *names[1:]]
    if len(names) == 1:
        shown.append(Line2D([], [], color="0.8", linewidth=0.7))
        labels.append("single seeds")
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.008, 0.92)}
    figure.legend(shown, labels, ncols=len(labels), fontsize=8, columnspacing=1.5, **place)


def _reliability(readings: Readings, level: Level) -> Figure | None:
    """A reliability diagram an arm, on the test split, all seeds in one."""
    diagrams = list(readings.diagrams(level))
    if not diagrams:
        return None
    figure = _canvas("Reliability on the test split, seeds pooled; ECE in %: mean ± sd over seeds", readings, level)
    columns = min(len(diagrams), 4 if len(diagrams) <= 8 else 5)
    rows = -(-len(diagrams) // columns)
    space: dict[str, Any] = {"left": 0.085, "right": 0.985, "bottom": 0.165, "top": 0.825, "hspace": 0.5, "wspace": 0.2}
    panels = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=space).flat)
    for axes, diagram in zip(panels, diagrams, strict=False):
        _draw_diagram(axes, diagram)
    for axes in panels[len(diagrams) :]:
        axes.set_axis_off()
    for place, axes in enumerate(panels[: len(diagrams)]):
        outer = place % columns == 0, place + columns >= len(diagrams)
        axes.tick_params(labelleft=outer[0], labelbottom=outer[1])
        axes.set_ylabel("accuracy" if outer[0] else "", fontsize=8)
        axes.set_xlabel("confidence" if outer[1] else "", fontsize=8)
    _name_points(figure)
    return figure


def _draw_diagram(axes: Axes, diagram: Diagram) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=0)
    axes.vlines(
        [confidence for confidence, _, _ in diagram.bins],
        [confidence for confidence, _, _ in diagram.bins],
        [accuracy for _, accuracy, _ in diagram.bins],
        color=INK,
        linewidth=0.8,
        alpha=0.5,
    )
    confidences, accuracies, shares = zip(*diagram.bins, strict=True)
    areas = [_area(share) for share in shares]
    # A bin may well have an accuracy of 0 or 1: its point is drawn whole.
    axes.scatter(confidences, accuracies, s=areas, color=INK, linewidth=0, alpha=0.75, clip_on=False, zorder=3)
    spread = "" if diagram.error.sd is None else f" ± {diagram.error.sd:.1f}"
    axes.set_title(
        f"{diagram.arm}\nECE {diagram.error.mean:.1f}{spread}, n = {diagram.error.n}", loc="left", fontsize=7
    )
    ticks, names = [0, 0.5, 1], ["0", ".5", "1"]
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
    axes.set(aspect="equal", anchor="NW")


def _name_points(figure: Figure) -> None:
    """What the diagonal and the sizes of the points are, under the panels."""
    from matplotlib.lines import Line2D

    point: dict[str, Any] = {"color": INK, "marker": "o", "linestyle": "", "markeredgewidth": 0, "alpha": 0.75}
    shown = [Line2D([], [], color=FAINT, linewidth=0.8)]
    shown += [Line2D([], [], markersize=_area(share) ** 0.5, **point) for share in SIZES]
    labels = ["accuracy = confidence (below it: overconfident)", *SIZES.values()]
    figure.legend(shown, labels, loc="lower center", ncols=len(labels), fontsize=8)


def _area(share: float) -> float:
    """Of a point, in square points; the smallest can still be seen."""
    return 3.0 + 160.0 * share


def _arms(readings: Readings, level: Level) -> Figure | None:
    """Accuracy and calibration error of every arm."""
    arms = [arm for arm in readings.columns(level, "accuracy") if readings.values(level, "accuracy", arm)]
    if not arms:
        return None
    figure = _canvas("Arms on the test split: mean, 95 % t interval, and single seeds in grey", readings, level)
    titles = {"accuracy": ACCURACY, "ece": "expected calibration error, %\n(15 bins)"}
    tables = [table for table in titles if any(readings.values(level, table, arm) for arm in arms)]
    space: dict[str, Any] = {"left": 0.2, "right": 0.97, "bottom": 0.17, "top": 0.87, "wspace": 0.1}
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False, gridspec_kw=space).flat
    plain = [readings.summary(level, table, "CE").mean for table in tables]
    for axes, table, mean in zip(panels, tables, plain, strict=True):
        _draw_dots(axes, [readings.values(level, table, arm) for arm in arms])
        axes.set_xlabel(titles[table])
        if mean is not None:
            axes.axvline(mean, color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
    counts = [[len(readings.values(level, table, arm)) for table in tables] for arm in arms]
    panels[0].set_yticks(range(len(arms)), list(_counted(arms, counts, readings.seeds)))
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    said = "" if plain[0] is None else "Dashed: the mean of CE. "
    said += "Arms share seeds: that intervals overlap does not say that arms are equal."
    figure.text(0.02, 0.02, said, fontsize=7.5, color="0.3")
    return figure


def _draw_dots(axes: Axes, arms: Sequence[Seeds]) -> None:
    """One row an arm, its seeds under its mean; nothing in the row of an arm that has no value."""
    for row, seeds in enumerate(arms):
        summary = summarise(seeds.values())
        if summary.mean is None:
            continue
        below, above = reach(summary)
        look: dict[str, Any] = {"color": INK, "markersize": 4.5, "elinewidth": 1, "capsize": 2.5}
        axes.errorbar([summary.mean], [row - 0.1], xerr=[[below], [above]], fmt="o", **look)
        axes.scatter(list(seeds.values()), [row + 0.2] * len(seeds), s=9, color="0.55", linewidth=0, alpha=0.8)
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)


def _counted(arms: Sequence[str], counts: Sequence[Sequence[int]], seeds: int) -> Iterator[str]:
    """Names of arms, with their seeds where those are not all; with both numbers where the panels differ."""
    for arm, count in zip(arms, counts, strict=True):
        numbers = ", ".join(str(each) for each in dict.fromkeys(count))
        yield arm if set(count) == {seeds} else f"{arm}\n(n = {numbers})"


def _canvas(title: str, readings: Readings, level: Level) -> Figure:
    """An empty figure under its title, and under what conditions all of it was measured."""
    from matplotlib.figure import Figure

    request = readings.result.run.request
    where = f"{data_name(readings.result)}, tier {request.tier}, protocol {request.protocol}, {level.network}"
    seeds = f"n = {readings.seeds} seed{'' if readings.seeds == 1 else 's'}"
    if readings.has_gaps(level):
        seeds += ", fewer where values are missing"
    figure = Figure(figsize=INCHES)
    figure.text(0.02, 0.955, title, fontsize=10)
    noise = f"{level.noise.removeprefix('noise-')} % label noise"
    figure.text(0.02, 0.92, f"{where}, {noise}, {seeds}", fontsize=8, color="0.3")
    return figure

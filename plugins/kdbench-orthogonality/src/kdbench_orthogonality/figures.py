"""Figures of a run: gains and interactions, the ensemble side, size and accuracy, the grid, the training set's size.

What the run did not measure is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kdbench.report.grids import data_name
from kdbench.report.svg import INCHES, reach, style, svg
from kdbench.result import Reproduction
from kdbench.verdict import Summary, summarise
from kdbench_orthogonality._front import draw_front
from kdbench_orthogonality.interaction import CONTROLS, Interaction
from kdbench_orthogonality.readings import Place, Readings, Seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

INK = "#3b528b"
GREEN = "#35a27f"
FAINT = "0.6"
BAND = "0.9"
PLAIN: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "color": GREEN, "markersize": 4.5}
FULL: dict[str, Any] = {"marker": "s", "color": INK, "markersize": 4}
CONTROL: dict[str, dict[str, Any]] = {
    name: {"marker": marker, "markerfacecolor": "white", "color": FAINT, "markersize": 4}
    for name, marker in zip(CONTROLS, "oD", strict=True)
}
BARS: dict[str, Any] = {"elinewidth": 1, "capsize": 2}
OFFSET = 0.17  # of a row, above and below its middle
PARTS = {"bias": "#8496c8", "variance": "#c3dbe6"}


def figures(result: Reproduction) -> dict[str, str]:
    """SVG texts by name."""
    readings = Readings(result)
    draws = {
        "gains": _gains,
        "ensemble": _ensemble,
        "front": _front,
        "grid": _grid,
        "augmentation": _augmentation,
    }
    drawn: dict[str, str] = {}
    with style("kdbench-orthogonality"):
        for name, draw in draws.items():
            if (figure := draw(readings)) is not None:
                drawn[name] = svg(figure)
    return drawn


def _gains(readings: Readings) -> Figure | None:
    """Gain of distillation under every technique beside that of its control, the difference, and its grade."""
    found = readings.interactions()
    if not found:
        return None
    title = "Gain of distillation under a technique X and without it: mean, 95 % t interval"
    figure = _canvas(title, readings, ("accuracy",))
    both = any(each.interaction.mean is not None for each in found)
    space: dict[str, Any] = {"left": 0.165, "right": 0.665 if both else 0.8, "bottom": 0.16, "top": 0.81}
    panels = list(figure.subplots(1, 1 + both, sharey=True, squeeze=False, gridspec_kw={**space, "wspace": 0.1}).flat)
    _draw_gains(panels[0], found)
    if both:
        _draw_interactions(panels[1], found)
    _name_rows(panels[0], [each.technique for each in found], [len(each.seeds) for each in found], readings.seeds)
    _draw_grades(figure, panels[-1], found, both=both)
    controls = [name for name in CONTROLS if any(each.control == name and _known(each.without) for each in found)]
    labels = ["under X", *(f"without X: {name}" for name in controls), *(["band: within the margin m"] if both else [])]
    looks = [FULL, *(CONTROL[name] for name in controls), *([{"color": BAND, "linewidth": 6}] if both else [])]
    _name_looks(figure, looks, labels)
    note = "Paired by seed. A grade needs the whole interval: that it contains 0 does not say that gains add up."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_gains(axes: Axes, found: Sequence[Interaction]) -> None:
    for row, each in enumerate(found):
        for summary, look, place in ((each.without, CONTROL[each.control], 1), (each.under, FULL, -1)):
            _dot(axes, row + place * OFFSET, summary, look)
    axes.axvline(0.0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("gain of distillation,\npoints of test accuracy")


def _draw_interactions(axes: Axes, found: Sequence[Interaction]) -> None:
    edges = [row - 0.5 for row in range(len(found) + 1)]
    margins = [each.margin for each in (*found, found[-1])]
    axes.fill_betweenx(edges, [-m for m in margins], margins, step="post", color=BAND, linewidth=0, zorder=0)
    axes.axvline(0.0, color=FAINT, linewidth=0.8, zorder=0.5)
    for row, each in enumerate(found):
        _dot(axes, row, each.interaction, FULL)
    axes.set_xlabel("I(X): gain under X less\ngain without, points")


def _draw_grades(figure: Figure, axes: Axes, found: Sequence[Interaction], *, both: bool) -> None:
    """The words of each row's grade, right of the panels."""
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(figure.transFigure, axes.transData)
    columns = [(axes.get_position().x1 + 0.015, "gain under X", [str(each.grade.gain) for each in found])]
    if both:
        graded = [str(each.grade.interaction) if _known(each.interaction) else "" for each in found]
        columns.append((0.865, "I(X)", graded))
    for place, title, words in columns:
        figure.text(place, axes.get_position().y1 + 0.008, title, fontsize=8)
        for row, word in enumerate(words):
            colour = FAINT if word == "undecided" else "black"
            axes.text(place, row, word, transform=beside, va="center", fontsize=7.5, color=colour)


def _ensemble(readings: Readings) -> Figure | None:
    """Squared bias and variance of every arm, accuracy one by one and as an ensemble, and disagreement."""
    panels = {
        "Brier score: squared bias\n(with noise) + variance": (("bias", "variance"), _draw_parts),
        "test accuracy, %\n(gain in points)": (("single", "ensemble"), _draw_accuracies),
        "disagreement, share\nof the test examples": (("disagreement",), _draw_disagreement),
    }
    arms = readings.rows("ensemble", [column for columns, _ in panels.values() for column in columns])
    measured = {title: each for title, each in panels.items() if readings.rows("ensemble", each[0])}
    if not arms:
        return None
    title = "Networks of several training sets: mean and 95 % t interval over seeds"
    figure = _canvas(title, readings, ("ensemble",))
    space: dict[str, Any] = {"left": 0.17, "right": 0.975, "bottom": 0.17, "top": 0.85, "wspace": 0.12}
    space["width_ratios"] = [1.0 if "disagreement" in columns else 1.35 for columns, _ in measured.values()]
    places = figure.subplots(1, len(measured), sharey=True, squeeze=False, gridspec_kw=space).flat
    for axes, (label, (_, draw)) in zip(places, measured.items(), strict=True):
        draw(axes, readings, arms)
        axes.set_xlabel(label)
        axes.margins(x=0.08)
    counts = [_seeds(readings, arm) for arm in arms]
    _name_rows(places[0], arms, counts, readings.seeds)
    looks: list[dict[str, Any]] = []
    labels: list[str] = []
    for column, colour in PARTS.items():
        if readings.rows("ensemble", (column,)):
            looks.append({"color": colour, "linewidth": 6})
            labels.append({"bias": "squared bias", "variance": "variance"}[column])
    for column, look in (("single", PLAIN), ("ensemble", FULL)):
        if readings.rows("ensemble", (column,)):
            looks.append({**look, "linestyle": ""})
            labels.append({"single": "one network (mean)", "ensemble": "their ensemble"}[column])
    _name_looks(figure, looks, labels)
    note = (
        "-boot: resamples of one training set; -whole, -bagged: one network of it; else independent sets. "
        "Upper interval: bias, lower: variance."
    )
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_parts(axes: Axes, readings: Readings, arms: Sequence[str]) -> None:
    for row, arm in enumerate(arms):
        start = 0.0
        for (column, colour), place in zip(PARTS.items(), (-1, 1), strict=True):
            summary = readings.summary("ensemble", arm, column)
            if summary.mean is None:
                continue
            axes.barh(row, summary.mean, left=start, height=0.62, color=colour, linewidth=0)
            start += summary.mean
            below, above = reach(summary)
            axes.errorbar([start], [row + place * OFFSET], xerr=[[below], [above]], fmt="none", ecolor="0.25", **BARS)


def _draw_accuracies(axes: Axes, readings: Readings, arms: Sequence[str]) -> None:
    """The gain stands above the line from one network to the ensemble."""
    for row, arm in enumerate(arms):
        single, ensemble = (readings.summary("ensemble", arm, column) for column in ("single", "ensemble"))
        _dot(axes, row + OFFSET, single, PLAIN)
        _dot(axes, row + OFFSET, ensemble, FULL)
        gain = readings.summary("ensemble", arm, "gain")
        if single.mean is not None and ensemble.mean is not None and gain.mean is not None:
            axes.plot([single.mean, ensemble.mean], [row + OFFSET] * 2, color=FAINT, linewidth=0.8, zorder=0)
            middle = (single.mean + ensemble.mean) / 2
            axes.text(middle, row - 0.05, _signed(gain, 1), ha="center", va="bottom", fontsize=7)


def _draw_disagreement(axes: Axes, readings: Readings, arms: Sequence[str]) -> None:
    for row, arm in enumerate(arms):
        _dot(axes, row, readings.summary("ensemble", arm, "disagreement"), FULL)


def _seeds(readings: Readings, arm: str) -> int:
    """Of the column that has the fewest, among those that are drawn."""
    drawn = (*PARTS, "single", "ensemble", "disagreement")
    return min(len(seeds) for column in drawn if (seeds := readings.values("ensemble", arm, column)))


def _front(readings: Readings) -> Figure | None:
    """Every arm by its bytes, without and with distillation, and the two Pareto fronts."""
    arms = readings.sized()
    if len({arm.size for arm in arms}) < 2:
        return None
    figure = _canvas("Size and accuracy of every arm: mean and 95 % t interval", readings, ("front", "accuracy"))
    axes = figure.add_axes((0.1, 0.13, 0.75, 0.72))
    draw_front(axes, arms, PLAIN, FULL)
    axes.set_xlabel("size of the network as stored, bytes (log scale)")
    axes.set_ylabel("test accuracy, %")
    step = {"marker": "", "linewidth": 1.2}
    looks = [{**PLAIN, "linestyle": ""}, {**PLAIN, **step}, {**FULL, "linestyle": ""}, {**FULL, **step}]
    _name_looks(
        figure, looks, ["without distillation", "its Pareto front", "with distillation (named)", "its Pareto front"]
    )
    note = "The two points of an arm stand left and right of its size; a line joins them. On the front: name in blue."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _grid(readings: Readings) -> Figure | None:
    """The gain of distillation at every width and depth: blue above 0, red below."""
    places = list(readings.grid())
    if len(places) < 2:  # every run has the one that is the student itself
        return None
    figure = _canvas("Gain of distillation at every width and depth, points of test accuracy", readings, ("grid",))
    axes = figure.add_axes((0.1, 0.15, 0.87, 0.69))
    widths = sorted({place.width for place in places})
    depths = sorted({place.depth for place in places})
    gains = {(place.width, place.depth): place for place in places}
    # The darkest colour still has black words on it.
    bound = 2.0 * max(abs(place.gain.mean or 0.0) for place in places) or 1.0
    for row, width in enumerate(widths):
        for column, depth in enumerate(depths):
            if (place := gains.get((width, depth))) is not None:
                _draw_place(axes, column, row, place, bound)
    axes.set(xlim=(-0.5, len(depths) - 0.5), ylim=(-0.5, len(widths) - 0.5))
    axes.set_xticks(range(len(depths)), [f"d{depth}" for depth in depths])
    axes.set_yticks(range(len(widths)), [f"w{width}" for width in widths])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="depth", ylabel="width")
    note = "Blue: a gain, red: a loss. In brackets its 95 % t interval, paired by seed; bold where that leaves out 0."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_place(axes: Axes, column: int, row: int, place: Place, bound: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    gain = place.gain
    colour = colormaps["RdBu"](0.5 + (gain.mean or 0.0) / (2 * bound))
    axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=colour, linewidth=0))
    lines, weight = f"CE {place.ce.mean:.1f}   KD {place.kd.mean:.1f} %, n = {gain.n}", "normal"
    if gain.low is not None and gain.high is not None:
        weight = "bold" if gain.low > 0 or gain.high < 0 else weight
        lines = f"[{_rounded(gain.low, 2):+.2f}, {_rounded(gain.high, 2):+.2f}]\n{lines}"
    mean = f"{_rounded(gain.mean or 0.0, 2):+.2f}"
    axes.text(column, row + 0.09, mean, ha="center", va="center", fontsize=13, fontweight=weight)
    axes.text(column, row - 0.06, lines, ha="center", va="top", fontsize=7.5, linespacing=1.5)


def _augmentation(readings: Readings) -> Figure | None:
    """The gain of distillation against the size of the training set, and with inputs that stay and that move."""
    sizes = readings.gains_by_size()
    shifts = readings.rows("augmentation", ("gain",))
    moves = {row: readings.values("augmentation", row, "gain") for row in ("shift-off", "shift-on") if row in shifts}
    # Every run has the whole training set, with inputs as they are: alone it is no comparison.
    sizes = sizes if len(sizes) > 1 else {}
    moves = moves if len(moves) > 1 else {}
    if not sizes and not moves:
        return None
    title = "Gain of distillation by what a student sees: mean, 95 % t interval, single seeds in grey"
    figure = _canvas(title, readings, ("augmentation",))
    space: dict[str, Any] = {"left": 0.1, "right": 0.97, "bottom": 0.15, "top": 0.81, "wspace": 0.08}
    space["width_ratios"] = [1.8] * bool(sizes) + [1.0] * bool(moves)
    count = bool(sizes) + bool(moves)
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False, gridspec_kw=space).flat)
    for axes in panels:
        axes.axhline(0.0, color=FAINT, linewidth=0.8, zorder=0)
    if sizes:
        axes = panels[0]
        _draw_columns(axes, list(sizes.values()), joined=True)
        axes.set_xticks(range(len(sizes)), [f"{size:,}{_few(sizes[size], readings)}" for size in sizes])
        axes.set_xlabel("training examples")
        slope = readings.summary("augmentation", "n", "slope")
        if slope.mean is not None:
            axes.set_title(f"slope: {_signed(slope, 2)} points a doubling", loc="left", fontsize=8)
    if moves:
        axes = panels[-1]
        _draw_columns(axes, list(moves.values()), joined=False)
        names = {"shift-off": "as they are", "shift-on": "moved at random"}
        axes.set_xticks(range(len(moves)), [names[row] + _few(seeds, readings) for row, seeds in moves.items()])
        axes.set_xlabel("inputs")
    panels[0].set_ylabel("gain, points of test accuracy")
    return figure


def _draw_columns(axes: Axes, columns: Sequence[Seeds], *, joined: bool) -> None:
    """Seeds left of their mean; one step apart, as sizes that double are on a log scale."""
    for seed in sorted({seed for seeds in columns for seed in seeds}):
        points = [(place - 0.06, seeds[seed]) for place, seeds in enumerate(columns) if seed in seeds]
        axes.plot(*zip(*points, strict=True), color="0.8", marker="o", markersize=2.5, linewidth=0.7, zorder=1)
    summaries = [summarise(seeds.values()) for seeds in columns]
    axes.errorbar(
        [place + 0.06 for place in range(len(columns))],
        [summary.mean or 0.0 for summary in summaries],
        yerr=list(zip(*map(reach, summaries), strict=True)),
        linestyle="-" if joined else "",
        linewidth=1.2,
        **FULL,
        **BARS,
    )
    axes.set_xlim(-0.5, len(columns) - 0.5)


def _dot(axes: Axes, row: float, summary: Summary, look: dict[str, Any]) -> None:
    """A mean with its interval; nothing where there is no mean."""
    if summary.mean is not None:
        below, above = reach(summary)
        axes.errorbar([summary.mean], [row], xerr=[[below], [above]], linestyle="", **look, **BARS)


def _name_rows(axes: Axes, names: Sequence[str], counts: Sequence[int], seeds: int) -> None:
    """From the top; with their seeds where those are not all."""
    pairs = zip(names, counts, strict=True)
    axes.set_yticks(range(len(names)), [name if n == seeds else f"{name} (n = {n})" for name, n in pairs])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for each in axes.figure.axes:
        each.grid(axis="y", color="0.93")
        each.set_axisbelow(True)
        if each is not axes:
            each.tick_params(axis="y", length=0, labelleft=False)


def _name_looks(figure: Figure, looks: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """What markers and colours are, in one row under the title."""
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], **{"linewidth": 1.0, **look}) for look in looks]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.008, 0.92)}
    figure.legend(shown, labels, ncols=len(labels), fontsize=8, columnspacing=1.5, **place)


def _few(seeds: Seeds, readings: Readings) -> str:
    return "" if len(seeds) == readings.seeds else f"\n(n = {len(seeds)})"


def _known(summary: Summary) -> bool:
    return summary.mean is not None


def _signed(summary: Summary, digits: int) -> str:
    """``+1.05 ±0.52``: mean and half of its 95 % interval, which is symmetric."""
    mean = f"{_rounded(summary.mean or 0.0, digits):+.{digits}f}"
    return mean if summary.low is None else f"{mean} ±{reach(summary)[1]:.{digits}f}"


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no -0.00


def _canvas(title: str, readings: Readings, tables: Iterable[str]) -> Figure:
    """An empty figure under its title, and under what conditions all of it was measured."""
    from matplotlib.figure import Figure

    request = readings.result.run.request
    where = f"{data_name(readings.result)}, tier {request.tier}, protocol {request.protocol}"
    seeds = f"n = {readings.seeds} seed{'' if readings.seeds == 1 else 's'}"
    if readings.has_gaps(tables):
        seeds += ", fewer where values are missing"
    figure = Figure(figsize=INCHES)
    figure.text(0.02, 0.955, title, fontsize=10)
    figure.text(0.02, 0.92, f"{where}, {seeds}", fontsize=8, color="0.3")
    return figure

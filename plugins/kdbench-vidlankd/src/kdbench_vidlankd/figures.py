"""Figures of a run: the probes of every arm, tokens and frames, retrieval, what distillation costs, and its weights.

What the run did not measure is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdbench.report.grids import data_name
from kdbench.report.svg import INCHES, reach, style, svg
from kdbench.result import Reproduction
from kdbench.verdict import Summary, summarise
from kdbench_vidlankd._names import FONT, Box, beside
from kdbench_vidlankd.probes import PROBES
from kdbench_vidlankd.readings import Cost, Picture, Readings, Seeds, grouped
from kdbench_vidlankd.recipes import WEIGHTS
from kdbench_vidlankd.retrieval import RANKS
from kdbench_vidlankd.world import ATTRIBUTES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

INK = "#3b528b"
GREEN = "#35a27f"
FAINT = "0.6"
BAND = "#dde3f0"
BARS: dict[str, Any] = {"elinewidth": 1, "capsize": 2}
LOOKS: dict[str, dict[str, Any]] = {
    "text alone": {"marker": "o", "markerfacecolor": "white", "color": GREEN, "markersize": 4.5},
    "mismatched video": {"marker": "D", "markerfacecolor": "white", "color": FAINT, "markersize": 4},
    "core": {"marker": "s", "color": INK, "markersize": 4},
    "objectives": {"marker": "o", "color": "#8496c8", "markersize": 4},
    "teachers": {"marker": "^", "color": "#b5679a", "markersize": 4.5},
    "controls": {"marker": "v", "color": "#c48a2f", "markersize": 4.5},
    "others": {"marker": "x", "color": "0.3", "markersize": 4},
}
BEHIND: dict[str, Any] = {"facecolor": "white", "linewidth": 0, "pad": 0.6, "alpha": 0.7}  # lines run behind words
CHANCE: dict[str, Any] = {"color": "0.35", "linewidth": 1.0, "linestyle": ":", "zorder": 0.7}
TEACHER: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": "--", "alpha": 0.7, "zorder": 0.6}


def figures(result: Reproduction) -> dict[str, str]:
    """SVG texts by name."""
    readings = Readings(result)
    draws = {
        "probes": _probes,
        "grounding": _grounding,
        "retrieval": _retrieval,
        "harm": _harm,
        "weights": _weights,
    }
    drawn: dict[str, str] = {}
    with style("kdbench-vidlankd"):
        for name, draw in draws.items():
            if (figure := draw(readings)) is not None:
                drawn[name] = svg(figure)
    return drawn


# ------------------------------------------------------------------------------------------------------------- probes


def _probes(readings: Readings) -> Figure | None:
    """What every arm knows of unspoken nouns, by probe, beside chance and what the video teacher knows."""
    groups = grouped(readings.rows("probe", list(PROBES)))
    columns = [column for column in PROBES if any(readings.rows("probe", (column,)))]
    if not groups:
        return None
    title = "What students know of nouns that no text describes: mean and 95 % t interval over seeds"
    figure = _canvas(title, readings, ("probe", "teacher"))
    space: dict[str, Any] = {"left": 0.2, "right": 0.985, "bottom": 0.125, "top": 0.785, "wspace": 0.1}
    panels = list(figure.subplots(1, len(columns), sharey=True, squeeze=False, gridspec_kw=space).flat)
    few = {arm: _few(readings, arm, columns) for arms in groups.values() for arm in arms}
    places = _name_rows(panels[0], groups, few)
    for axes, column in zip(panels, columns, strict=True):
        _draw_limits(axes, readings, column)
        for arm, place in places.items():
            _dot(axes, place, readings.summary("probe", arm, column), LOOKS[_kind(arm)])
        _name_panel(axes, column)
    figure.text(0.5925, 0.06, "accuracy on unspoken test nouns, %", ha="center", fontsize=8)
    looks, labels = [CHANCE], ["chance"]
    if "video" in readings.rows("teacher", columns):
        looks += [TEACHER, {"color": BAND, "linewidth": 6}]
        labels += ["mean of the video teacher", "its interval"]
    _name_looks(figure, looks, labels)
    note = "masked: the likeliest of the words that may stand in its place. Intervals end at the edges of the panels."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _name_panel(axes: Axes, column: str) -> None:
    axes.set(xlim=(-4, 104), xticks=(0, 50, 100))
    axes.tick_params(axis="x", labelsize=7)
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")  # panels stand close
    last.set_horizontalalignment("right")
    axes.set_title(column.replace("-", "-\n"), loc="left", fontsize=8, pad=13)
    how = "probe" if column in ATTRIBUTES else "masked"
    axes.text(0.0, 1.012, how, transform=axes.transAxes, fontsize=6.5, color="0.3")


def _draw_limits(axes: Axes, readings: Readings, column: str) -> None:
    """Chance, and the teacher's mean with its interval."""
    chance, teacher = readings.summary("probe", "chance", column), readings.summary("teacher", "video", column)
    if teacher.low is not None and teacher.high is not None:
        axes.axvspan(teacher.low, teacher.high, color=BAND, linewidth=0, zorder=0)
    for summary, look in ((teacher, TEACHER), (chance, CHANCE)):
        if summary.mean is not None:
            axes.axvline(summary.mean, **look)


def _name_rows(axes: Axes, groups: Mapping[str, Sequence[str]], few: Mapping[str, str]) -> dict[str, int]:
    """Places of the arms from the top; each group stands under its name, a single one has none."""
    names: list[str] = []
    places: dict[str, int] = {}
    heads: list[int] = []
    for group, arms in groups.items():
        if len(groups) > 1:
            heads.append(len(names))
            names.append(group)
        for arm in arms:
            places[arm] = len(names)
            names.append(arm + few[arm])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=8 if len(names) < 20 else 7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for each in axes.figure.axes:
        each.hlines(list(places.values()), -4, 104, color="0.93", linewidth=0.8, zorder=0.1)
        each.tick_params(axis="y", length=0, labelleft=each is axes)
    for head in heads:
        axes.get_yticklabels()[head].set_fontweight("bold")
    return places


def _few(readings: Readings, arm: str, columns: Sequence[str]) -> str:
    """Seeds of the column that has the fewest, where those are not all."""
    count, _ = readings.seeds(("probe",))
    fewest = min(len(values) for column in columns if (values := readings.values("probe", arm, column)))
    return "" if fewest == count else f" (n = {fewest})"


def _kind(arm: str) -> str:
    """By which of the looks an arm is drawn."""
    if arm == "text":
        return "text alone"
    return "mismatched video" if arm.endswith("-mismatched") else next(iter(grouped((arm,))))


def _dot(axes: Axes, row: float, summary: Summary, look: dict[str, Any]) -> None:
    """A mean with its interval; nothing where there is no mean."""
    if summary.mean is not None:
        below, above = reach(summary)
        axes.errorbar([summary.mean], [row], xerr=[[below], [above]], linestyle="", **look, **BARS)


# ------------------------------------------------------------------------------------------------------------- pictures


def _grounding(readings: Readings) -> Figure | None:
    """How alike each word of a sentence and each frame of a clip are."""
    pictures = readings.pictures()
    if not pictures:
        return None
    title = "Words of a sentence about an unspoken noun and frames of a held-out clip of it"
    figure = _canvas(title, readings, (), seeds=sorted({picture.seed for picture in pictures.values()}))
    space: dict[str, Any] = {"left": 0.1, "right": 0.875, "bottom": 0.13, "top": 0.82, "wspace": 0.3}
    panels = list(figure.subplots(1, len(pictures), squeeze=False, gridspec_kw=space).flat)
    bound = max(abs(value) for picture in pictures.values() for row in picture.cosines for value in row) or 1.0
    for axes, (arm, picture) in zip(panels, pictures.items(), strict=True):
        mesh = _draw_picture(axes, picture, bound)
        axes.set_title(f"tokens of {arm}", loc="left", fontsize=8.5, pad=14)
    bar = figure.colorbar(mesh, cax=figure.add_axes((0.905, 0.13, 0.018, 0.69)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)
    bar.ax.set_title("cosine", fontsize=8, loc="left")
    note = "Of a frame: the video tower's output there, in place of its mean over time. Of a student: through its head."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_picture(axes: Axes, picture: Picture, bound: float) -> Any:
    mesh = axes.pcolormesh(picture.cosines, cmap="RdBu", vmin=-bound, vmax=bound, edgecolors="white", linewidth=0.5)
    frames = len(picture.cosines[0])
    axes.set_yticks([place + 0.5 for place in range(len(picture.words))], picture.words, fontsize=8)
    axes.set_xticks([place + 0.5 for place in range(frames)], [str(place + 1) for place in range(frames)], fontsize=7.5)
    for event, place in picture.events.items():
        axes.text(place + 0.5, -0.1, event, fontsize=6.5, ha="center", va="bottom")
    axes.set_ylim(len(picture.words), 0)
    axes.set_xlabel("frame")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def _retrieval(readings: Readings) -> Figure | None:
    """How often a noun's tokens find one of its clips among the first, beside chance."""
    columns = [f"recall{rank}" for rank in RANKS]
    arms = readings.rows("retrieval", columns)
    if not arms:
        return None
    title = "Unspoken test nouns that find a clip of theirs: mean, 95 % t interval, single seeds in grey"
    figure = _canvas(title, readings, ("retrieval",))
    axes = figure.add_axes((0.1, 0.13, 0.87, 0.7))
    looks = [LOOKS["core"], LOOKS["controls"], *[LOOKS["others"]] * len(arms)][: len(arms)]
    step = 0.8 / (len(arms) + 1)
    for place, column in enumerate(columns):
        chance = readings.summary("retrieval", "chance", column).mean
        if chance is not None:
            axes.hlines([chance], place - 0.4, place + 0.4, **CHANCE)
            axes.text(place + 0.41, chance, f"{chance:.1f}", fontsize=7.5, color="0.35", va="center")
        for number, (arm, look) in enumerate(zip(arms, looks, strict=True)):
            _draw_column(axes, place - 0.4 + step * (number + 1), readings.values("retrieval", arm, column), look)
    axes.set(xlim=(-0.55, len(columns) - 0.35), ylim=(-3, 103), ylabel="share of nouns, %")
    axes.set_xticks(range(len(columns)), [f"recall@{rank}" for rank in RANKS])
    axes.tick_params(axis="x", length=0)
    _name_looks(figure, [*({**look, "linestyle": ""} for look in looks), CHANCE], [*arms, "chance"])
    note = "By cosine of the noun's state (a student's through its head) and a clip. Intervals end at the edges."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_column(axes: Axes, place: float, values: Seeds, look: dict[str, Any]) -> None:
    """Seeds left of their mean, and the mean's value right of it."""
    summary = summarise(values.values())
    if summary.mean is None:
        return
    below, above = reach(summary)
    axes.plot([place - 0.03] * len(values), list(values.values()), "o", color="0.75", markersize=2.5, zorder=1)
    axes.errorbar([place], [summary.mean], yerr=[[below], [above]], linestyle="", **look, **BARS)
    axes.text(place + 0.025, summary.mean, f"{summary.mean:.1f}", fontsize=7.5, va="center", bbox=BEHIND)


# ----------------------------------------------------------------------------------------------------- cost and weights


def _harm(readings: Readings) -> Figure | None:
    """Every arm by what it knows of colours and how well it knows text."""
    arms = readings.costs()
    if len(arms) < 2:
        return None
    figure = _canvas(
        "What colours cost in text: masked-LM loss and colour of every arm, mean and 95 % t interval",
        readings,
        ("text", "probe"),
    )
    axes = figure.add_axes((0.1, 0.135, 0.87, 0.72))
    page = _set_page(axes, arms)
    looks = {kind: LOOKS[kind] for kind in LOOKS if any(_kind(arm.arm) == kind for arm in arms)}
    for arm in arms:
        across, up = ([[end] for end in reach(each)] for each in (arm.colour, arm.loss))
        place = [_mean(arm.colour)], [_mean(arm.loss)]
        axes.errorbar(*place, linestyle="", elinewidth=0.5, ecolor="0.8", xerr=across, yerr=up, **LOOKS[_kind(arm.arm)])
    shown, labels = [{**look, "linestyle": ""} for look in looks.values()], list(looks)
    if (chance := readings.summary("probe", "chance", "colour").mean) is not None:
        axes.axvline(chance, **CHANCE)
        shown.append(CHANCE)
        labels.append("chance")
    note = "Intervals end at the edges."
    text, margin = readings.summary("text", "text", "mlm").mean, readings.harmless()
    if text is not None and margin is not None:
        axes.axhspan(text, text + margin, color="0.93", linewidth=0, zorder=0)
        shown.append({"color": "0.93", "linewidth": 6})
        labels.append("no harm")
        note = f"no harm: at most {margin:g} nats above text alone. {note}"
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    _draw_names(axes, arms, page)
    _name_looks(figure, shown, labels)
    axes.set_xlabel("accuracy of a linear probe for the colour of unspoken test nouns, %")
    axes.set_ylabel("masked-LM loss on held-out text, nats (less is better)")
    return figure


def _set_page(axes: Axes, arms: Sequence[Cost]) -> Box:
    """Limits that show all means, and of intervals what does not flatten the rest; their box in points of the page."""
    losses = [_mean(arm.loss) for arm in arms]
    span = max(losses) - min(losses) or 0.02 * max(losses) or 1.0
    ends = [(_mean(arm.loss) - below, _mean(arm.loss) + above) for arm in arms for below, above in [reach(arm.loss)]]
    low = max(min(end for end, _ in ends), min(losses) - 0.3 * span) - 0.08 * span
    high = min(max(end for _, end in ends), max(losses) + 0.3 * span) + 0.08 * span
    axes.set(xlim=(-3, 103), ylim=(low, high))
    place = axes.get_position()
    return Box(0.0, place.width * INCHES[0] * 72, 0.0, place.height * INCHES[1] * 72)


def _draw_names(axes: Axes, arms: Sequence[Cost], page: Box) -> None:
    """With a line to the point where a name had to move away."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    points = [
        (
            (_mean(arm.colour) - left) / (right - left) * page.right,
            (_mean(arm.loss) - low) / (high - low) * page.high,
        )
        for arm in arms
    ]
    names = [arm.arm if arm.loss.n == arm.colour.n else f"{arm.arm} (n = {arm.loss.n}, {arm.colour.n})" for arm in arms]
    colours = [LOOKS[_kind(arm.arm)]["color"] for arm in arms]
    for name, point, box, colour in zip(names, points, beside(names, points, page), colours, strict=True):
        end, place = box.nearest(point), ((box.left + box.right) / 2, (box.low + box.high) / 2)
        on_page: dict[str, Any] = {"transform": axes.transAxes, "color": colour}
        across, up = ([each[axis] / size for each in (point, end)] for axis, size in enumerate((page.right, page.high)))
        axes.plot(across, up, linewidth=0.5, zorder=4, **on_page)
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": FONT, "bbox": BEHIND, "zorder": 3}
        axes.text(place[0] / page.right, place[1] / page.high, name, **middle, **on_page)


def _weights(readings: Readings) -> Figure | None:
    """Colour on development nouns by the weight of each objective, and the weight that all arms have."""
    swept = readings.swept()
    if not swept:
        return None
    title = "Colour of development nouns by the weight of each objective: mean, single seeds in grey"
    figure = _canvas(title, readings, ("weights",))
    space: dict[str, Any] = {"left": 0.1, "right": 0.97, "bottom": 0.15, "top": 0.8, "wspace": 0.1}
    panels = list(figure.subplots(1, len(swept), sharey=True, squeeze=False, gridspec_kw=space).flat)
    chance = readings.summary("probe", "chance", "colour").mean
    for axes, (name, weights) in zip(panels, swept.items(), strict=True):
        if chance is not None:
            axes.axhline(chance, **CHANCE)
        chosen = float(f"{WEIGHTS.get(name, 0.0):g}")  # as rows are named
        if chosen in weights:
            axes.axvline(chosen, color=BAND, linewidth=9, zorder=0)
        _draw_sweep(axes, weights)
        axes.set_title(name, loc="left", fontsize=8.5)
    panels[0].set(ylim=(-3, 103), ylabel="accuracy of a linear probe, %")
    figure.text(0.535, 0.065, "weight beside the masked-LM loss (log scale)", ha="center")
    looks = [LOOKS["core"], {"color": BAND, "linewidth": 6}, *([] if chance is None else [CHANCE])]
    _name_looks(figure, looks, ["mean", "weight of the arms", "chance"][: len(looks)])
    note = "On 16 unspoken nouns that no claim is judged on."
    figure.text(0.02, 0.02, note, fontsize=7.5, color="0.3")
    return figure


def _draw_sweep(axes: Axes, weights: Mapping[float, Seeds]) -> None:
    from matplotlib.ticker import NullLocator

    for seed in sorted({seed for seeds in weights.values() for seed in seeds}):
        points = [(weight, seeds[seed]) for weight, seeds in weights.items() if seed in seeds]
        axes.plot(*zip(*points, strict=True), color="0.75", marker="o", markersize=2.5, linewidth=0.7, zorder=1)
    means = [_mean(summarise(seeds.values())) for seeds in weights.values()]
    axes.plot(list(weights), means, linewidth=1.2, zorder=2, **LOOKS["core"])
    axes.set_xscale("log")
    axes.set_xlim(min(weights) / 2, max(weights) * 2)
    axes.set_xticks(list(weights), [f"{weight:g}" for weight in weights], fontsize=7.5)
    axes.xaxis.set_minor_locator(NullLocator())


# -------------------------------------------------------------------------------------------------------- what all have


def _mean(summary: Summary) -> float:
    """Of what was measured, so it has one."""
    return summary.mean or 0.0


def _name_looks(figure: Figure, looks: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """What markers and colours are, in one row under the title."""
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], **{"linewidth": 1.0, **look}) for look in looks]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.008, 0.92)}
    figure.legend(shown, labels, ncols=len(labels), fontsize=8, columnspacing=1.2, handlelength=1.5, **place)


def _canvas(title: str, readings: Readings, tables: Iterable[str], *, seeds: Sequence[int] = ()) -> Figure:
    """An empty figure under its title, and under what conditions all of it was measured."""
    from matplotlib.figure import Figure

    request = readings.result.run.request
    where = f"{data_name(readings.result)}, tier {request.tier}, protocol {request.protocol}"
    count, gaps = readings.seeds(tables)
    if seeds:
        words = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    else:
        words = f"n = {count} seed{'' if count == 1 else 's'}{', fewer where values are missing' if gaps else ''}"
    figure = Figure(figsize=INCHES)
    figure.text(0.02, 0.955, title, fontsize=10)
    figure.text(0.02, 0.92, f"{where}, {words}", fontsize=8, color="0.3")
    return figure

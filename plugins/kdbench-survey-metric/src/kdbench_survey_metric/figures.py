"""Figures of a run: the score as a line in alpha, with its crossovers, and the front of size and accuracy.

One number hides both: which student is best depends on alpha, and a student off the convex front is best at none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from kdbench.report.svg import INCHES, reach, shade, style, svg
from kdbench.result import Reproduction
from kdbench_survey_metric.front import front
from kdbench_survey_metric.lines import Line, winners
from kdbench_survey_metric.measured import Accuracy, Measured, Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdbench.verdict import Summary

__all__ = ["figures"]

# Marker, its face, its colour, and the factor that draws two networks of one size side by side.
ARMS = {"plain": ("o", "white", "#35a27f", 0.95), "distilled": ("s", "#3b528b", "#3b528b", 1.05)}


class Point(NamedTuple):
    """A network of the experiment: ``size`` in percent of its teacher's, ``accuracy`` in percent over seeds."""

    name: str
    size: float
    accuracy: Summary


def figures(result: Reproduction) -> dict[str, str]:
    """SVG texts by name; what the run did not measure is not drawn."""
    with style("kdbench-survey-metric"):
        drawn = {
            "golden-score-against-alpha": _golden(result),
            "score-against-alpha": _scores(result),
            "size-accuracy-front": _front(result),
        }
        return {name: svg(figure) for name, figure in drawn.items() if figure is not None}


def _golden(result: Reproduction) -> Figure | None:
    """The four students that the survey scores; their printed scores as crosses."""
    value = {cell.cell: cell.value for table in result.run.facts.tables for cell in table.cells}
    teacher = value.get("golden/teacher/accuracy")
    lines: list[Line] = []
    printed: list[float] = []
    for cell in result.samples():
        table, name, *column = cell.split("/")
        row = [value.get(f"golden/{name}/{each}") for each in ("size", "accuracy", "DS")]
        if (table, column) == ("golden", ["DS"]) and teacher and None not in row:
            size, accuracy, score = (each or 0.0 for each in row)
            lines.append(Line(f"{name} %", size / 100, accuracy / teacher))
            printed.append(score)
    if not lines:
        return None
    figure, whole, near = _canvas("Four students of one teacher in the survey (ResNet44, CIFAR-100)")
    _draw_lines(whole, near, lines, [Line("the teacher itself", 1.0, 1.0)])
    for axes in (whole, near):
        axes.plot([0.5] * len(printed), printed, "kx", markersize=6, zorder=4, label="score as reported")
    _legend(whole, "size of the student,\n% of the teacher's")
    return figure


def _scores(result: Reproduction) -> Figure | None:
    """The distilled students of our experiment, by their means over seeds."""
    points = [point for point in _points(result) if point.name.startswith("distilled-")]
    lines = [
        Line(f"{_width(point.name)} ({point.size:.2g} %)", point.size / 100, _relative(result, point.name, point.size))
        for point in points
    ]
    if not lines:
        return None
    reference = [Line("the teacher itself", 1.0, 1.0)]
    if _scored(result, "constant"):
        reference.append(Line("constant predictor", 0.0, _relative(result, "constant", 0.0)))
    figure, whole, near = _canvas(f"Distilled students under one teacher a seed ({_conditions(result)})")
    _draw_lines(whole, near, lines, reference)
    _legend(whole, "width of the student\n(size, % of the\nteacher's parameters)")
    return figure


def _front(result: Reproduction) -> Figure | None:
    """Every network by size and accuracy, with intervals over seeds, and the step line of those no other beats."""
    points = _points(result)
    if not points:
        return None
    figure, whole, near = _canvas(f"Size and accuracy ({_conditions(result)})", pad=8)
    dataset = result.run.request.dataset
    for axes in (whole, near):
        for arm in ARMS:
            _draw_arm(axes, arm, [point for point in points if point.name.startswith(arm)])
        _draw_front(axes, _members(points))
        if (teacher := _mean(result, f"ds/{dataset}/teacher/accuracy")) is not None:
            axes.plot([100.0], [teacher], "k*", markersize=10, label="the teacher itself")
        if (constant := _mean(result, f"ds/{dataset}/constant/accuracy")) is not None:
            axes.axhline(constant, color="0.3", linestyle=":", label="constant predictor\n(no size)")
        axes.set(xscale="log", xticks=[0.1, 1, 10, 100], xticklabels=["0.1", "1", "10", "100"])
    for point in points:
        if point.name.startswith("distilled-"):
            whole.annotate(_width(point.name), (point.size, 0.03), xycoords=("data", "axes fraction"), ha="center")
    accuracies = sorted(point.accuracy.mean or 0.0 for point in points)
    highest = max(accuracies[-1], teacher or 0.0)
    room = 0.2 * (highest - accuracies[len(accuracies) // 3]) + 0.5
    whole.set(ylim=(0, 105), xlim=(0.7 * points[0].size, 150.0))
    near.set_ylim(accuracies[len(accuracies) // 3] - room, highest + room)
    near.set_xlabel("size, % of the teacher's trainable parameters (log scale)")
    figure.supylabel("test accuracy, % (mean and 95 % t interval over seeds)", fontsize=9)
    _legend(whole, None)
    return figure


def _draw_arm(axes: Axes, arm: str, points: Sequence[Point]) -> None:
    """Networks trained in one way, each with the interval of its mean."""
    marker, face, colour, beside = ARMS[arm]
    reaches = [reach(point.accuracy) for point in points]
    axes.errorbar(
        [point.size * beside for point in points],
        [point.accuracy.mean or 0.0 for point in points],
        yerr=[[below for below, _ in reaches], [above for _, above in reaches]],
        fmt=marker,
        color=colour,
        mfc=face,
        markersize=4.5,
        capsize=2.5,
        elinewidth=1,
        label=f"{arm} student",
    )


def _draw_front(axes: Axes, members: Sequence[Point]) -> None:
    """What accuracy a student of at most some size can have, as far as the teacher's size."""
    accuracies = [point.accuracy.mean or 0.0 for point in members]
    sizes = [*(point.size for point in members), 100.0]
    axes.step(sizes, [*accuracies, accuracies[-1]], where="post", color="0.65", zorder=1, label="front of the students")


def _draw_lines(whole: Axes, near: Axes, lines: Sequence[Line], reference: Sequence[Line]) -> None:
    """Students in colour, references in grey, above them who wins where; ``near`` shows the winners alone, larger."""
    ordered = sorted(lines, key=lambda line: line.size_ratio)
    by_name = {line.name: line for line in ordered}
    colours = {line.name: shade(index / max(len(ordered) - 1, 1)) for index, line in enumerate(ordered)}
    segments = winners(ordered)
    changes = [(before.high, by_name[after.winners[0]].at(before.high)) for before, after in pairwise(segments)]
    for axes in (whole, near):
        for line in ordered:
            axes.plot([0, 1], [line.at(0.0), line.at(1.0)], color=colours[line.name], label=line.name)
        for line, dashes in zip(reference, ("--", ":"), strict=False):
            axes.plot([0, 1], [line.at(0.0), line.at(1.0)], color="0.3", linestyle=dashes, label=line.name)
        for alpha, _ in changes:
            axes.axvline(alpha, color="0.85", linewidth=0.8, zorder=0)
        if changes:
            axes.plot(
                *zip(*changes, strict=True), "ko", markersize=4, zorder=5, label="winner changes\n(band: who wins)"
            )
    for segment in segments:
        colour = colours[segment.winners[0]]
        whole.axvspan(segment.low, segment.high, 1.02, 1.06, color=colour, linewidth=0, clip_on=False)
    _name_alphas(whole, [alpha for alpha, _ in changes])
    ends = [score for line in ordered for score in (line.at(0.0), line.at(1.0))]
    best = [by_name[segment.winners[0]].at(alpha) for segment in segments for alpha in (segment.low, segment.high)]
    for axes, top in ((whole, max(ends)), (near, 1.5 * max(best))):
        axes.set(xlim=(0, 1), ylim=(min(0.0, *ends), 1.1 * top))
    near.set_xlabel("alpha, weight of the size (1 - alpha: weight of the accuracy)")
    whole.figure.supylabel("distillation score DS (no unit; lower is better)", fontsize=9)


def _name_alphas(axes: Axes, alphas: Sequence[float]) -> None:
    """The alphas of the crossovers over the band of winners; close ones in a second row."""
    previous, raised = -1.0, False
    for alpha in alphas:
        raised = alpha - previous < 0.09 and not raised
        height = 1.14 if raised else 1.07
        axes.text(alpha, height, f"{alpha:.3f}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
        previous = alpha


def _points(result: Reproduction) -> list[Point]:
    """The networks of the experiment whose size and accuracy are known, from the smallest."""
    from kdbench.verdict import summarise

    samples = result.samples()
    head = f"ds/{result.run.request.dataset}"
    points = []
    for cell, values in samples.items():
        if not cell.startswith(f"{head}/") or not cell.endswith("/accuracy"):
            continue
        name = cell.split("/")[2]
        size = _mean(result, f"gain/{result.run.request.dataset}/{name}/size")
        accuracy = summarise(list(values.values()))
        if name.partition("-")[0] in ARMS and size is not None and accuracy.mean is not None:
            points.append(Point(name, size, accuracy))
    return sorted(points, key=lambda point: (point.size, point.name))


def _members(points: Sequence[Point]) -> list[Point]:
    """The networks that no other beats in both, from the smallest."""
    models = [
        Measured(name=p.name, size=Size(p.size, "parameters"), accuracy=Accuracy(p.accuracy.mean or 0.0, "percent"))
        for p in points
    ]
    by_name = {point.name: point for point in points}
    return [by_name[name] for name in front(models).members]


def _scored(result: Reproduction, row: str) -> dict[float, float]:
    """Mean score of a row by alpha."""
    found: dict[float, float] = {}
    head = f"ds/{result.run.request.dataset}/{row}/"
    for cell in result.samples():
        column = cell.removeprefix(head)
        mean = _mean(result, cell)
        if cell.startswith(head) and column.replace(".", "").isdigit() and mean is not None:
            found[float(column)] = mean
    return found


def _relative(result: Reproduction, row: str, size: float) -> float:
    """The mean of q over seeds: DS is affine in alpha, so its mean at the smallest alpha gives it."""
    alpha, score = min(_scored(result, row).items())
    return 1.0 - (score - alpha * size / 100) / (1.0 - alpha)


def _mean(result: Reproduction, cell: str) -> float | None:
    """The mean over the seeds that have a value."""
    values = [value for value in result.samples().get(cell, {}).values() if value == value]
    return fmean(values) if values else None


def _width(name: str) -> str:
    return name.partition("-")[2]


def _conditions(result: Reproduction) -> str:
    request = result.run.request
    seeds = len(request.seeds)
    return f"{result.run.data.title}, tier {request.tier}, n = {seeds} seed{'s' if seeds > 1 else ''}"


def _canvas(title: str, pad: float = 34) -> tuple[Figure, Axes, Axes]:
    """Everything above, and below it the part where the best lie close together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES)
    whole = figure.add_axes((0.1, 0.48, 0.62, 0.39))
    near = figure.add_axes((0.1, 0.105, 0.62, 0.3), sharex=whole)
    whole.tick_params(labelbottom=False)
    whole.set_title(title, loc="left", pad=pad, fontsize=10)
    near.set_title("the same, nearer to the best", loc="left", fontsize=8, color="0.3")
    return figure, whole, near


def _legend(axes: Axes, title: str | None) -> None:
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.02, 1.05), alignment="left", borderaxespad=0.0)

"""How arms of many sizes, most of them equal, are drawn so that each can be told by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench.report.svg import INCHES, reach
from kdbench.verdict import Summary
from kdbench_orthogonality.readings import Sized, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Box", "draw_front", "free"]

FONT = 7.0
LETTER = 0.62 * FONT  # width in points, on average and rounded up
BESIDE = 6.0  # points from an arm's size to each of its two means
GAP = 7.0  # points from a mean to its name
ABOVE = 5.0  # points by which names stand higher than means, so that the front does not run through them


class Box(NamedTuple):
    """A rectangle on the page, in points."""

    left: float
    right: float
    low: float
    high: float

    def meets(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


class Page:
    """Where a size in bytes and an accuracy in percent lie in the axes, in points; it sets their limits."""

    def __init__(self, axes: Axes, arms: Sequence[Sized]) -> None:
        place = axes.get_position()
        self.width, self.height = place.width * INCHES[0] * 72, place.height * INCHES[1] * 72
        accuracies = [end for arm in arms for summary in (arm.ce, arm.kd) for end in _ends(summary)]
        room = 0.04 * (max(accuracies) - min(accuracies)) or 1.0
        self.bottom, self.top = min(accuracies) - room, max(accuracies) + room
        smallest, largest = (math.log10(size) for size in (arms[0].size, arms[-1].size))
        beyond = max((largest - smallest) * 2.5 * BESIDE / (self.width - 5 * BESIDE), 0.05)
        self.left, self.right = smallest - beyond, largest + beyond
        axes.set(xscale="log", xlim=(10**self.left, 10**self.right), ylim=(self.bottom, self.top))

    def x(self, size: float) -> float:
        return (math.log10(size) - self.left) / (self.right - self.left) * self.width

    def y(self, accuracy: float) -> float:
        return (accuracy - self.bottom) / (self.top - self.bottom) * self.height

    def moved(self, size: float, points: float) -> float:
        """The size that lies so many points further right."""
        factor: float = 10 ** (points / self.width * (self.right - self.left))
        return size * factor


def draw_front(axes: Axes, arms: Sequence[Sized], plain: dict[str, Any], distilled: dict[str, Any]) -> None:
    """Both means of every arm with their intervals, both fronts, and the arms' names.

    ``arms`` begin with the smallest. The axes keep their place on the page from here on, and their limits.
    """
    page = Page(axes, arms)
    _mark_sizes(axes, arms[0].size, arms[-1].size)
    for arm in arms:
        ends = [page.moved(arm.size, -BESIDE), page.moved(arm.size, BESIDE)]
        axes.plot(ends, [_mean(arm.ce), _mean(arm.kd)], color="0.8", linewidth=0.7, zorder=1)
        for size, summary, look in zip(ends, (arm.ce, arm.kd), (plain, distilled), strict=True):
            below, above = reach(summary)
            axes.errorbar([size], [_mean(summary)], yerr=[[below], [above]], linestyle="", elinewidth=0.6, **look)
    _draw_step(axes, page, front((arm.size, _mean(arm.ce)) for arm in arms), -BESIDE, plain["color"])
    best = front((arm.size, _mean(arm.kd)) for arm in arms)
    _draw_step(axes, page, best, BESIDE, distilled["color"])
    colours = [distilled["color"] if (arm.size, _mean(arm.kd)) in best else "0.3" for arm in arms]
    _name_arms(axes, page, arms, colours)


def free(wanted: Box, taken: Sequence[Box], step: float) -> Box:
    """``wanted``, moved up or down by as few steps as it takes to meet none of ``taken``, down first."""
    moves = 0
    while True:
        for shift in (-moves * step, moves * step):
            box = wanted._replace(low=wanted.low + shift, high=wanted.high + shift)
            if not any(box.meets(other) for other in taken):
                return box
        moves += 1


def _mark_sizes(axes: Axes, smallest: float, largest: float) -> None:
    """Round sizes, or both ends where no two round ones may lie between them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    wide = largest > 5 * smallest
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0)) if wide else FixedLocator(sorted({smallest, largest}))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_step(axes: Axes, page: Page, best: Sequence[tuple[float, float]], beside: float, colour: str) -> None:
    """On to the edge: a larger network that is no better would not be chosen."""
    sizes = [*(page.moved(size, beside) for size, _ in best), 10**page.right]
    accuracies = [accuracy for _, accuracy in best]
    axes.step(sizes, [*accuracies, accuracies[-1]], where="post", color=colour, linewidth=1.0, alpha=0.6, zorder=0)


def _name_arms(axes: Axes, page: Page, arms: Sequence[Sized], colours: Sequence[str]) -> None:
    """Right of the distilled student's mean, as near as names can stand without touching each other or a mean."""
    taken = [
        Box(page.x(arm.size) + beside - 3, page.x(arm.size) + beside + 3, page.y(_mean(of)) - 3, page.y(_mean(of)) + 3)
        for arm in arms
        for of, beside in ((arm.ce, -BESIDE), (arm.kd, BESIDE))
    ]
    for index in sorted(range(len(arms)), key=lambda index: -_mean(arms[index].kd)):
        arm = arms[index]
        x, y = page.x(arm.size) + BESIDE, page.y(_mean(arm.kd))
        right = x + GAP + LETTER * len(arm.name)
        wanted = Box(x + GAP, right, y + ABOVE - 0.55 * FONT, y + ABOVE + 0.55 * FONT)
        box = free(wanted, taken, 1.0)
        taken.append(box)
        axes.annotate(
            arm.name,
            xy=(x / page.width, y / page.height),
            xytext=(box.left / page.width, (box.low + box.high) / 2 / page.height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=FONT,
            color=colours[index],
            annotation_clip=False,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.3},  # lines run behind it
            arrowprops={
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def _ends(summary: Summary) -> tuple[float, float]:
    below, above = reach(summary)
    return _mean(summary) - below, _mean(summary) + above


def _mean(summary: Summary) -> float:
    """Of an arm that was measured, so it has one."""
    return summary.mean or 0.0

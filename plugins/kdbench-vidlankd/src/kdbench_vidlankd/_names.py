"""Where names of points stand so that none touches another name or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["FONT", "POINT", "Box", "beside", "box_of"]

FONT = 7.0
LETTER = 0.62 * FONT  # width in points, on average and rounded up
HEIGHT = 1.1 * FONT
POINT = 3.0
"""Half the side of a point's box, in points of the page."""

NEAR = 12 * FONT
"""Distance of points that crowd one another."""

LONG = 10 * FONT
"""Length of a line from a point to its name that is worse than one that meets something."""

ROUNDS = 3

TURN = 16
"""Directions from a point."""

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle on the page, in points."""

    left: float
    right: float
    low: float
    high: float

    def meets(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def within(self, other: Box) -> bool:
        return (
            other.left <= self.left and self.right <= other.right and other.low <= self.low and self.high <= other.high
        )

    def nearest(self, point: Point) -> Point:
        """Of the rectangle's points."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.low), self.high)


def box_of(point: Point, half: float = POINT) -> Box:
    """What a point covers."""
    x, y = point
    return Box(x - half, x + half, y - half, y + half)


def beside(names: Sequence[str], points: Sequence[Point], page: Box) -> list[Box]:
    """A box for each name, near its point, so that boxes touch no point, no other box and, if it can be, no line.

    Of points in a crowd the names stand on its outer side, where the others are not. All are placed one after the
    other, and again when the rest stand, as the first ones know nothing of those that follow.

    Parameters
    ----------
    names : what is written.
    points : their places, in points of the page.
    page : what no box leaves. Where it has no room left, a name stands on its point.
    """
    crowds = [[other for other in points if math.dist(point, other) < NEAR] for point in points]
    outward = [_outward(point, crowd) for point, crowd in zip(points, crowds, strict=True)]
    boxes: dict[int, Box] = {}
    for _ in range(ROUNDS):
        for index in sorted(range(len(names)), key=lambda index: (len(crowds[index]), points[index], names[index])):
            taken = [box for other, box in boxes.items() if other != index]
            taken += [part for other, box in boxes.items() if other != index for part in _line(points[other], box)]
            places = _places(points[index], LETTER * len(names[index]), outward[index], page)
            boxes[index] = _first_free(points[index], places, [box_of(point) for point in points], taken)
    return [boxes[index] for index in range(len(names))]


def _first_free(point: Point, places: Iterator[Box], marks: Sequence[Box], taken: Sequence[Box]) -> Box:
    """Of the boxes that meet nothing, the first whose line meets nothing, unless it is long; else the first one."""
    own = box_of(point)
    blocking = [*(mark for mark in marks if not mark.meets(own)), *(box for box in taken if not box.meets(own))]
    first = None
    for box in places:
        if any(box.meets(other) for other in (*marks, *taken)):
            continue
        first = first or box
        if math.dist(point, box.nearest(point)) > LONG:
            break
        if not any(part.meets(other) for part in _line(point, box) for other in blocking):
            return box
    return first or own


def _outward(point: Point, crowd: Sequence[Point]) -> float:
    """Angle from the middle of its crowd, in radians; to the right where there is none."""
    across = point[0] - sum(x for x, _ in crowd) / len(crowd)
    up = point[1] - sum(y for _, y in crowd) / len(crowd)
    return math.atan2(up, across) if math.hypot(across, up) > 1e-6 else 0.0


def _line(point: Point, box: Box) -> list[Box]:
    """What the line from a point to its name covers."""
    end = box.nearest(point)
    length = math.dist(point, end)
    steps = [step / length for step in range(int(POINT) + 1, int(length), 2)]
    return [box_of((point[0] + s * (end[0] - point[0]), point[1] + s * (end[1] - point[1])), 0.5) for s in steps]


def _places(point: Point, width: float, outward: float, page: Box) -> Iterator[Box]:
    """Boxes around a point that lie on the page, the nearest first and among these those that lie outward."""
    sides = sorted(range(TURN), key=lambda side: round(1.0 - math.cos(math.tau * side / TURN - outward), 6))
    for step in range(int(math.hypot(page.right - page.left, page.high - page.low) / 2)):
        gap = 1.5 * POINT + 2 * step
        for side in sides:
            across, up = math.cos(math.tau * side / TURN), math.sin(math.tau * side / TURN)
            # From its middle at top and bottom to its end at the sides, so that the box's own edge keeps the gap.
            left = point[0] + gap * across + width * (across - 1) / 2
            middle = point[1] + gap * up + HEIGHT * up / 2
            box = Box(left, left + width, middle - HEIGHT / 2, middle + HEIGHT / 2)
            if box.within(page):
                yield box

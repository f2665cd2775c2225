"""What the figures show, read from a finished run: nothing here draws, and means of differences are all it computes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kdbench.result import Reproduction
from kdbench.verdict import Summary, summarise
from kdbench_orthogonality.interaction import CONTROLS, Interaction, interactions

__all__ = ["Place", "Readings", "Seeds", "Sized", "front"]

Seeds = dict[int, float]
"""Finite values by seed."""


class Sized(NamedTuple):
    """One arm of the factorial: bytes as stored, and its accuracy in percent without and with distillation."""

    name: str
    size: float
    ce: Summary
    kd: Summary


class Place(NamedTuple):
    """One student of the grid: its width and depth as its cell's name counts them, and its gain of distillation."""

    width: int
    depth: int
    ce: Summary
    kd: Summary
    gain: Summary


class Readings:
    """The measured values of a run, by table, row and column of their cells."""

    def __init__(self, result: Reproduction) -> None:
        self.result = result
        self.seeds = len(result.run.request.seeds)
        self._dataset = result.run.request.dataset
        self._samples = result.samples()

    def values(self, table: str, row: str, column: str) -> Seeds:
        """Without seeds that failed or diverged; empty where nothing was measured."""
        found = self._samples.get(f"{table}/{self._dataset}/{row}/{column}", {})
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def summary(self, table: str, row: str, column: str) -> Summary:
        return summarise(self.values(table, row, column).values())

    def rows(self, table: str, columns: Sequence[str]) -> list[str]:
        """Rows with a value in one of the columns, in the order of measurement."""
        head = f"{table}/{self._dataset}/"
        rows = dict.fromkeys(cell[len(head) :].rpartition("/")[0] for cell in self._samples if cell.startswith(head))
        return [row for row in rows if any(self.values(table, row, column) for column in columns)]

    def has_gaps(self, tables: Iterable[str]) -> bool:
        """Whether a measured cell of the tables lacks a seed."""
        heads = tuple(f"{table}/{self._dataset}/" for table in tables)
        return any(
            sum(map(math.isfinite, values.values())) < self.seeds
            for cell, values in self._samples.items()
            if cell.startswith(heads)
        )

    def interactions(self) -> list[Interaction]:
        """On the accuracy scale, of every technique whose gain of distillation is known."""
        measured = self.rows("accuracy", ("CE",))
        if not any(row not in CONTROLS and self.values("accuracy", row, "KD") for row in measured):
            return []
        found = interactions(self.result)
        return [each for each in found if each.scale == "accuracy" and each.under.mean is not None]

    def sized(self) -> list[Sized]:
        """Arms whose bytes and both accuracies are known, the smallest first."""
        found = []
        for name in self.rows("front", ("bytes",)):
            size, ce, kd = (
                self.summary(table, name, column)
                for table, column in (("front", "bytes"), ("accuracy", "CE"), ("accuracy", "KD"))
            )
            if size.mean and ce.mean is not None and kd.mean is not None:
                found.append(Sized(name, size.mean, ce, kd))
        return sorted(found, key=lambda arm: arm.size)

    def grid(self) -> Iterator[Place]:
        """Students of the grid that have a seed with both accuracies."""
        for name in self.rows("grid", ("CE", "KD")):
            ce, kd = (self.values("grid", name, column) for column in ("CE", "KD"))
            gain = summarise(kd[seed] - ce[seed] for seed in kd if seed in ce)
            place = re.fullmatch(r"w(\d+)-d(\d+)", name)
            if place and gain.mean is not None:
                width, depth = map(int, place.groups())
                yield Place(width, depth, summarise(ce.values()), summarise(kd.values()), gain)

    def gains_by_size(self) -> dict[int, Seeds]:
        """The gain of distillation by the number of training examples, from the fewest."""
        rows = [row for row in self.rows("augmentation", ("gain",)) if row.startswith("n") and row[1:].isdigit()]
        return {size: self.values("augmentation", f"n{size}", "gain") for size in sorted(int(row[1:]) for row in rows)}


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (size, accuracy) that no other one of at most their size equals or beats, the smallest first."""
    kept: list[tuple[float, float]] = []
    for size, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((size, accuracy))
    return kept

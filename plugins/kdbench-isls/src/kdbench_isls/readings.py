"""What the figures show, read from a finished run: nothing here draws, and nothing is computed but sums and means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kdbench.result import Reproduction
from kdbench.verdict import Summary, summarise

__all__ = ["STATISTICS", "Diagram", "Level", "Lines", "Readings", "Seeds"]

STATISTICS = ("uncertainty", "diversity", "variance")
"""Tables of what generations are like as teachers."""

STEM = "test.reliability"
"""Curves of the stage that calibrates, see :class:`kdbench_isls.stages.Calibrate`."""

Seeds = dict[int, float]
"""Finite values by seed."""

Lines = dict[str, dict[int, Seeds]]
"""By the name of a temperature and the generation."""


class Level(NamedTuple):
    """One network on one data set at one level of label noise."""

    network: str
    dataset: str
    noise: str

    def cell(self, table: str, column: str) -> str:
        return f"{table}/{self.network}/{self.dataset}/{self.noise}/{column}"


class Diagram(NamedTuple):
    """Reliability of one arm, its seeds pooled.

    ``error`` is the calibration error over seeds, percent; ``bins`` are confidence, accuracy and the share of the
    examples, each from 0 to 1, of every bin that has any.
    """

    arm: str
    error: Summary
    bins: list[tuple[float, float, float]]


class Readings:
    """The measured values of a run, by level, table and column of their cells."""

    def __init__(self, result: Reproduction) -> None:
        self.result = result
        self.seeds = len(result.run.request.seeds)
        self._samples = result.samples()

    def levels(self) -> list[Level]:
        """What the run measured, in its order."""
        found = dict.fromkeys(tuple(cell.split("/")[1:4]) for cell in self._samples if cell.count("/") == 4)
        return [Level(*level) for level in found]

    def columns(self, level: Level, table: str) -> list[str]:
        """In the order of measurement."""
        head = level.cell(table, "")
        return [cell.removeprefix(head) for cell in self._samples if cell.startswith(head)]

    def values(self, level: Level, table: str, column: str) -> Seeds:
        """Without seeds that failed or diverged; empty where nothing was measured."""
        found = self._samples.get(level.cell(table, column), {})
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def summary(self, level: Level, table: str, column: str) -> Summary:
        return summarise(self.values(level, table, column).values())

    def has_gaps(self, level: Level) -> bool:
        """Whether a cell that a figure may show lacks a seed."""
        tables = ["accuracy", "ece", *STATISTICS]
        return any(
            len(self.values(level, table, column)) < self.seeds
            for table in (*tables, *(f"{table}-by-T" for table in tables))
            for column in self.columns(level, table)
        )

    def lines(self, level: Level, table: str) -> Lines:
        """Seeds by temperature, from the coldest, and generation; lines of two measured generations or more."""
        found: dict[float, dict[int, Seeds]] = {}
        for column in self.columns(level, f"{table}-by-T"):
            temperature, generation = column.removeprefix("T").split("-g")
            found.setdefault(float(temperature), {})[int(generation)] = self.values(level, f"{table}-by-T", column)
        default = self.default_temperature(level)
        # Where it is not on file but others are, it is among them, and nobody knows which.
        if default is not None or not found:
            at = math.nan if default is None else default
            found[at] = {**found.get(at, {}), **self._at_default(level, table)}
        lines = {
            _named(temperature, default): {
                number: seeds for number, seeds in sorted(found[temperature].items()) if seeds
            }
            for temperature in sorted(found)
        }
        return {name: line for name, line in lines.items() if len(line) > 1}

    def default_temperature(self, level: Level) -> float | None:
        """That of the arms SD-g1 to SD-g3, by the record of a stage that they come from; None where none is on file."""
        cells = {level.cell("accuracy", "SD-g1"), *(level.cell(table, "g0") for table in STATISTICS)}
        for value in self.result.run.values:
            for stage in value.stages if value.cell in cells else ():
                if (record := self.result.record(stage)) is not None:
                    packed = record.spec["stage"]
                    temperature: float = packed.get("objective", packed)["temperature"]
                    return temperature
        return None

    def diagrams(self, level: Level) -> Iterator[Diagram]:
        """Of the arms all of whose seeds have their bins on file."""
        for arm in self.columns(level, "ece"):
            cell, error = level.cell("ece", arm), self.values(level, "ece", arm)
            stages = [value.stages for value in self.result.run.values if value.cell == cell and value.seed in error]
            kept = [bins for bins in (self._bins(each, arm) for each in stages) if bins is not None]
            if kept and len(kept) == len(stages):
                yield Diagram(arm, summarise(error.values()), _pooled(kept))

    def _at_default(self, level: Level, table: str) -> dict[int, Seeds]:
        """The arms of the accuracy's table, where generation 0 is the arm CE, and the teachers of the others."""
        head = "SD-g" if table == "accuracy" else "g"
        numbers = {column: column.removeprefix(head) for column in self.columns(level, table)}
        found = {int(number): self.values(level, table, c) for c, number in numbers.items() if number.isdigit()}
        return {0: self.values(level, table, "CE"), **found} if table == "accuracy" else found

    def _bins(self, stages: Sequence[str], arm: str) -> list[tuple[float, ...]] | None:
        """Of every bin of one seed the count of its examples, the sum of their confidence, and how many are correct."""
        for stage in stages:
            record = self.result.record(stage)
            if record is not None and f"{STEM}.{arm}.count" in record.curves:
                sums = (record.curves[f"{STEM}.{arm}.{name}"] for name in ("count", "confidence", "correct"))
                return list(zip(*sums, strict=True))
        return None


def _pooled(seeds: Sequence[list[tuple[float, ...]]]) -> list[tuple[float, float, float]]:
    """Confidence, accuracy and share of the bins that have any example of any seed."""
    bins = [[sum(sums) for sums in zip(*same, strict=True)] for same in zip(*seeds, strict=True)]
    total = sum(count for count, _, _ in bins)
    return [(confidence / count, correct / count, count / total) for count, confidence, correct in bins if count]


def _named(temperature: float, default: float | None) -> str:
    if math.isnan(temperature):
        return "default"
    return f"T {temperature:g}{' (default)' if temperature == default else ''}"

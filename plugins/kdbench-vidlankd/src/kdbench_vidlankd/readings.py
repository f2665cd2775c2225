"""What the figures show, read from a finished run: values by table, row and column, and arms in groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kdbench.result import Reproduction
from kdbench.verdict import Summary, summarise

__all__ = ["GROUPS", "Cost", "Picture", "Readings", "Seeds", "grouped"]

Seeds = dict[int, float]
"""Finite values by seed."""

GROUPS: dict[str, tuple[str, ...]] = {
    "core": ("text", "nst", "crd", "nst-mismatched", "crd-mismatched"),
    "objectives": (
        "soft",
        "l2",
        "nt-xent",
        "nst+crd",
        "nst-released",
        "nt-xent-released",
        "nst-headless",
        "crd-headless",
        "voken",
        "voken-many",
    ),
    "teachers": (
        "crd-mlm-only",
        "crd-contrastive-only",
        "crd-single-frame",
        "crd-frozen",
        "crd-2d",
        "crd-random",
        "nst-random",
    ),
    "controls": ("text-compute", "text+captions", "teacher", "teacher-then-text"),
}
"""Arms by what they change; within a group in this order."""

REST = "others"


class Cost(NamedTuple):
    """One arm: masked-LM loss in nats, and accuracy of the colour probe in percent."""

    arm: str
    loss: Summary
    colour: Summary


class Picture(NamedTuple):
    """Words of a sentence, and their cosines with the frames of a clip, ``[words][frames]``; ``events`` are the frames,
    from 0, in which the thing shakes and glows."""

    seed: int
    words: list[str]
    cosines: list[list[float]]
    events: dict[str, int]


class Readings:
    """The measured values of a run, by table, row and column of their cells."""

    def __init__(self, result: Reproduction) -> None:
        self.result = result
        self._dataset = result.run.request.dataset
        self._samples = result.samples()

    def values(self, table: str, row: str, column: str) -> Seeds:
        """Without seeds that failed or diverged; empty where nothing was measured."""
        found = self._samples.get(f"{table}/{self._dataset}/{row}/{column}", {})
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def summary(self, table: str, row: str, column: str) -> Summary:
        return summarise(self.values(table, row, column).values())

    def rows(self, table: str, columns: Sequence[str]) -> list[str]:
        """Rows with a value in one of the columns, in the order of measurement; chance is no row."""
        head = f"{table}/{self._dataset}/"
        rows = dict.fromkeys(cell[len(head) :].rpartition("/")[0] for cell in self._samples if cell.startswith(head))
        return [row for row in rows if row != "chance" and any(self.values(table, row, each) for each in columns)]

    def seeds(self, tables: Iterable[str]) -> tuple[int, bool]:
        """How many seeds the tables were measured with, and whether a cell of theirs lacks one."""
        heads = tuple(f"{table}/{self._dataset}/" for table in tables)
        count = len({value.seed for value in self.result.run.values if value.cell.startswith(heads)})
        found = [values.values() for cell, values in self._samples.items() if cell.startswith(heads)]
        return count, any(sum(map(math.isfinite, values)) < count for values in found)

    def costs(self) -> list[Cost]:
        """Arms whose loss and colour are both known."""
        arms = self.rows("text", ("mlm",))
        found = [Cost(arm, self.summary("text", arm, "mlm"), self.summary("probe", arm, "colour")) for arm in arms]
        return [each for each in found if each.colour.mean is not None]

    def harmless(self) -> float | None:
        """By how many nats the claim of no harm lets a loss lie above the text-only student's."""
        facts = self.result.run.facts
        return next((claim.gain_margin for claim in (*facts.claims, *facts.others) if claim.id == "no-harm"), None)

    def swept(self) -> dict[str, dict[float, Seeds]]:
        """Colour on development nouns by objective and weight, of objectives with two weights or more."""
        found: dict[str, dict[float, Seeds]] = {}
        for row in self.rows("weights", ("colour",)):
            name, _, weight = row.rpartition("@")
            found.setdefault(name, {})[float(weight)] = self.values("weights", row, "colour")
        return {name: dict(sorted(weights.items())) for name, weights in found.items() if len(weights) > 1}

    def pictures(self) -> dict[str, Picture]:
        """By arm, of its first seed whose record is there."""
        found: dict[str, Picture] = {}
        for arm in self.rows("retrieval", ("recall1", "recall5")):
            if (picture := next(self._pictures(arm), None)) is not None:
                found[arm] = picture
        return found

    def _pictures(self, arm: str) -> Iterator[Picture]:
        head = f"retrieval/{self._dataset}/{arm}/"
        values = [value for value in self.result.run.values if value.cell.startswith(head)]
        for value in sorted(values, key=lambda value: value.seed):
            for stage in value.stages:
                record = self.result.record(stage)
                kept: dict[str, Any] | None = record.notes.get("picture") if record else None
                if kept:
                    yield Picture(value.seed, kept["words"], kept["cosines"], kept.get("events", {}))


def grouped(arms: Iterable[str]) -> dict[str, list[str]]:
    """The arms by their groups, without groups that have none; those of no group come last."""
    there = list(dict.fromkeys(arms))
    found = {name: [arm for arm in members if arm in there] for name, members in GROUPS.items()}
    known = [arm for members in GROUPS.values() for arm in members]
    found[REST] = [arm for arm in there if arm not in known]
    return {name: members for name, members in found.items() if members}

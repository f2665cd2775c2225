"""What a comparison found: the JSON document of ``kdbench bench kernels``. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from kdbench.bench.contender import FLOOR, Case
from kdbench.record import Environment

__all__ = ["CaseResult", "Entry", "Machine", "Report", "Status", "Timing"]

Status = Literal["measured", "not available", "wrong", "failed"]


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a call over ``n`` rounds; a round's figure is the median of ``calls`` calls in a row."""

    n: int
    calls: int
    median: float
    minimum: float
    q1: float
    q3: float

    @classmethod
    def of(cls, rounds: Sequence[float], calls: int) -> Timing:
        """Of the figures of at least two rounds."""
        q1, median, q3 = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(n=len(rounds), calls=calls, median=median, minimum=min(rounds), q1=q1, q3=q3)


class Entry(msgspec.Struct, kw_only=True):
    """One contender in one case.

    ``loss_error`` and ``gradient_error`` are relative to float64. ``time`` is on the device, ``wall`` (GPU only) what
    a caller waits. ``peak_bytes`` (GPU only) is memory above what was there before the call. The ratios say how many
    times faster it is than eager torch and than the better form under torch.compile; ``gb_per_s`` counts 3 passes over
    the logits, ``floor_share`` compares them with the floor's.
    ``wall_x_...`` are the same ratios of the wall times.
    """

    id: str
    title: str
    status: Status
    reason: str = ""
    loss_error: float | None = None
    gradient_error: float | None = None
    time: Timing | None = None
    wall: Timing | None = None
    peak_bytes: int | None = None
    x_eager: float | None = None
    x_compile: float | None = None
    gb_per_s: float | None = None
    floor_share: float | None = None
    wall_x_eager: float | None = None
    wall_x_compile: float | None = None


class CaseResult(msgspec.Struct, kw_only=True):
    """All contenders of one case; ``problem`` says why the case was not measured at all.

    ``others`` is how many cores other processes used on average while it was timed, None where that cannot be known.
    """

    case: Case
    entries: list[Entry] = msgspec.field(default_factory=list)
    problem: str = ""
    others: float | None = None

    def compare(self) -> None:
        """Fill in what follows from the times."""
        timed = [entry for entry in self.entries if entry.time]
        medians = {entry.id: entry.time.median for entry in timed if entry.time}
        walls = {entry.id: entry.wall.median for entry in timed if entry.wall}
        for entry in timed:
            entry.gb_per_s = 3 * self.case.stream / medians[entry.id] / 1e9
            if FLOOR in medians:
                entry.floor_share = medians[FLOOR] / medians[entry.id]
            if entry.id != FLOOR:
                entry.x_eager, entry.x_compile = _times_faster(entry.id, medians)
                entry.wall_x_eager, entry.wall_x_compile = _times_faster(entry.id, walls)

    def entry(self, name: str) -> Entry | None:
        """The entry of a contender."""
        return next((entry for entry in self.entries if entry.id == name), None)


def _times_faster(name: str, medians: dict[str, float]) -> tuple[float | None, float | None]:
    """Than eager torch's textbook form, and than the better form under torch.compile."""
    if name not in medians:
        return None, None
    eager = medians.get("eager")
    compiled = min((medians[form] for form in ("compile", "compile-log") if form in medians), default=None)
    return eager and eager / medians[name], compiled and compiled / medians[name]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured, beyond what every record says."""

    environment: Environment
    instruction_set: str | None  # of kdbench's CPU kernels; None: they were not built
    torch_instruction_set: str
    compiler: str
    gpu: dict[str, str]  # empty on the CPU
    libraries: dict[str, str]  # versions of what contenders need
    huge_pages: str
    allocator: dict[str, str]  # environment variables that change how memory is given out
    load: float  # average number of other processes that wanted to run, in the minute before


class Report(msgspec.Struct, kw_only=True):
    """One call of ``kdbench bench kernels``; ``finished`` is False while cases are missing."""

    date: str
    seconds_per_case: float
    machine: Machine
    method: list[str]
    cases: list[CaseResult] = msgspec.field(default_factory=list)
    finished: bool = False
    schema: int = 1

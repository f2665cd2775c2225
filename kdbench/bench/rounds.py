"""Interleaved rounds: all subjects of a case take turns, so that whatever disturbs the machine disturbs them all."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kdbench.bench.clock import Clock, Subject
from kdbench.bench.outcome import Timing

__all__ = ["FEWEST", "METHOD", "Timings", "interleave"]

FEWEST = 5  # rounds, however long they take
MOST = 5000  # rounds, however short
TURN = 0.001  # seconds that a subject's turn should take at least, in calls of the same subject in a row
CALLS = 50  # most calls of a turn
WARM_UP = 3  # calls, or as many as fit into a second

_WARMING = 0.1  # of the progress

METHOD = (
    "rounds: in each every contender has a turn, in an order that rotates and, every other round, is reversed; at "
    f"least {FEWEST} rounds, then more until the time of the case is spent; a turn is up to {CALLS} calls in a row "
    f"({1000 * TURN:g} ms of them) and counts as their median; before the first round up to {WARM_UP} calls that do "
    "not count; Python's garbage collector is off"
)


class Timings(NamedTuple):
    """Of one subject: on the device, and as the caller waits (GPU only)."""

    time: Timing
    wall: Timing | None


def interleave(
    subjects: Mapping[str, Subject], clock: Clock, seconds: float, tell: Callable[[str, float], None]
) -> dict[str, Timings]:
    """Time the subjects against each other.

    Parameters
    ----------
    subjects : by name; each must have been called before (compilers have compiled).
    clock : of the device.
    seconds : after which no further round begins, once :data:`FEWEST` are done.
    tell : is given a word and how much of the whole is done, in [0, 1].
    """
    calls = {}
    for index, (name, subject) in enumerate(subjects.items()):
        tell(f"warming up {name}", _WARMING * index / len(subjects))
        calls[name] = _calls_of_a_turn(subject, clock)
    device: dict[str, list[float]] = {name: [] for name in subjects}
    wall: dict[str, list[float]] = {name: [] for name in subjects}
    with _no_collector():
        start = time.perf_counter()
        for number in range(MOST):
            spent = time.perf_counter() - start
            if number >= FEWEST and spent >= seconds:
                break
            done = min(1.0, number / FEWEST, spent / seconds)
            tell(f"round {number + 1}", _WARMING + (1 - _WARMING) * done)
            for name in _order(list(subjects), number):
                samples = [clock.sample(subjects[name]) for _ in range(calls[name])]
                device[name].append(statistics.median(sample.seconds for sample in samples))
                waits = [sample.wall for sample in samples if sample.wall is not None]
                if waits:
                    wall[name].append(statistics.median(waits))
    return {
        name: Timings(Timing.of(device[name], calls[name]), Timing.of(wall[name], calls[name]) if wall[name] else None)
        for name in subjects
    }


def _calls_of_a_turn(subject: Subject, clock: Clock) -> int:
    """Warm up, and see how many calls a turn needs."""
    fastest, spent = float("inf"), 0.0
    for _ in range(WARM_UP):
        sample = clock.sample(subject)
        fastest = min(fastest, sample.seconds)
        spent += sample.seconds
        if spent > 1.0:
            break
    return max(1, min(CALLS, round(TURN / fastest)))


def _order(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

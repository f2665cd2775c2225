"""Rounds on a clock that a test can read: who is called when, and what is made of the times."""

from __future__ import annotations

import gc

import pytest

from kdbench.bench import rounds
from kdbench.bench.clock import Sample, Subject
from kdbench.bench.rounds import interleave


class Named:
    """A subject that takes a known time."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def prepare(self) -> None: ...

    def call(self) -> None:
        self.log.append(self.name)


class Believing:
    """A clock that says what the subject says."""

    method = "none"

    def __init__(self, wall: bool) -> None:
        self.wall = wall

    def ready(self, subject: Subject) -> None: ...

    def now(self) -> float:
        return 0.0

    def sample(self, subject: Subject) -> Sample:
        subject.call()
        assert isinstance(subject, Named)
        return Sample(subject.seconds, 2 * subject.seconds if self.wall else None)


def run(seconds: float, wall: bool = False, **times: float) -> tuple[dict[str, rounds.Timings], list[str]]:
    log: list[str] = []
    subjects = {name: Named(name, time, log) for name, time in times.items()}
    return interleave(subjects, Believing(wall), seconds, lambda doing, share: None), log


def test_slow_subjects_take_turns_in_an_order_that_rotates() -> None:
    found, log = run(1e-9, a=2.0, b=2.0, c=2.0)
    assert log[:3] == ["a", "b", "c"]  # one second of warm-up is one call of two
    turns = ["".join(log[start : start + 3]) for start in range(3, len(log), 3)]
    assert turns == ["abc", "acb", "cab", "cba", "bca"]
    assert {timing.time.n for timing in found.values()} == {rounds.FEWEST}
    assert {timing.time.calls for timing in found.values()} == {1}


def test_fast_subjects_are_called_until_a_turn_is_long_enough() -> None:
    found, log = run(1e-9, slow=0.5, fast=0.0001, instant=1e-9)
    assert [timing.time.calls for timing in found.values()] == [1, 10, rounds.CALLS]
    assert log.count("fast") == rounds.WARM_UP + 10 * rounds.FEWEST


def test_times_are_the_clocks() -> None:
    timing = run(1e-9, wall=True, a=0.25)[0]["a"]
    assert (timing.time.median, timing.time.minimum, timing.time.q1, timing.time.q3) == (0.25, 0.25, 0.25, 0.25)
    assert timing.wall is not None
    assert timing.wall.median == 0.5
    assert run(1e-9, a=0.25)[0]["a"].wall is None


def test_rounds_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    # The host's time, too, moves only with the calls: one second each.
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: float(len(log)))
    subject = Named("a", 1.0, log)
    assert interleave({"a": subject}, Believing(False), 8.5, lambda *said: None)["a"].time.n == 9
    assert interleave({"a": subject}, Believing(False), 1.5, lambda *said: None)["a"].time.n == rounds.FEWEST
    monkeypatch.setattr(rounds, "MOST", 7)
    assert interleave({"a": subject}, Believing(False), 8.5, lambda *said: None)["a"].time.n == 7


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_in_the_rounds_and_then_as_it_was(enabled: bool) -> None:
    seen: list[bool] = []

    class Watching(Named):
        def call(self) -> None:
            seen.append(gc.isenabled())

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        interleave({"a": Watching("a", 2.0, [])}, Believing(False), 1e-9, lambda *said: None)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [enabled] + [False] * rounds.FEWEST  # the first is the warm-up


def test_progress_ends_where_the_work_does() -> None:
    told: list[tuple[str, float]] = []
    interleave({"a": Named("a", 1.0, [])}, Believing(False), 1e-9, lambda *said: told.append(said))
    assert told[0] == ("warming up a", 0.0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][0] == f"round {rounds.FEWEST}"

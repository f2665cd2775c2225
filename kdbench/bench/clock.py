"""How long a call takes, by the clock of its device. Imports torch; load it lazily."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import torch

__all__ = ["Clock", "Sample", "Subject", "clock_of"]


class Subject(Protocol):
    """Something to time: ``prepare`` comes before every call and is not counted."""

    def prepare(self) -> None: ...

    def call(self) -> None: ...


class Sample(NamedTuple):
    """One call: seconds on the device, and on a GPU also seconds until the host could go on (None on the CPU)."""

    seconds: float
    wall: float | None


class Clock(Protocol):
    """``method`` says in a sentence how it measures."""

    method: str

    def ready(self, subject: Subject) -> None:
        """What comes before a call and is not counted."""
        ...

    def sample(self, subject: Subject) -> Sample:
        """Make ready, and time one call."""
        ...

    def now(self) -> float:
        """Seconds of the device's time, once it has done all that it was given: a timer for other harnesses."""
        ...


def clock_of(device: str) -> Clock:
    """The clock of ``cpu`` or ``cuda``."""
    return _Host() if device == "cpu" else _Events(device)


class _Host:
    method = "the host's clock around each call; caches are as the contender before left them"

    def ready(self, subject: Subject) -> None:
        subject.prepare()

    def sample(self, subject: Subject) -> Sample:
        subject.prepare()
        start = time.perf_counter()
        subject.call()
        return Sample(time.perf_counter() - start, None)

    def now(self) -> float:
        return time.perf_counter()


class _Events:
    """CUDA events for the time on the device, and a second call by the host's clock for the time that a caller sees."""

    def __init__(self, device: str) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # Read, not written: lines that the cache still has to write back would be charged to the call that follows.
        self.flush = torch.ones(max(cache, 1 << 24), dtype=torch.int32, device=device)
        self.total = torch.zeros((), dtype=torch.int64, device=device)
        self.last, self.seconds = self._event(), 0.0
        self.method = (
            "CUDA events around each call, queued behind the reading of a buffer "
            f"{self.flush.nbytes / 2**20:.0f} MiB long (the L2 cache has {cache / 2**20:.0f}), so that no input is "
            "cached; 'wall' is another call by the host's clock, from an idle device to an idle device"
        )

    def ready(self, subject: Subject) -> None:
        subject.prepare()
        torch.sum(self.flush, dim=0, out=self.total)

    def sample(self, subject: Subject) -> Sample:
        self.ready(subject)
        start = self._event()
        subject.call()
        end = self._event()
        end.synchronize()
        self.ready(subject)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        subject.call()
        torch.cuda.synchronize()
        return Sample(start.elapsed_time(end) / 1000, time.perf_counter() - begun)

    def now(self) -> float:
        # From one event to the next: events tell 24 bits of the time between them, too few for half a microsecond in a
        # minute.
        event = self._event()
        event.synchronize()
        self.seconds += self.last.elapsed_time(event) / 1000
        self.last = event
        return self.seconds

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

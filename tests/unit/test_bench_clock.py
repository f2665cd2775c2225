"""Both clocks: the host's, and that of CUDA events on a device that only pretends."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from kdbench.bench import clock as module
from kdbench.bench.clock import clock_of


class Slow:
    """Takes its time before the call, and less of it in the call."""

    def prepare(self) -> None:
        time.sleep(0.05)

    def call(self) -> None:
        time.sleep(0.001)


def test_the_hosts_clock_times_the_call_and_not_what_comes_before() -> None:
    clock = clock_of("cpu")
    before = clock.now()
    sample = clock.sample(Slow())
    assert 0.001 <= sample.seconds <= clock.now() - before - 0.05
    assert sample.wall is None


class Device:
    """A device whose time moves only when something runs on it, in milliseconds."""

    now = 0.0
    waits = 0


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = Device.now

    def synchronize(self) -> None:
        Device.waits += 1

    def elapsed_time(self, later: Event) -> float:
        return later.time - self.time


class Work:
    """Runs for 3 ms; making it ready takes 40."""

    calls = 0

    def prepare(self) -> None:
        Device.now += 40.0

    def call(self) -> None:
        Device.now += 3.0
        self.calls += 1


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> module.Clock:
    monkeypatch.setattr(Device, "now", 0.0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(Device, "waits", Device.waits + 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 20))
    return module._Events("cpu")  # the buffers that a GPU would have


def test_events_stand_around_the_call(events: module.Clock) -> None:
    work = Work()
    sample = events.sample(work)
    assert sample.seconds == pytest.approx(0.003)
    assert sample.wall is not None
    assert 0 < sample.wall < 1
    assert work.calls == 2
    assert Device.waits >= 3  # the events' end, an idle device, and the second call's end


def test_the_timer_adds_up_what_lies_between_events(events: module.Clock) -> None:
    first = events.now()
    for _ in range(4):
        Device.now += 250.0
        events.now()
    assert events.now() - first == pytest.approx(1.0)


def test_the_method_names_the_buffer_and_the_cache(events: module.Clock) -> None:
    assert "64 MiB long (the L2 cache has 1)" in events.method

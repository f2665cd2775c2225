"""What a stage leaves behind: metrics, curves, environment and the hashes of its files."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Environment", "Outcome", "Record"]


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a number was made: versions, hardware, threads, and which implementation of the loss made it."""

    kdbench: str
    commit: str
    code: str
    python: str
    torch: str
    numpy: str
    platform: str
    processor: str
    cores: int
    threads: int
    device: str
    ops: str


class Outcome(msgspec.Struct, kw_only=True):
    """What a stage's ``run`` returns.

    ``metrics`` are final numbers (``split.metric``, accuracies in percent, divergences and entropies in nats);
    ``curves`` one value an epoch; ``notes`` what else identifies the result (the network, the schedule as run).
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]] = msgspec.field(default_factory=dict)
    notes: dict[str, Any] = msgspec.field(default_factory=dict)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``record.json``: written last and atomically, so a stage with a record is a finished stage."""

    hash: str
    label: str
    spec: dict[str, Any]
    metrics: dict[str, float]
    curves: dict[str, list[float]]
    notes: dict[str, Any]
    files: dict[str, str]
    environment: Environment
    seconds: float
    finished: str
    schema: int = 1

    def content(self) -> dict[str, Any]:
        """The record without its timings: equal bit for bit whenever seed, machine and thread count are."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        del data["seconds"], data["finished"]
        return data

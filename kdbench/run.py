"""The driver: takes a plan through an executor, keeps every record, and carries on when a stage fails."""

from __future__ import annotations

import heapq
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, wait
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Protocol

import msgspec

from kdbench.errors import KdbenchError, StageError
from kdbench.executors import Executor
from kdbench.plan import Plan, cost_key
from kdbench.record import Record
from kdbench.stage import Spec
from kdbench.store import Store

__all__ = ["Failure", "Listener", "Results", "drive"]

POLL = 0.25  # seconds between two looks at the progress of running stages


class Failure(msgspec.Struct, frozen=True):
    """A stage that did not finish, and why. ``skipped`` counts the stages that needed it."""

    hash: str
    label: str
    cause: str
    trace: str
    skipped: int


class Results(msgspec.Struct):
    """What a run leaves in memory: records by hash, which of them were there before, and failures."""

    records: dict[str, Record]
    reused: set[str]
    failures: list[Failure]


class Listener(Protocol):
    """Whoever watches a run; every method may do nothing."""

    def begin(self, plan: Plan, todo: list[str], seconds: dict[str, float], workers: int) -> None: ...
    def started(self, spec: Spec, folder: Path) -> None: ...
    def finished(self, spec: Spec, seconds: float) -> None: ...
    def failed(self, spec: Spec, failure: Failure) -> None: ...
    def tick(self) -> None: ...


def drive(plan: Plan, store: Store, executor: Executor | None, listener: Listener) -> Results:
    """Run every stage of ``plan`` that has no record yet.

    Stages whose longest chain of work is longest go first, so that the clock ends near work / workers. Nothing that
    failed is kept; stages that need a failed one are skipped, all others run.

    Parameters
    ----------
    executor : may be None when nothing is left to do.
    """
    results = Results(records={}, reused=set(), failures=[])
    for key in plan.specs:
        record = store.record(key)
        if record is not None:
            results.records[key] = record
            results.reused.add(key)
    todo = [key for key in plan.specs if key not in results.records]
    if not todo:
        return results
    assert executor is not None, "there is work to do"
    price = plan.price(store)
    listener.begin(plan, todo, price.seconds, executor.slots)
    _Drive(plan, store, executor, listener, results, price.critical).go(todo)
    return results


class _Drive:
    """State of one drive: a graph sorter that knows what is ready, a heap that knows what is urgent."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        executor: Executor,
        listener: Listener,
        results: Results,
        critical: dict[str, float],
    ) -> None:
        self.plan = plan
        self.store = store
        self.executor = executor
        self.listener = listener
        self.results = results
        self.critical = critical
        self.broken: dict[str, str] = {}  # stages that cannot run, by the failed stage they hang on

    def go(self, todo: list[str]) -> None:
        left = set(todo)
        sorter = TopologicalSorter({key: [p for p in self.plan.inputs[key] if p in left] for key in todo})
        sorter.prepare()
        heap: list[tuple[float, str]] = []
        running: dict[Future[None], str] = {}
        while sorter.is_active():
            for key in sorter.get_ready():
                heapq.heappush(heap, (-self.critical[key], key))
            while heap and len(running) < self.executor.slots:
                _, key = heapq.heappop(heap)
                if self._skip(key):
                    sorter.done(key)
                    for ready in sorter.get_ready():
                        heapq.heappush(heap, (-self.critical[ready], ready))
                    continue
                running[self._submit(key)] = key
            if running:
                done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    self._settle(key, future)
                    sorter.done(key)
                self.listener.tick()

    def _skip(self, key: str) -> bool:
        cause = next((self.broken[parent] for parent in self.plan.inputs[key] if parent in self.broken), None)
        if cause is not None:
            self.broken[key] = cause
        return cause is not None

    def _submit(self, key: str) -> Future[None]:
        spec = self.plan.specs[key]
        folder = self.store.prepare(spec)
        self.listener.started(spec, folder)
        try:
            return self.executor.submit(folder)
        except Exception as error:  # a third party's executor: one stage's failure, not the run's
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed

    def _settle(self, key: str, future: Future[None]) -> None:
        spec = self.plan.specs[key]
        error = future.exception()
        record = self.store.record(key) if error is None else None
        if record is not None:
            self.results.records[key] = record
            self.store.note_timing(cost_key(spec), record.seconds)
            self.listener.finished(spec, record.seconds)
            return
        error = error or StageError("the executor reported success but left no record")
        self.broken[key] = key
        failure = Failure(
            hash=key,
            label=spec.label,
            cause=str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}",
            trace=getattr(error, "trace", "") or "".join(traceback.format_exception(error)),
            skipped=self._dependants(key),
        )
        self.results.failures.append(failure)
        self.listener.failed(spec, failure)

    def _dependants(self, key: str) -> int:
        hit = {key}
        for other in self.plan.specs:  # in topological order
            if hit.intersection(self.plan.inputs[other]):
                hit.add(other)
        return len(hit) - 1

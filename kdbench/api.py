"""The Python face: ``kdbench.reproduce("takd")`` does what ``kdbench reproduce takd`` does and returns its result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import msgspec

from kdbench.code import modules_of
from kdbench.component import load_object
from kdbench.data import DataRef, Progress, default_cache
from kdbench.environment import environment
from kdbench.errors import KdbenchError, unknown
from kdbench.metric import MetricUsed, Score, score, subjects
from kdbench.paper import PROTOCOLS, TIERS, Paper
from kdbench.plan import Plan, build_plan
from kdbench.plugins import registry
from kdbench.result import (
    DataUsed,
    FailureLine,
    Reproduction,
    Request,
    RunFile,
    StageLine,
    Value,
    facts_of,
    write_run,
)
from kdbench.run import Failure, Listener, Results, drive
from kdbench.store import Store, default_store
from kdbench.study import Lab

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdbench.executors import Executor

__all__ = ["Silent", "prepare", "reproduce"]

DEFAULT_SEEDS = {"smoke": 1, "laptop": 5, "full": 5}
DEVICES = ("auto", "cpu", "cuda")


class Options(TypedDict, total=False):
    """What :func:`reproduce` takes beside the paper; defaults and meaning stand there."""

    tier: str
    dataset: str | None
    data_dir: str | Path | None
    protocol: str
    seeds: int | Sequence[int] | None
    device: str
    workers: int | None
    threads: int
    claims: str
    store: str | Path | None
    executor: str
    progress: Progress | None


class Silent:
    """A listener that says nothing."""

    def begin(self, plan: object, todo: object, seconds: object, workers: int) -> None: ...
    def started(self, spec: object, folder: Path) -> None: ...
    def finished(self, spec: object, seconds: float) -> None: ...
    def failed(self, spec: object, failure: object) -> None: ...
    def tick(self) -> None: ...


class Prepared(msgspec.Struct):
    """A request that was checked, its data and its plan: everything but the work."""

    paper: Paper
    request: Request
    plan: Plan
    store: Store


def prepare(
    paper: str,
    *,
    tier: str = "laptop",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    protocol: str = "clean",
    seeds: int | Sequence[int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    threads: int = 1,
    claims: str = "core",
    store: str | Path | None = None,
    executor: str = "local",
    fetch: bool = True,
    progress: Progress | None = None,
) -> Prepared:
    """Check a request and build its plan; trains nothing. Parameters as in :func:`reproduce`.

    Parameters
    ----------
    fetch : download data that is not here yet. False plans with the published sizes instead.
    """
    facts = registry().paper(paper)
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    readings = [reading.id for reading in facts.protocols]
    if protocol not in readings:
        raise KdbenchError(f"'{paper}' has no reading '{protocol}'", cure=f"its readings: {', '.join(readings)}")
    dataset = dataset or facts.default_dataset[tier]
    registry().dataset(dataset)
    if dataset not in facts.datasets:
        raise KdbenchError(f"'{paper}' has no study on '{dataset}'", cure=f"its data sets: {', '.join(facts.datasets)}")
    registry().executor(executor)
    device = _device(device, tier)
    request = Request(
        paper=facts.id,
        tier=tier,
        dataset=dataset,
        protocol=protocol,
        seeds=_seeds(seeds, tier),
        claims=claims,
        device=device,
        workers=_workers(workers, threads, device),
        threads=threads,
        executor=executor,
        data_dir=None if data_dir is None else str(data_dir),
    )
    data = _locate(request, fetch, progress)
    lab = Lab(
        facts,
        tier=tier,
        protocol=protocol,
        data=data,
        seeds=request.seeds,
        networks=registry().networks,
        objectives=registry().objectives,
        device=device,
        threads=threads,
    )
    return Prepared(facts, request, build_plan(lab, claims), Store(Path(store) if store else default_store()))


def reproduce(paper: str, *, listener: Listener | None = None, **options: Unpack[Options]) -> Reproduction:
    """Train what a paper trained and judge its claims. Finished stages are reused; a killed run resumes.

    Parameters
    ----------
    paper : id of an installed paper, see ``kdbench list``.
    tier : ``smoke``, ``laptop`` or ``full``.
    dataset : a data set of the paper; by default the tier's own.
    data_dir : folder with a local copy of the data; by default it is generated or downloaded.
    protocol : ``written``, ``released`` or ``clean``.
    seeds : a count (0 ... n-1) or the seeds themselves; by default 1 at smoke, else 5.
    device : ``cpu``, ``cuda`` or ``auto`` (a GPU at tier full where there is one, else the CPU).
    workers, threads : processes, and torch threads in each; by default all cores, one thread each.
    claims : ``core``, ``all``, or ids such as ``H1,H3``.
    store : folder of finished work; by default ``$KDBENCH_STORE`` or the user's data folder.
    executor : what runs the stages, see ``kdbench plugins``.
    progress, listener : watch downloads, and stages.

    Raises
    ------
    KdbenchError : the request, the data or the store is at fault. A stage that fails does not raise: the result is
        then not :attr:`~kdbench.result.Reproduction.complete` and names it.
    """
    return carry_out(prepare(paper, **options), listener)


def carry_out(prepared: Prepared, listener: Listener | None = None) -> Reproduction:
    """Run a prepared plan in its store and write the run's file."""
    plan, request, store = prepared.plan, prepared.request, prepared.store
    started = time.perf_counter()
    with store.locked():
        run = _begin(prepared)
        folder = store.runs / run.id
        write_run(folder, run)
        todo = [key for key in plan.specs if not store.has(key)]
        executor = _executor(request, len(todo)) if todo else None
        try:
            results = drive(plan, store, executor, listener or Silent())
        except BaseException:
            run.status = "stopped"
            with contextlib.suppress(
                OSError
            ):  # what stopped the run may well be the disk: its error is the one to show
                write_run(folder, run)
            raise
        finally:
            if executor is not None:
                executor.close()
        run.status = "incomplete" if results.failures else "finished"
        run.values = tuple(_values(plan, results))
        run.stages = tuple(
            StageLine(key, spec.label, results.records[key].seconds, key in results.reused)
            for key, spec in plan.specs.items()
            if key in results.records
        )
        run.failures = tuple(_failure(plan, failure) for failure in results.failures)
        run.metrics, run.scores = _scores(plan, store, results)
        run.seconds = time.perf_counter() - started
        write_run(folder, run)
    reproduction = Reproduction(run, folder)
    reproduction.traces = {failure.hash: failure.trace for failure in results.failures}
    return reproduction


def _begin(prepared: Prepared) -> RunFile:
    request, plan, data = prepared.request, prepared.plan, prepared.plan.lab.data
    now = datetime.now(timezone.utc)
    axes = "-".join((request.paper, request.tier, request.dataset, request.protocol))
    base = run_id = f"{axes}-{now:%Y%m%d-%H%M%S}"
    number = 1
    while (prepared.store.runs / run_id).exists():
        number += 1
        run_id = f"{base}-{number}"
    code = next(iter(plan.specs.values())).code if plan.specs else ""
    return RunFile(
        id=run_id,
        status="running",
        request=request,
        facts=facts_of(prepared.paper, plan.claims, request, plan.lab.axes),
        data=DataUsed(data.title, data.fingerprint, data.official, data.note, data.sizes),
        environment=environment(device=request.device, threads=request.threads, code=code),
        started=now.isoformat(timespec="seconds"),
    )


def _values(plan: Plan, results: Results) -> list[Value]:
    values = []
    for measurement in plan.measurements:
        quantity = measurement.quantity
        stages = tuple(dict.fromkeys(node.spec.hash for node in quantity.nodes))
        known = all(key in results.records for key in stages)
        number = quantity.read(results.records) if known else None
        values.append(Value(measurement.cell, measurement.seed, quantity.name, number, stages))
    return values


def _scores(plan: Plan, store: Store, results: Results) -> tuple[tuple[MetricUsed, ...], tuple[Score, ...]]:
    """What the installed metrics say of the measured networks."""
    found = list(subjects(plan.measurements, plan.lab.data, store.stages, results.records))
    used, scores = [], []
    for metric in registry().metrics.values():
        one, values = score(metric, registry().owner("metrics", metric.id).name, found)
        used.append(one)
        scores += values
    return tuple(used), tuple(scores)


def _failure(plan: Plan, failure: Failure) -> FailureLine:
    """The failure with the plugin whose code failed: that of the stage's own components, else that of the paper."""
    known = registry()
    owner = known.owner("papers", plan.lab.paper.id)
    for module in modules_of(plan.specs[failure.hash].stage):
        info = known.at_home(module)
        if info is not None and info is not known.plugins[0]:
            owner = info
            break
    return FailureLine(failure.hash, failure.label, failure.cause, failure.skipped, owner.name)


def _executor(request: Request, todo: int) -> Executor:
    create: Callable[[int, int], Executor] = load_object(registry().executor(request.executor).create)
    return create(min(request.workers, todo), request.threads)


def _locate(request: Request, fetch: bool, progress: Progress | None) -> DataRef:
    dataset = registry().dataset(request.dataset)
    cache = default_cache()
    data_dir = None if request.data_dir is None else Path(request.data_dir)
    if dataset.embedded and data_dir is not None:
        others = [name for name in registry().paper(request.paper).datasets if not registry().dataset(name).embedded]
        raise KdbenchError(
            f"{dataset.title} is generated and takes no --data-dir",
            cure=f"name the data set that lies there: --dataset {' or '.join(others) or '...'}",
        )
    if not fetch and data_dir is None and not dataset.at_hand(cache):
        return dataset.expected()
    ref: DataRef = load_object(dataset.locate)(data_dir, cache, progress)
    return ref


def _seeds(seeds: int | Sequence[int] | None, tier: str) -> tuple[int, ...]:
    if seeds is None:
        seeds = DEFAULT_SEEDS[tier]
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise KdbenchError(
            f"seeds {seeds!r} cannot be used", cure="give a count of at least 1, or different numbers from 0 up"
        )
    return chosen


def _device(device: str, tier: str) -> str:
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cpu" or (device == "auto" and tier != "full"):
        return "cpu"  # and torch need not be imported to say so
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise KdbenchError(
            "device 'cuda' cannot be used: torch finds no GPU",
            cure="use --device cpu, or see 'kdbench doctor' for what this installation has",
        )
    return "cpu"


def _workers(workers: int | None, threads: int, device: str) -> int:
    if threads < 1 or (workers is not None and workers < 1):
        raise KdbenchError("workers and threads are counts from 1 up")
    if workers is not None:
        return workers
    return 1 if device != "cpu" else max(1, (os.cpu_count() or 1) // threads)

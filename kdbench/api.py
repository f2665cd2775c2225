"""The Python face: ``kdbench.reproduce("takd")`` does what ``kdbench reproduce takd`` does and returns its result."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import msgspec

from kdbench.blame import culprit, fault
from kdbench.component import load_object
from kdbench.data import DataRef, Progress, default_cache
from kdbench.data._download import NotFetched, offline
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
from kdbench.run import Listener, Results, drive
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
    protocol: str | None
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
    protocol: str | None = None,
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
    readings: list[str] = [reading.id for reading in facts.protocols]
    if not readings:
        raise KdbenchError(f"'{paper}' declares no protocol", cure="a fault of its facts: one [[protocols]] at least")
    protocol = protocol or ("clean" if "clean" in readings else readings[0])
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
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
        seeds=_seeds(facts.default_seeds.get(tier, DEFAULT_SEEDS[tier]) if seeds is None else seeds),
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
    protocol : ``written``, ``released`` or ``clean``; by default ``clean``, or the first that the paper has.
    seeds : a count (0 ... n-1) or the seeds themselves; by default the paper's own count, else 1 at smoke and 5.
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


def carry_out(prepared: Prepared, listener: Listener | None = None, executor: Executor | None = None) -> Reproduction:
    """Run a prepared plan in its store and write the run's file; on ``executor``, else on the one the request names."""
    plan, request, store = prepared.plan, prepared.request, prepared.store
    started = time.perf_counter()
    with store.locked():
        run = _begin(prepared)
        folder = store.runs / run.id
        write_run(folder, run)
        todo = [key for key in plan.specs if not store.has(key)]
        if executor is None and todo:
            executor = _executor(request, len(todo))
        try:
            results = drive(plan, store, executor, listener or Silent())
        except BaseException:
            run.status = "stopped"
            with contextlib.suppress(OSError):  # what stopped it may well be the disk: its error is the one to show
                write_run(folder, run)
            raise
        finally:
            unclosed = [] if executor is None else _close(executor, request)
        values, unread = _read(plan, results)
        run.values = tuple(values)
        run.stages = tuple(
            StageLine(key, spec.label, results.records[key].seconds, key in results.reused)
            for key, spec in plan.specs.items()
            if key in results.records
        )
        run.failures = tuple(
            FailureLine(f.hash, f.label, f.cause, f.skipped, culprit(f.trace, plan.lab.paper.id))
            for f in results.failures
        )
        run.failures += (*unread, *unclosed)
        run.status = "incomplete" if run.failures else "finished"
        run.metrics, run.scores = _scores(plan, store, results)
        run.seconds = time.perf_counter() - started
        write_run(folder, run)
    reproduction = Reproduction(run, folder)
    _draw(reproduction, prepared.paper)
    reproduction.traces = {failure.hash: failure.trace for failure in results.failures}
    return reproduction


def _draw(reproduction: Reproduction, paper: Paper) -> None:
    """The paper's figures; one that cannot be drawn is a failure of the run, whose numbers are all there."""
    if not paper.figures or not reproduction.run.values:
        return
    from kdbench.figures import draw

    try:
        draw(reproduction, paper.figures)
    except KdbenchError as error:
        run = reproduction.run
        plugin = culprit("".join(traceback.format_exception(error)), paper.id)
        run.failures += (FailureLine("", "figures", str(error), 0, plugin),)
        run.status = "incomplete"
        write_run(reproduction.path, run)


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
    plugin = registry().owners.get(("papers", prepared.paper.id))  # none of a paper that was written in a notebook
    return RunFile(
        id=run_id,
        status="running",
        request=request,
        facts=facts_of(prepared.paper, plan.claims, request, plan.lab.axes),
        data=DataUsed(data.title, data.fingerprint, data.official, data.note, data.sizes),
        environment=environment(device=request.device, threads=request.threads, code=code),
        started=now.isoformat(timespec="seconds"),
        plugin=f"{plugin.distribution} {plugin.version}" if plugin else "",
    )


def _read(plan: Plan, results: Results) -> tuple[list[Value], list[FailureLine]]:
    """Every measured value, and what went wrong where one could not be read: a fault of the study, found only now."""
    values, failures = [], []
    for measurement in plan.measurements:
        quantity = measurement.quantity
        stages = tuple(dict.fromkeys(node.spec.hash for node in quantity.nodes))
        number = None
        if all(key in results.records for key in stages):
            try:
                number = float(quantity.read(results.records))
            except Exception as error:  # a study's own function
                cause = str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"
                plugin = culprit("".join(traceback.format_exception(error)), plan.lab.paper.id)
                label = f"cell {measurement.cell} seed {measurement.seed}"
                failures.append(FailureLine("", label, cause, 0, plugin))
        values.append(Value(measurement.cell, measurement.seed, quantity.name, number, stages))
    return values, failures


def _scores(plan: Plan, store: Store, results: Results) -> tuple[tuple[MetricUsed, ...], tuple[Score, ...]]:
    """What the installed metrics say of the measured networks."""
    found = list(subjects(plan.measurements, plan.lab.data, store.stages, results.records))
    used, scores = [], []
    for metric in registry().metrics.values():
        one, values = score(metric, registry().owner("metrics", metric.id).name, found)
        used.append(one)
        scores += values
    return tuple(used), tuple(scores)


def _executor(request: Request, todo: int) -> Executor:
    info = registry().executor(request.executor)
    create: Callable[[int, int], Executor] = load_object(info.create)
    try:
        return create(min(request.workers, todo), request.threads)
    except (KdbenchError, OSError):
        raise
    except Exception as error:
        raise fault(f"starting the executor '{info.id}'", error, info.create) from error


def _close(executor: Executor, request: Request) -> list[FailureLine]:
    """Stop the executor; one that raises as it is told to stop takes no result away."""
    try:
        executor.close()
    except Exception as error:
        plugin = culprit("".join(traceback.format_exception(error)), request.paper)
        cause = f"it raised {type(error).__name__} when it was to stop: {error}"
        return [FailureLine("", f"executor '{request.executor}'", cause, 0, plugin)]
    return []


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
    try:
        with contextlib.nullcontext() if fetch else offline():
            ref: DataRef = load_object(dataset.locate)(data_dir, cache, progress)
    except NotFetched:  # an archive that is there and cannot be used
        return dataset.expected()
    except (KdbenchError, OSError):
        raise
    except Exception as error:
        raise fault(f"locating the data set '{dataset.id}'", error, dataset.locate) from error
    return ref


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
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

"""One paper, really run at smoke tier in several ways whose records must agree; each way once a test session.

What was run lies in a folder that all workers of a test session share: the first that asks runs it, the others wait
and read. Nothing here judges; the conformance tests compare what they find.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from filelock import FileLock

from kdbench.api import Prepared, carry_out, prepare
from kdbench.code import modules_of
from kdbench.data import default_cache
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write
from kdbench.plan import Plan
from kdbench.plugins import registry
from kdbench.record import Record
from kdbench.result import Reproduction, read_run
from kdbench.stage import Spec, read_record
from kdbench.store import Store
from kdbench.testing.forks import ForkExecutor, Seen, server

__all__ = ["Run", "Runs"]


class Run(NamedTuple):
    """One way of running the plan.

    Attributes
    ----------
    reproduction : the run as :func:`kdbench.reproduce` returns it; ``reproduction.run.seconds`` is what it took.
    records : the record of every stage that finished, by hash, in the plan's order.
    stages : the folder with one folder a stage, named by its hash.
    findings : a sentence for every stage that failed, with its cause; in :attr:`Runs.watched` what was seen, too.
    unclean : in :attr:`Runs.watched`, a sentence for whatever no stage does at protocol ``clean``.
    trained : digests of the networks' parameters that the optimisers of a stage held at its end, by the stage's hash;
        without the stages in which no optimiser made a step.
    """

    reproduction: Reproduction
    records: dict[str, Record]
    stages: Path
    findings: list[str]
    unclean: list[str]
    trained: dict[str, str]


class _Way(NamedTuple):
    """How a plan is run; see :class:`kdbench.testing.forks.ForkExecutor`."""

    together: bool = False
    hash_seed: int = 1
    blind: bool = False
    watch: bool = False
    kill: bool = False


_WAYS = {
    "once": _Way(together=True),
    "again": _Way(together=True, hash_seed=2),
    "apart": _Way(watch=True),
    "killed": _Way(kill=True),
    "blinded": _Way(blind=True),
}


class _Done(msgspec.Struct, frozen=True):
    """Written when a way has been run to its end: the run's folder, and what was seen of every stage."""

    run: str
    seen: dict[str, Seen]


class Runs:
    """The smoke plan of a paper, run in several ways.

    The plan: tier smoke, protocol ``clean`` (the paper's first where it has no clean one), the core claims (all where
    none is core), the tier's default data set, seed 0, on the CPU with one thread.

    Parameters
    ----------
    paper_id : id of an installed paper.
    folder : where its runs lie; the same folder in another process means the same runs.
    """

    def __init__(self, paper_id: str, folder: Path) -> None:
        self.paper_id = paper_id
        self.folder = folder

    @property
    def plan(self) -> Plan:
        """The smoke plan.

        Raises
        ------
        KdbenchError : the paper does not exist, or its smoke data are neither embedded nor at hand.
        """
        return self._prepared.plan

    @cached_property
    def once(self) -> Run:
        """Every stage in one process, in the driver's order."""
        return self._run("once")

    @cached_property
    def again(self) -> Run:
        """The same in another process, under another seed of Python's hashes."""
        return self._run("again")

    @cached_property
    def apart(self) -> Run:
        """Every stage in a process of its own."""
        return self.watched._replace(findings=self._failures(self.watched.reproduction))

    @cached_property
    def watched(self) -> Run:
        """:attr:`apart`, with what was seen in it among the findings: teachers that were not frozen, variables of the
        environment that were read; and what no clean run does."""
        return self._run("apart")

    @cached_property
    def killed(self) -> Run:
        """Every stage killed at its first resumable state, again before its record was written, and then finished."""
        return self._run("killed")

    @cached_property
    def blinded(self) -> Run:
        """Every stage in a process of its own, with other test inputs and permuted test labels."""
        return self._run("blinded")

    def variant(self, key: str, change: Mapping[tuple[str | int, ...], Any]) -> Record:
        """The record of one stage of :attr:`once`, run again alone with other parameters.

        Inputs, seed and the state of the global generators at its start are those of the stage itself, so that what
        differs comes from the parameters.

        Parameters
        ----------
        key : the stage's hash.
        change : new values by their path in the packed stage, for instance
            ``{("recipe", "optimizer", "lr"): 0.025}``; a number in a path is the index in a list.

        Raises
        ------
        KdbenchError : the path does not exist, an input is missing, or the stage failed.
        """
        spec, once = self.plan.specs[key], self.once
        missing = [other for other in spec.inputs.values() if other not in once.records]
        if missing:
            raise KdbenchError("a stage that it needs did not finish", where=spec.label, cure="; ".join(once.findings))
        changed = msgspec.structs.replace(spec, stage=_changed(spec, change))
        folder = self.folder / "variants" / changed.hash / key
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if (record := read_record(folder)) is None:
                for other in spec.inputs.values():
                    if not (folder.parent / other).exists():
                        (folder.parent / other).symlink_to(once.stages / other, target_is_directory=True)
                atomic_write(folder / "spec.json", msgspec.json.encode(changed))
                ForkExecutor(server(1)).submit(folder, seeded_as=key).result()
                record = read_record(folder)
        assert record is not None, "a stage that raised nothing left no record"
        return record

    @cached_property
    def _prepared(self) -> Prepared:
        paper = registry().paper(self.paper_id)
        dataset = registry().dataset(paper.default_dataset["smoke"])
        if not dataset.at_hand(default_cache()):
            raise KdbenchError(
                f"the smoke data of '{self.paper_id}', {dataset.title}, are not embedded",
                cure="choose an embedded data set for tier smoke: tests must not download",
            )
        protocols = [protocol.id for protocol in paper.protocols]
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / "data.lock"):  # papers share data sets, and these are made when missing
            return prepare(
                self.paper_id,
                tier="smoke",
                protocol="clean" if "clean" in protocols else protocols[0],
                claims="core" if any(claim.core for claim in paper.claims) else "all",
                seeds=1,
                device="cpu",
                workers=1,
                store=self.folder,
            )

    def _run(self, name: str) -> Run:
        way, home = _WAYS[name], self.folder / name
        prepared = msgspec.structs.replace(self._prepared, store=Store(home))
        done = home / "done.json"
        with FileLock(self.folder / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(home, ignore_errors=True)  # what an interrupted session left is not one way's work
                home.mkdir()
                executor = ForkExecutor(
                    server(way.hash_seed),
                    together=way.together,
                    blind=way.blind,
                    watch=self._packages() if way.watch else None,
                    kill=way.kill,
                )
                path = carry_out(prepared, executor=executor).path
                atomic_write(done, msgspec.json.encode(_Done(str(path), executor.seen)))
        told = msgspec.json.decode(done.read_bytes(), type=_Done)
        reproduction = read_run(Path(told.run))
        found = {key: prepared.store.record(key) for key in prepared.plan.specs}
        return Run(
            reproduction=reproduction,
            records={key: record for key, record in found.items() if record is not None},
            stages=prepared.store.stages,
            findings=[
                *self._failures(reproduction),
                *(f"{self.paper_id}: {sentence}" for seen in told.seen.values() for sentence in seen.faults),
            ],
            unclean=[f"{self.paper_id}: {sentence}" for seen in told.seen.values() for sentence in seen.unclean],
            trained={key: seen.trained for key, seen in told.seen.items() if seen.trained},
        )

    def _failures(self, reproduction: Reproduction) -> list[str]:
        return [
            f"{self.paper_id}: the stage '{failure.label}' failed: {failure.cause}"
            for failure in reproduction.run.failures
        ]

    def _packages(self) -> tuple[str, ...]:
        """The packages whose code is the paper's own: its plugin's, its study's, its stages' and its data's."""
        paper = registry().paper(self.paper_id)
        modules = {registry().owner("papers", self.paper_id).module, getattr(paper.study, "__module__", "kdbench")}
        for spec in self.plan.specs.values():
            modules.update(modules_of(spec.stage), [spec.data.load.partition(":")[0]])
        return tuple(sorted({module.partition(".")[0] for module in modules} - {"kdbench"}))


def _changed(spec: Spec, change: Mapping[tuple[str | int, ...], Any]) -> dict[str, Any]:
    stage: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec.stage))  # a copy, all the way down
    for path, value in change.items():
        place: Any = stage
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]]  # a new name would be no parameter
            place[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            raise KdbenchError(f"there is no parameter {'.'.join(map(str, path))}", where=spec.label) from None
    return stage

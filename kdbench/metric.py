"""Numbers that plugins compute about measured networks once a run has ended: hook ``kdbench_metrics``.

A metric sees finished stages only. It is no part of any stage's identity, so installing one trains nothing anew, and
what it says is kept in ``run.json`` and shown wherever the run is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from kdbench.component import load_object, pack
from kdbench.data.base import DataRef
from kdbench.record import Record
from kdbench.stage import Finished
from kdbench.study import Measurement, Node
from kdbench.training import CrossEntropy

__all__ = ["Metric", "MetricUsed", "Score", "Subject", "score", "subjects", "with_baselines"]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric as plugins publish it.

    Parameters
    ----------
    id : short name, the column's title in reports.
    title : what it is, in a line.
    unit : of its values; empty for none.
    better : whether ``higher`` or ``lower`` values are better.
    source : where its formula is published.
    compute : import path ``module:function`` of ``compute(subject: Subject) -> float | None``; None where the metric
        says nothing of that network, for instance of one that had no teacher.
    """

    id: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    source: str
    compute: str


class Subject(NamedTuple):
    """One measured network of one seed.

    Attributes
    ----------
    cell, seed : the accuracy that was measured, for instance ``table1/cnn/mnist1d/TAKD``.
    student : the finished stage that left the network: its record, and ``student.tensors(name)`` for its files.
    teacher : the stage that left the network it was distilled from, of several the first; None for one trained without
        a teacher.
    data : the data of the run.
    baseline : of a distilled student, the stage that left the same network by the same recipe and seed from its labels
        alone, where the run measures one; the first that it measures.
    """

    cell: str
    seed: int
    student: Finished
    teacher: Finished | None
    data: DataRef
    baseline: Finished | None = None


class MetricUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A metric as it stood when the run ended, with what went wrong in it (empty: nothing)."""

    id: str
    title: str
    unit: str
    better: str
    source: str
    plugin: str
    problem: str = ""


class Score(msgspec.Struct, frozen=True):
    """One metric's value for one cell and seed."""

    metric: str
    cell: str
    seed: int
    value: float


def subjects(
    measurements: Iterable[Measurement], data: DataRef, stages: Path, done: Iterable[str]
) -> Iterator[Subject]:
    """Every network whose own test accuracy is measured and whose stages have finished.

    Parameters
    ----------
    stages : the store's folder of stages.
    done : hashes of finished stages.
    """
    finished = set(done)
    found: list[Subject] = []
    for measurement in measurements:
        nodes = measurement.quantity.nodes
        if measurement.quantity.name != "test.accuracy" or len(nodes) != 1 or nodes[0].network is None:
            continue
        student, teacher = nodes[0], _teacher(nodes[0])
        if {node.spec.hash for node in (student, teacher) if node is not None} <= finished:
            taught_by = None if teacher is None else Finished(stages / teacher.spec.hash)
            own = Finished(stages / student.spec.hash)
            found.append(Subject(measurement.cell, measurement.seed, own, taught_by, data))
    yield from with_baselines(found)


def score(metric: Metric, plugin: str, found: Iterable[Subject]) -> tuple[MetricUsed, list[Score]]:
    """The metric's values; a metric that raises is named as the fault of its plugin and stops nothing else."""
    scores: list[Score] = []
    problem = ""
    try:
        compute = load_object(metric.compute)
        for subject in found:
            value = compute(subject)
            if value is None:
                continue
            if isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{value} for {subject.cell}, seed {subject.seed}")
            scores.append(Score(metric.id, subject.cell, subject.seed, float(value)))
    except (Exception, SystemExit) as error:  # whatever a third party's code raises
        scores, problem = [], f"{type(error).__name__}: {error}"
    described = {name: getattr(metric, name) for name in ("id", "title", "unit", "better", "source")}
    return MetricUsed(**described, plugin=plugin, problem=problem), scores


def with_baselines(found: Sequence[Subject]) -> list[Subject]:
    """The same subjects, each distilled one with its baseline where that is among them."""
    keys = [_training_key(subject.student.record, subject.seed) for subject in found]
    plain: dict[bytes, Finished] = {}
    for key, subject in zip(keys, found, strict=True):
        if key and subject.teacher is None and _from_labels(subject.student):
            plain.setdefault(key, subject.student)
    return [
        subject if subject.teacher is None or key is None else subject._replace(baseline=plain.get(key))
        for key, subject in zip(keys, found, strict=True)
    ]


def _training_key(record: Record, seed: int) -> bytes | None:
    """What a network and its baseline have in common, with the seed; None where a record does not say.

    That is the network, the recipe, and what else was done to it: the notes ``technique``, and ``before`` it.
    """
    notes = record.notes
    if "network" not in notes or "recipe" not in notes:
        return None
    done = {name: notes[name] for name in ("network", "recipe", "technique", "before") if name in notes}
    return msgspec.json.encode((seed, done), order="sorted")


def _from_labels(finished: Finished) -> bool:
    """Whether the network was trained on plain cross-entropy, and so was the one that it was made of: a baseline."""
    record = finished.record
    if record.notes.get("objective") != pack(CrossEntropy()):
        return False
    source = record.spec.get("inputs", {}).get("network")
    return source is None or _from_labels(Finished(finished.folder.parent / source))


def _teacher(node: Node) -> Node | None:
    """The network that ``node`` was distilled from, of several the first; the trials of one choice have the same."""
    if "teacher" in node.inputs:
        stage = node.inputs["teacher"]
        return stage.inputs.get("network", stage)
    if "0" in node.inputs:
        return _teacher(node.inputs["0"])
    return None

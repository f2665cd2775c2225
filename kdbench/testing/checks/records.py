"""Records: what must not change them (the process, a kill, the test split) and what must (the learning rate)."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from kdbench.component import load_object, unpack
from kdbench.errors import KdbenchError
from kdbench.networks.base import Network
from kdbench.record import Record
from kdbench.stage import Spec
from kdbench.testing.checks.components import leaves, packed_parts
from kdbench.training import Objective, Recipe, Schedule

__all__ = ["difference", "differences", "leaks", "peeks", "rate_paths", "rates", "schedules", "slow", "unused_rates"]

Records = Mapping[str, Record]
RATES = ("lr", "learning_rate", "base_lr")
PERHAPS_RATES = ("rate", "eta", "step_size")  # where a stage has none of the above
NO_RATES = (Network, Objective, Schedule)  # what is called so in these is something else
GATE = "gate.accuracy"  # the built-in teacher stage's; on the test split where there is no validation split


def differences(fault: str, one: Records, other: Records, cure: str) -> list[str]:
    """A finding for every stage whose two records are not the same, timings apart.

    Parameters
    ----------
    fault : begins each finding, for instance ``unseeded``.
    """
    findings: list[str] = []
    for key, record in one.items():
        if key not in other:
            findings.append(f"{fault}: stage '{record.label}' left no second record; {cure}")
        elif what := difference(record, other[key]):
            findings.append(f"{fault}: stage '{record.label}': {what}; {cure}")
    return findings


def difference(one: Record, other: Record) -> str:
    """The first thing in which two records differ, with both values; empty where they are equal."""
    for noun, field in (("metric", "metrics"), ("curve", "curves"), ("note", "notes")):
        if what := _first(noun, getattr(one, field), getattr(other, field)):
            return what
    for name in sorted({*one.files, *other.files}):
        first, second = one.files.get(name), other.files.get(name)
        if first != second:
            return f"file {name} has the SHA-256 {_short(first)}, then {_short(second)}"
    left, right = one.content(), other.content()
    return _first("environment", left.pop("environment"), right.pop("environment")) or _first("field", left, right)


def _first(noun: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    for name in (*one, *(name for name in other if name not in one)):
        left, right = one.get(name), other.get(name)
        if left == right:
            continue
        if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            at = next(i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y)
            return f"{noun} '{name}' has {left[at]!r} at {at}, then {right[at]!r}"
        return f"{noun} '{name}' is {left!r}, then {right!r}"
    return ""


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def leaks(
    once: Records, blinded: Records, trained: Mapping[str, str] | None = None, others: Mapping[str, str] | None = None
) -> list[str]:
    """Stages that leave something else once the test split is another: all but what is about that split must stay.

    Parameters
    ----------
    trained, others : digests of what optimisers trained, by stage, in the one run and in the blinded one: so a stage
        that keeps no weights is held to the same.
    """
    trained, others = trained or {}, others or {}
    findings: list[str] = []
    for key, record in once.items():
        other = blinded.get(key)
        if other is None:
            continue  # it failed, which is a finding of its own
        stays = [
            _first("metric", _untested(record.metrics), _untested(other.metrics)),
            _first("curve", _untested(record.curves), _untested(other.curves)),
            _first("file", _untested(record.files), _untested(other.files)),
            "the weights that its optimiser trains are others" if trained.get(key) != others.get(key) else "",
        ]
        if what := next(filter(None, stays), ""):
            findings.append(
                f"label leak: the test split reaches stage '{record.label}': with other test data {what}; train, "
                "choose and stop by training and validation data alone, and let the names of "
                "numbers and files about the test split begin with 'test.' or 'test_'"
            )
    return findings


def _untested(things: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose names do not say that they are about the test split."""
    return {name: each for name, each in things.items() if not _about_test(name) and name != GATE}


def _about_test(name: str) -> bool:
    return name.startswith("test") and not name[4:5].isalnum()


def slow(records: Records, limit: float) -> list[str]:
    """Whether all stages together took longer than ``limit`` seconds."""
    seconds = {record.label: record.seconds for record in records.values()}
    total = sum(seconds.values())
    if total <= limit:
        return []
    longest = max(seconds, key=seconds.__getitem__)
    return [
        f"smoke tier takes {total:.1f} s on one process, allowed are {limit:g}: the longest stage is '{longest}' "
        f"({seconds[longest]:.1f} s); fewer epochs, smaller networks or less data at tier smoke"
    ]


def peeks(blinded: Records, limit: float) -> list[str]:
    """Stages that predict the labels of a test split whose labels were permuted: they must have seen them."""
    return [
        f"label leak: stage '{record.label}' reaches {record.metrics['test.accuracy']:.1f} % on a test split with "
        f"permuted labels, where chance gives at most {limit:.1f} %: its prediction uses the labels; predict from the "
        "inputs alone"
        for record in blinded.values()
        if record.metrics.get("test.accuracy", 0.0) > limit
    ]


def rates(
    records: Records, specs: Mapping[str, Spec], trained: Container[str]
) -> dict[str, list[tuple[str | int, ...]]]:
    """One stage of each kind (its type, and its objective's) that trains by a learning rate: its hash, and where that
    stands."""
    found: dict[tuple[str, ...], tuple[str, list[tuple[str | int, ...]]]] = {}
    for key, spec in specs.items():
        paths = rate_paths(spec.stage)
        if paths and key in records and key in trained:
            objectives = sorted({part["type"] for part in packed_parts(spec.stage) if _is_objective(part)})
            found.setdefault((spec.stage["type"], *objectives), (key, paths))
    return dict(found.values())


def rate_paths(packed: dict[str, Any]) -> list[tuple[str | int, ...]]:
    """Paths of the learning rates in a packed stage: positive floats of that name, at any depth."""
    floats = [path for path, value in leaves(packed, nested=True) if path and isinstance(value, float) and value > 0]
    return [path for path in floats if path[-1] in RATES] or [
        path for path in floats if path[-1] in PERHAPS_RATES and not _within(packed, path, NO_RATES)
    ]


def _within(packed: Any, path: tuple[str | int, ...], kinds: tuple[type, ...]) -> bool:
    """Whether a component on the way to a value is of one of the kinds."""
    for step in path:
        if isinstance(packed, dict) and ":" in str(packed.get("type", "")):
            kind = load_object(packed["type"])
            if isinstance(kind, type) and issubclass(kind, kinds):
                return True
        packed = packed[step]
    return False


def unused_rates(
    records: Records,
    specs: Mapping[str, Spec],
    trained: Container[str],
    variant: Callable[[str, Mapping[tuple[str | int, ...], Any]], Record],
) -> list[str]:
    """Stages that leave the same network at half the learning rate.

    Parameters
    ----------
    trained : hashes of the stages in which an optimiser made a step; a rate in any other trains nothing.
    variant : runs a stage again with changed parameters, see :meth:`kdbench.testing.runs.Runs.variant`.
    """
    findings: list[str] = []
    for key, paths in rates(records, specs, trained).items():
        spec, record = specs[key], records[key]
        for path in paths:
            rate = _at(spec.stage, path)
            try:
                other = variant(key, {path: rate / 2})
            except KdbenchError as error:
                if path[-1] in PERHAPS_RATES:  # some other rate, of which no half is allowed
                    continue
                findings.append(f"stage '{spec.label}' fails at half its learning rate ({rate / 2:g}): {error}")
                continue
            same = other.files == record.files if record.files else other.metrics == record.metrics
            if same:
                findings.append(
                    f"learning rate never applied: stage '{spec.label}' leaves the same {_left(record)} at "
                    f"{'.'.join(map(str, path))} {rate:g} and {rate / 2:g}; set the optimiser's rate from it"
                )
    return findings


def schedules(records: Records, specs: Mapping[str, Spec]) -> list[str]:
    """Stages whose recorded rates (curve ``lr``) are not those of their recipe's optimiser and schedule."""
    findings: list[str] = []
    for key, record in records.items():
        curve, recipe = record.curves.get("lr"), _recipe(specs[key])
        if curve is None or recipe is None:
            continue
        for epoch, (ran, due) in enumerate(zip(curve, _due(recipe), strict=False)):
            if not math.isclose(ran, due, rel_tol=1e-9, abs_tol=1e-15):
                findings.append(
                    f"learning rate off its schedule: stage '{record.label}' ran epoch {epoch} at {ran:g}, its recipe "
                    f"says {due:g} ({type(recipe.schedule).__name__}, base {recipe.optimizer.lr:g})"
                )
                break
        else:
            if len(curve) != recipe.epochs:
                findings.append(
                    f"learning rate off its schedule: stage '{record.label}' ran {len(curve)} epochs, its recipe has "
                    f"{recipe.epochs}"
                )
    return findings


def _due(recipe: Recipe) -> Iterator[float]:
    for epoch in range(recipe.epochs):
        yield recipe.optimizer.lr * recipe.schedule.factor(epoch, epoch / recipe.epochs, recipe.epochs)


def _recipe(spec: Spec) -> Recipe | None:
    recipe = getattr(unpack(spec.stage), "recipe", None)
    return recipe if isinstance(recipe, Recipe) else None


def _is_objective(part: dict[str, Any]) -> bool:
    kind = load_object(part["type"])
    return isinstance(kind, type) and issubclass(kind, Objective)


def _left(record: Record) -> str:
    return ", ".join(record.files) or "metrics"


def _at(packed: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        packed = packed[step]
    return packed

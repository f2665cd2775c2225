"""What can be wrong with an installed plugin beside what loading it shows: requirements, studies, stages of late.

:mod:`kdbench.plugins` finds what breaks while plugins are loaded and asked. The rest costs a little time, so it is
looked for only when somebody asks how the plugins are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

import msgspec

from kdbench.errors import KdbenchError
from kdbench.paper import Paper
from kdbench.plugins import PluginInfo, Registry
from kdbench.store import Store

__all__ = ["examine"]


def examine(plugins: Registry, store: Store, *, studies: bool = False) -> list[PluginInfo]:
    """Every plugin with all that is wrong with it; the registry's own entries stay as they are.

    Blamed beside what loading showed are requirements that are not installed, and stages and metrics that failed in the
    last run of each paper in ``store``.

    Parameters
    ----------
    studies : also plan every paper at smoke, in each of its readings; a study that raises is blamed.
    """
    found = [copy.deepcopy(info) for info in plugins.plugins]
    for info in found[1:]:
        if info.state != "blocked":
            for lack in _lacking(info):
                info.blame("requirements", lack)
    # A name may be taken twice; the one that is loaded is the one that can be blamed.
    known = {info.name: info for info in found if info.state == "loaded"}
    for paper in plugins.papers.values():
        owner = known[plugins.owner("papers", paper.id).name]
        _blame_for_run(paper.id, owner, known, store)
        if studies:
            _blame_for_plans(paper, owner)
    return found


def _blame_for_plans(paper: Paper, owner: PluginInfo) -> None:
    from kdbench.api import prepare

    readings: list[str | None] = [reading.id for reading in paper.protocols]
    for reading in readings or [None]:
        try:
            prepare(paper.id, tier="smoke", protocol=reading, claims="all", device="cpu", fetch=False)
        except (Exception, SystemExit) as error:  # whatever a third party's code raises
            owner.blame(f"plan of '{paper.id}'" + (f" ({reading})" if reading else ""), error)


def _blame_for_run(paper: str, owner: PluginInfo, known: dict[str, PluginInfo], store: Store) -> None:
    run = _last_run(store, paper)
    if run is None:
        return
    for failure in run.failures:
        error = KdbenchError(f"{failure.label}: {failure.cause}", where=f"run {run.id}")
        known.get(failure.plugin, owner).blame("stage", error)
    for metric in run.metrics:
        if metric.problem and metric.plugin in known:
            known[metric.plugin].blame(f"metric '{metric.id}'", KdbenchError(metric.problem))


class _Failure(msgspec.Struct):
    label: str
    cause: str
    plugin: str = ""


class _Metric(msgspec.Struct):
    id: str
    plugin: str
    problem: str = ""


class _Run(msgspec.Struct):
    """What is read of ``run.json``: no more, so that old runs never stand in the way."""

    id: str
    started: str
    failures: tuple[_Failure, ...] = ()
    metrics: tuple[_Metric, ...] = ()


def _last_run(store: Store, paper: str) -> _Run | None:
    # Ids of other papers may begin alike, so the request decides.
    ids = [run_id for run_id in store.run_ids() if run_id.startswith(f"{paper}-")]
    for run_id in sorted(ids, key=_moment, reverse=True):
        try:
            run = msgspec.json.decode((store.runs / run_id / "run.json").read_bytes(), type=_OfPaper)
        except (OSError, msgspec.MsgspecError):
            continue
        if run.request.paper == paper:
            return run
    return None


def _moment(run_id: str) -> tuple[str, int]:
    """The moment in which a run began, as its id ends in it, and its number among those of that second."""
    found = re.search(r"(\d{8}-\d{6})(?:-(\d+))?$", run_id)
    return (found[1], int(found[2] or 1)) if found else ("", 0)


class _Request(msgspec.Struct):
    paper: str


class _OfPaper(_Run, kw_only=True):
    request: _Request


def _lacking(info: PluginInfo) -> Iterator[KdbenchError]:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        found = distribution(info.distribution)
        wanted = found.requires or () if found.metadata["Name"] else None
    except Exception:  # what damaged metadata raises differs from one Python to the next
        wanted = None
    if wanted is None:
        yield KdbenchError(f"the metadata of {info.distribution} cannot be read", cure="install it anew")
        return
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield KdbenchError(f"'{text}' is no requirement", cure="a fault of its pyproject.toml")
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            there = ""
        if not there:
            said = f"{requirement.name}{requirement.specifier} is required and not installed"
        elif not requirement.specifier.contains(there, prereleases=True):
            said = f"{requirement.name}{requirement.specifier} is required, {there} is installed"
        else:
            continue
        yield KdbenchError(said, cure=f"pip install '{requirement.name}{requirement.specifier}'")

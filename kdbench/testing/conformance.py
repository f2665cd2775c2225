"""The conformance tests: one line in a plugin's own tests collects them for every installed paper.

    from kdbench.testing.conformance import *  # noqa: F403

or, without any file, ``pytest --pyargs kdbench.testing.conformance``. :mod:`kdbench.testing.plugin` says which papers.
A test fails with sentences that name what is wrong, where and its cure. Where the study cannot be planned, or a plain
smoke run does not finish, one test says so and those that need it are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

import pytest

from kdbench.data import default_cache
from kdbench.errors import KdbenchError
from kdbench.plugins import registry
from kdbench.testing.checks import clean, components, data, elsewhere, facts, networks, objectives, planning, records
from kdbench.testing.checks.subject import Subject, subject

if TYPE_CHECKING:
    from kdbench.record import Record
    from kdbench.testing.plugin import InstalledPlugin
    from kdbench.testing.runs import Run, Runs

__all__ = [  # noqa: RUF022  (in the order in which they make sense, which is that of the report)
    "test_plugin_has_no_problem",
    "test_facts_have_sources",
    "test_claims_can_be_judged",
    "test_data_sets_are_known",
    "test_plan_is_acyclic",
    "test_plan_is_stable",
    "test_plan_measures_every_claim",
    "test_descriptors_import_no_torch",
    "test_clean_protocol_is_clean",
    "test_hash_knows_every_parameter",
    "test_losses_equal_their_references",
    "test_networks_fit_the_data",
    "test_networks_have_their_published_parameter_counts",
    "test_data_are_as_described",
    "test_smoke_tier_finishes_in_time",
    "test_same_seed_leaves_the_same_record",
    "test_workers_make_no_difference",
    "test_kill_and_resume_leave_the_same_record",
    "test_teachers_are_frozen_and_environment_unread",
    "test_clean_runs_train_on_the_true_kl",
    "test_test_split_reaches_no_training",
    "test_learning_rate_is_applied",
    "test_learning_rate_follows_its_schedule",
]

in_cache = pytest.mark.usefixtures("kdbench_cache")  # the data that are planned with lie there

UNSEEDED = "draw every random number from a generator seeded by the stage's seed, and let no clock or id in"
WORKERS = "keep no state in modules between stages: a stage is a function of its folder"
RESUME = "save everything that the rest of the work depends on in the resumable state, and restore all of it"


def _expect_none(findings: Sequence[str]) -> None:
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


def _planned(paper: str) -> Subject:
    found = subject(paper)
    try:
        assert found.smoke is not None
    except KdbenchError:
        pytest.skip(f"the study of '{paper}' cannot be planned: see test_plan_is_acyclic")
    return found


def _with_data(paper: str) -> Subject:
    found = _planned(paper)
    if not found.smoke_data.at_hand(default_cache()):
        pytest.skip(f"the smoke data of '{paper}' must be downloaded: see test_data_sets_are_known")
    return found


@cache
def _elsewhere(paper: str) -> elsewhere.Report:
    return elsewhere.report(paper, subject(paper).package)


def _finished(runs: Runs) -> Run:
    _with_data(runs.paper_id)
    if runs.once.findings:
        pytest.skip(f"the smoke run of '{runs.paper_id}' does not finish: see test_smoke_tier_finishes_in_time")
    return runs.once


def _steady(runs: Runs, way: Literal["once", "apart"]) -> dict[str, Record]:
    """The records of one way, without the stages that differ from run to run: one test says so, once."""
    once = _finished(runs).records
    differ = {key for key in once if records.differences("", {key: once[key]}, runs.again.records, "")}
    found: Run = getattr(runs, way)
    return {key: record for key, record in found.records.items() if key not in differ}


def test_plugin_has_no_problem(kdbench_plugin: InstalledPlugin) -> None:
    """The plugin loads, and its hooks yield what they should."""
    _expect_none([kdbench_plugin.problem] if kdbench_plugin.problem else [])


def test_facts_have_sources(kdbench_paper: str) -> None:
    """Every claim cites a place in a publication, every number has a source."""
    _expect_none(facts.sources(subject(kdbench_paper).paper))


def test_claims_can_be_judged(kdbench_paper: str) -> None:
    """There is a tested claim; each has comparisons, and margins with a reason."""
    _expect_none(facts.claims(subject(kdbench_paper).paper))


def test_data_sets_are_known(kdbench_paper: str) -> None:
    """The paper's data sets are published by a plugin; smoke tier's needs no download."""
    _expect_none(facts.datasets(subject(kdbench_paper).paper, registry().datasets))


@in_cache
def test_plan_is_acyclic(kdbench_paper: str) -> None:
    """The study can be planned under every protocol, for all claims, as a graph without cycles."""
    _expect_none(planning.acyclic(subject(kdbench_paper)))


@in_cache
def test_plan_is_stable(kdbench_paper: str) -> None:
    """Planned again, here or in another interpreter, every stage has the same hash."""
    found = _planned(kdbench_paper)
    _expect_none(planning.stable(found, _elsewhere(kdbench_paper)))


@in_cache
def test_plan_measures_every_claim(kdbench_paper: str) -> None:
    """Every cell that a tested claim compares is measured."""
    _expect_none(planning.measured(_planned(kdbench_paper)))


@in_cache
def test_descriptors_import_no_torch(kdbench_paper: str) -> None:
    """To list and to plan, nothing of the plugin imports torch."""
    _expect_none(planning.light(subject(kdbench_paper), _elsewhere(kdbench_paper)))


@in_cache
def test_clean_protocol_is_clean(kdbench_paper: str) -> None:
    """At protocol clean nothing is chosen on the test split, and the KL divergence is the true one, at every tier."""
    found = _planned(kdbench_paper)
    if "clean" not in found.protocols:
        pytest.skip(f"'{kdbench_paper}' declares no protocol 'clean'")
    _expect_none(clean.everywhere(found))


@in_cache
def test_hash_knows_every_parameter(kdbench_paper: str) -> None:
    """Whatever can be set is in the hash, and no parameter lives outside the components."""
    found = _planned(kdbench_paper)
    specs = [spec for protocol in found.protocols for spec in found.plan(protocol, "all").specs.values()]
    report = _elsewhere(kdbench_paper)
    _expect_none(components.unhashed(specs) + planning.outside(found, report))


@in_cache
def test_losses_equal_their_references(kdbench_paper: str) -> None:
    """Value and gradient of every objective are those of its formula in float64; no gradient reaches the teacher."""
    _expect_none(objectives.objectives(_planned(kdbench_paper)))


@in_cache
def test_networks_fit_the_data(kdbench_paper: str) -> None:
    """Every network has an output for each class, the size that it says, and weights fixed by the seed."""
    _expect_none(networks.networks(_planned(kdbench_paper)))


@in_cache
def test_networks_have_their_published_parameter_counts(kdbench_paper: str) -> None:
    """Every network whose parameters the facts count has that many."""
    _expect_none(networks.counts(_planned(kdbench_paper)))


@in_cache
def test_data_are_as_described(kdbench_paper: str) -> None:
    """Sizes, shape, classes and fingerprint of the smoke data; no training example in the test split."""
    _expect_none(data.data(_with_data(kdbench_paper)))


def test_smoke_tier_finishes_in_time(kdbench_runs: Runs, pytestconfig: pytest.Config) -> None:
    """Smoke tier trains all its stages, on one process, in the seconds that ini ``kdbench_smoke_seconds`` gives."""
    _with_data(kdbench_runs.paper_id)
    run, limit = kdbench_runs.once, float(pytestconfig.getini("kdbench_smoke_seconds"))
    _expect_none(run.findings or records.slow(run.records, limit))


def test_same_seed_leaves_the_same_record(kdbench_runs: Runs) -> None:
    """A second run of every stage leaves the same metrics, curves and files, to the last bit."""
    once, again = _finished(kdbench_runs), kdbench_runs.again
    _expect_none(again.findings or records.differences("unseeded", once.records, again.records, UNSEEDED))


def test_workers_make_no_difference(kdbench_runs: Runs) -> None:
    """Each stage in a process of its own leaves what all of them in one process leave."""
    once, apart = _steady(kdbench_runs, "once"), kdbench_runs.apart
    fault = "differs with the worker that runs it"
    _expect_none(apart.findings or records.differences(fault, once, apart.records, WORKERS))


def test_kill_and_resume_leave_the_same_record(kdbench_runs: Runs) -> None:
    """Killed at its first resumable state and again before its record, every stage ends as if it never was."""
    apart, killed = _steady(kdbench_runs, "apart"), kdbench_runs.killed
    findings = [f"kill and resume: {text}" for text in killed.findings]
    _expect_none(findings or records.differences("kill and resume", apart, killed.records, RESUME))


def test_teachers_are_frozen_and_environment_unread(kdbench_runs: Runs) -> None:
    """Teachers run in eval mode, without gradients, and are not changed; no stage reads the environment."""
    _finished(kdbench_runs)
    _expect_none(kdbench_runs.watched.findings)


def test_clean_runs_train_on_the_true_kl(kdbench_runs: Runs) -> None:
    """No stage of the paper's own takes the 'mean' KL of kdbench.losses at protocol clean."""
    found = subject(kdbench_runs.paper_id)
    if "clean" not in found.protocols:
        pytest.skip(f"'{found.paper.id}' declares no protocol 'clean'")
    _finished(kdbench_runs)
    _expect_none(kdbench_runs.watched.unclean)


def test_test_split_reaches_no_training(kdbench_runs: Runs) -> None:
    """With another test split only numbers about that split change, and nobody predicts its permuted labels."""
    found = subject(kdbench_runs.paper_id)
    if "clean" not in found.protocols:
        pytest.skip(f"'{found.paper.id}' declares no protocol 'clean'")
    apart, blinded = _steady(kdbench_runs, "apart"), kdbench_runs.blinded
    peeking = records.peeks(blinded.records, data.chance(found.data))
    trained = kdbench_runs.apart.trained, blinded.trained
    _expect_none(blinded.findings or records.leaks(apart, blinded.records, *trained) + peeking)


def test_learning_rate_is_applied(kdbench_runs: Runs) -> None:
    """At half its learning rate a stage leaves another network."""
    once = _steady(kdbench_runs, "once")
    trained = kdbench_runs.once.trained
    _expect_none(records.unused_rates(once, kdbench_runs.plan.specs, trained, kdbench_runs.variant))


def test_learning_rate_follows_its_schedule(kdbench_runs: Runs) -> None:
    """The rates that a stage records are those of its recipe."""
    _expect_none(records.schedules(_finished(kdbench_runs).records, kdbench_runs.plan.specs))

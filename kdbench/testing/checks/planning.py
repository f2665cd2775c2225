"""Plans: the study plans one graph, the same one everywhere, and it measures what the claims compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from kdbench.errors import KdbenchError
from kdbench.paper import TIERS, Claim
from kdbench.plan import Plan
from kdbench.result import Request, facts_of
from kdbench.testing.checks.elsewhere import Report
from kdbench.testing.checks.subject import Subject, smoke_plan

__all__ = ["acyclic", "cyclic", "light", "measured", "outside", "stable", "unequal", "unmeasured"]

_UNSTABLE = "a study depends on its lab alone: on no clock, no random number, no hash() of a word, no path"

Stages = Sequence[tuple[str, str]]
"""Label and hash of every stage, in the plan's order."""


def acyclic(subject: Subject) -> list[str]:
    """The study can be planned under every protocol, for all claims, and what it plans is a graph without cycles."""
    findings: list[str] = []
    for protocol in subject.protocols:
        try:
            plan = subject.plan(protocol, "all")
            facts_of(subject.paper, plan.claims, _request(subject, protocol), plan.lab.axes)
        except KdbenchError as error:
            findings.append(str(error))
            continue
        if not plan.specs:
            findings.append(f"the study of '{subject.paper.id}' yields no measurement (protocol {protocol})")
        findings += cyclic(plan.inputs)
    return findings


def cyclic(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """Cycles, and inputs that are no stage of the plan."""
    findings = [
        f"stage {key} takes the stage {each} that is not in the plan; pass the node on that the lab returned"
        for key, wanted in inputs.items()
        for each in wanted
        if each not in inputs
    ]
    try:
        TopologicalSorter(inputs).prepare()
    except CycleError as error:
        findings.append(f"the plan has a cycle: {' -> '.join(error.args[1])}; no stage may build on itself")
    return findings


def stable(subject: Subject, elsewhere: Report) -> list[str]:
    """Planning again gives the same hashes: here, and in an interpreter with another hash seed and another folder."""
    if elsewhere.error:
        return [f"'{subject.paper.id}' cannot be planned in another interpreter and folder: {elsewhere.error}"]
    findings: list[str] = []
    for protocol in subject.protocols:
        first = _stages(subject.plan(protocol, "all"))
        again = _stages(smoke_plan(subject.paper.id, protocol, "all"))
        findings += unequal(first, again, f"planned twice (protocol {protocol})")
        findings += unequal(
            first,
            elsewhere.stages.get(protocol, []),
            f"planned in another interpreter with another hash seed and working directory (protocol {protocol})",
        )
    return findings


def unequal(first: Stages, second: Stages, when: str) -> list[str]:
    """The first stage of a plan that is not in another one which must be the same."""
    known = {key for _, key in second}
    lost = [(label, key) for label, key in first if key not in known]
    if not lost and len(first) == len(second):
        return []
    if not lost:
        return [f"the plan is not stable: {len(first)} stages, then {len(second)}, {when}; {_UNSTABLE}"]
    label, key = lost[0]
    there = {key for _, key in first}
    now = next((other for name, other in second if name == label and other not in there), None)
    became = f"has the hash {key}, then {now}" if now else "is not there again"
    return [f"the plan is not stable: stage '{label}' {became}, {when}; {_UNSTABLE}"]


def measured(subject: Subject) -> list[str]:
    """Every cell that a tested claim compares is measured: core claims at smoke tier, the others at some tier."""
    missing = unmeasured(subject.paper.claims, subject.plan(subject.protocol, "all"))
    findings = [text for claim, text in missing.items() if _is_core(subject, claim)]
    open_claims = [claim for claim in subject.paper.claims if claim.id in missing and not _is_core(subject, claim.id)]
    for tier in TIERS[1:]:
        if open_claims:
            left = unmeasured(open_claims, subject.plan(subject.protocol, "all", tier))
            open_claims = [claim for claim in open_claims if claim.id in left]
    findings += [f"{missing[claim.id]} (nor at any other tier)" for claim in open_claims]
    return findings


def unmeasured(claims: Sequence[Claim], plan: Plan) -> dict[str, str]:
    """For each tested claim that compares a cell which the plan does not measure: a sentence, by the claim's id."""
    cells = {measurement.cell for measurement in plan.measurements}
    findings: dict[str, str] = {}
    for claim in claims:
        try:
            wanted = {cell for instance in claim.instances(plan.lab.axes) for cell in instance.cells()}
        except KdbenchError as error:
            findings[claim.id] = f"{error}; declare it with lab.axis(...)"
            continue
        if missing := sorted(wanted - cells - plan.lab.left_out.keys()):
            findings[claim.id] = (
                f"claim {claim.id} compares the cell '{missing[0]}', which the study does not measure at tier "
                f"{plan.lab.tier}; yield lab.measure('{missing[0]}', ...) or correct its name in the claim"
            )
    return findings


def light(subject: Subject, elsewhere: Report) -> list[str]:
    """Nothing of the plugin imports torch before a stage runs."""
    return [
        f"{place} imports torch while the paper '{subject.paper.id}' is only described or planned; import it inside "
        "run(), build() or loss()"
        for place in elsewhere.torch
    ]


def outside(subject: Subject, elsewhere: Report) -> list[str]:
    """No plain value of a module or a class changed while the study was planned: a stage's hash would not know it."""
    return [
        f"{change} while the study of '{subject.paper.id}' was planned: a parameter that the hash ignores, and that "
        "no worker ever sees; make it a field of the component that uses it"
        for change in dict.fromkeys(elsewhere.changed)
    ]


def _is_core(subject: Subject, claim_id: str) -> bool:
    claim = subject.paper.claim(claim_id)
    return claim is not None and (claim.core or subject.claims == "all")


def _stages(plan: Plan) -> list[tuple[str, str]]:
    return [(spec.label, key) for key, spec in plan.specs.items()]


def _request(subject: Subject, protocol: str) -> Request:
    return Request(
        paper=subject.paper.id,
        tier="smoke",
        dataset=subject.smoke_data.id,
        protocol=protocol,
        seeds=(0,),
        claims="all",
        device="cpu",
        workers=1,
        threads=1,
        executor="local",
        data_dir=None,
    )

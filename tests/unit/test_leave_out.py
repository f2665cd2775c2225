"""Cells that a study leaves out, with the reason: in the plan, the verdict, the reports and the conformance check."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from toy_paper import Nothing, toy_lab, toy_paper

from kdbench.api import Prepared, carry_out
from kdbench.executors.inline import InlineExecutor
from kdbench.paper import Claim, Comparison, Paper, ReportedTable
from kdbench.plan import Plan, build_plan
from kdbench.report.dossier import render
from kdbench.report.terminal import show_result
from kdbench.result import Reproduction, Request
from kdbench.store import Store
from kdbench.study import Lab, Measurement
from kdbench.testing.checks import planning

REASON = "not run: install a-library"
CELLS = ("t/mnist1d/a", "t/mnist1d/b")


def claim(claim_id: str, *pairs: tuple[str, str], core: bool = True) -> Claim:
    """A claim of one alternative a pair; cells by their last part."""
    return Claim(
        id=claim_id,
        title=f"Title of {claim_id}",
        sentence="S.",
        source="Table 1",
        certainty="paper",
        core=core,
        gain_margin=0.3,
        margin_reason="Ours.",
        alternatives=tuple(
            (Comparison(left=f"t/{{dataset}}/{left}", right=f"t/{{dataset}}/{right}"),) for left, right in pairs
        ),
    )


CLAIMS = (
    claim("H1", ("a", "b")),
    claim("H2", ("c", "b")),
    claim("H3", ("a", "b"), ("c", "d")),
    claim("H4", ("e", "b"), core=False),
)


def study(lab: Lab) -> Iterator[Measurement]:
    """a and b are measured; c is left out, and so is d, for reasons of their own; of e nothing is known."""
    lab.leave_out(f"t/{lab.dataset}/c", REASON)
    lab.leave_out(f"t/{lab.dataset}/d", "not run: too large")
    for seed in lab.seeds:
        for number, name in enumerate("ab"):
            node = lab.stage(Nothing(number=number), seed=seed, label=name)
            yield lab.measure(f"t/{lab.dataset}/{name}", node.accuracy, seed=seed)


def paper(claims: tuple[Claim, ...] = CLAIMS) -> Paper:
    table = ReportedTable(id="t", title="Ours", metric="test accuracy", unit="%", source="ours", comparable=())
    return toy_paper(study, claims=claims, tables=(table,))


def plan_of(claims: str = "core") -> Plan:
    return build_plan(toy_lab(paper()), claims)


def finished(root: Path, claims: str = "core") -> Reproduction:
    facts = paper()
    request = Request(
        paper=facts.id,
        tier="smoke",
        dataset="mnist1d",
        protocol="clean",
        seeds=(0,),
        claims=claims,
        device="cpu",
        workers=1,
        threads=1,
        executor="inline",
        data_dir=None,
    )
    plan = build_plan(toy_lab(facts), claims)
    return carry_out(Prepared(facts, request, plan, Store(root)), executor=InlineExecutor())


# ---------------------------------------------------------------------------------------------------------------- plans


def test_a_lab_keeps_the_last_reason_of_a_cell() -> None:
    lab = toy_lab()
    assert lab.left_out == {}
    lab.leave_out("t/a", "one")
    lab.leave_out("t/a", "another")
    lab.leave_out("t/b", "one")
    assert lab.left_out == {"t/a": "another", "t/b": "one"}


def test_a_claim_that_compares_a_cell_left_out_is_not_tested_for_its_reason() -> None:
    found = {each.id: each.not_tested for each in plan_of().claims}
    assert found == {"H1": "", "H2": REASON, "H3": REASON}  # the first in the order of the claim's cells
    assert {each.id: each.not_tested for each in plan_of("all").claims} == {**found, "H4": ""}


def test_it_still_says_what_it_would_compare() -> None:
    stated = next(each for each in plan_of().claims if each.id == "H3")
    assert stated.cells() == ("t/mnist1d/a", "t/mnist1d/b", "t/mnist1d/c", "t/mnist1d/d")


@pytest.mark.parametrize("claims", ["core", "all", "H1"])
def test_cells_of_tested_claims_are_planned_as_before(claims: str) -> None:
    plan = plan_of(claims)
    assert {measurement.cell for measurement in plan.measurements} == set(CELLS)
    assert {spec.label for spec in plan.specs.values()} == {"a seed 0", "b seed 0"}


@pytest.mark.parametrize("claims", ["H2", "H3", "H2,H3"])
def test_nothing_is_planned_for_claims_that_are_not_tested(claims: str) -> None:
    plan = plan_of(claims)
    assert [each.id for each in plan.claims] == claims.split(",")
    assert (plan.specs, plan.measurements) == ({}, ())


def test_a_study_that_leaves_nothing_out_has_no_reasons() -> None:
    plan = build_plan(toy_lab(), "all")
    assert plan.lab.left_out == {}
    assert [each.not_tested for each in plan.claims] == [""]


# ------------------------------------------------------------------------------------------------- verdicts and reports


def test_the_verdict_is_not_tested_and_its_sentence_is_the_reason(tmp_path: Path) -> None:
    result = finished(tmp_path, "all")
    assert result.complete, result.run.failures
    verdicts = {verdict.claim: verdict for verdict in result.claim_verdicts()}
    for name in ("H2", "H3"):  # of H3 two cells are measured, which does not save it
        assert verdicts[name].gain_word == "not tested"
        assert verdicts[name].sentence == REASON
        assert verdicts[name].more_seeds is None
    assert verdicts["H1"].gain_word != "not tested"
    assert verdicts["H4"].gain_word == "not tested"  # neither measured nor left out
    assert REASON not in verdicts["H4"].sentence


def test_a_run_of_nothing_but_such_claims_ends_well(tmp_path: Path) -> None:
    result = finished(tmp_path, "H2")
    assert (result.complete, result.run.values, result.run.stages) == (True, (), ())
    (verdict,) = result.claim_verdicts()
    assert (verdict.gain_word, verdict.sentence) == ("not tested", REASON)


def test_the_dossier_names_it_among_what_was_not_tested(tmp_path: Path) -> None:
    text = render([finished(tmp_path)])
    section = text.partition("### Not tested, and why\n")[2].partition("### Run it again")[0]
    lines = [line for line in section.splitlines() if line.startswith("- ")]
    assert f"- H2 (Title of H2): {REASON}" in lines
    assert f"- H3 (Title of H3): {REASON}" in lines
    assert "- H4 (Title of H4): not asked for in this run" in lines
    assert not any(line.startswith("- H1") for line in lines)


def test_the_terminal_says_it_too(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    show_result(console, finished(tmp_path))
    assert isinstance(console.file, io.StringIO)
    assert " ".join(console.file.getvalue().split()).count(REASON) == 2


# ---------------------------------------------------------------------------------------------------------- conformance


def test_a_cell_left_out_is_no_finding_and_one_that_was_forgotten_is() -> None:
    found = planning.unmeasured(CLAIMS, plan_of("all"))
    assert found.keys() == {"H4"}
    assert "compares the cell 't/mnist1d/e', which the study does not measure at tier smoke" in found["H4"]


def test_leaving_out_one_cell_excuses_no_other() -> None:
    half = claim("H5", ("c", "forgotten"))
    found = planning.unmeasured([half], build_plan(toy_lab(paper((*CLAIMS, half))), "all"))
    assert "the cell 't/mnist1d/forgotten'" in found["H5"]

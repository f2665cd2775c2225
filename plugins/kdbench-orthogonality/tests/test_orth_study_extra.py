"""Where libraries of the extra are missing, or others than were planned with: what is left out, and what is said."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pytest
from orth_models import needs_extra
from orth_plans import measured, planned
from rich.console import Console

from kdbench import reproduce
from kdbench.api import prepare
from kdbench.component import unpack
from kdbench.data import DATASETS
from kdbench.paper import TIERS
from kdbench.report.terminal import show_result
from kdbench.result import Reproduction
from kdbench_orthogonality import techniques
from kdbench_orthogonality.compress import Compress
from kdbench_orthogonality.recipes import STACKS, stack_bytes, stacked
from kdbench_orthogonality.study import COMPRESSED, MISSING

NEED_EXTRA = {name for name, technique in COMPRESSED.items() if technique.needs}
CLAIMS_OF_EXTRA = {"H2s", "H2s-additive", "H2s-additive-log", "H3-int8-ptq", "H3-int8-qat", "H7"}


@pytest.fixture
def bare() -> Iterator[None]:
    """The extra is not installed. Plans that are kept for other tests were made before."""
    for tier, claims in product(TIERS, ("core", "all")):
        planned(tier, claims)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(techniques, "available", lambda: False)
        yield


@needs_extra
@pytest.mark.parametrize("claims", ["core", "all"])
@pytest.mark.parametrize("tier", TIERS)
def test_without_the_extra_its_claims_say_what_to_install_and_everything_else_is_planned(
    bare: None, tier: str, claims: str
) -> None:
    plan = prepare("orthogonality", tier=tier, claims=claims, seeds=1, device="cpu", fetch=False).plan
    whole = planned(tier, claims).plan
    assert MISSING == "not run: install kdbench-orthogonality[techniques]"
    silent = {claim.id for claim in plan.claims if claim.not_tested == MISSING}
    assert silent == CLAIMS_OF_EXTRA & {claim.id for claim in whole.claims}
    assert {claim.id: claim for claim in plan.claims if claim.id not in silent} == {
        claim.id: claim for claim in whole.claims if claim.id not in silent
    }
    lost = measured(whole) - measured(plan)
    assert measured(plan) < measured(whole)
    assert {cell.split("/")[2] for cell in lost} <= {*NEED_EXTRA, *STACKS}
    assert set(plan.specs) < set(whole.specs)
    assert all(not unpack(spec.stage).technique.needs for spec in plan.specs.values() if "technique" in spec.stage)


def test_a_claim_of_the_extra_asked_for_by_name_is_planned_without_a_stage(bare: None) -> None:
    plan = prepare("orthogonality", tier="smoke", claims="H7", seeds=1, device="cpu", fetch=False).plan
    assert [claim.not_tested for claim in plan.claims] == [MISSING]
    assert (plan.specs, plan.measurements) == ({}, ())


@pytest.mark.slow
def test_a_run_without_the_extra_finishes_and_its_report_says_what_to_install(bare: None, tmp_path: Path) -> None:
    wanted = "H1,H1-ft,H2p,H2s,H3-int8-ptq,H7"
    result = reproduce("orthogonality", tier="smoke", claims=wanted, seeds=1, executor="inline", store=tmp_path)
    assert result.complete, result.run.failures
    words = result.verdicts().set_index("claim")["gain"]
    assert set(words.index[words == "not tested"]) == {"H2s", "H3-int8-ptq", "H7"}
    assert {value.cell.split("/")[2] for value in result.run.values} >= {"none", "none+ft", "prune50"}
    assert all(value.value is not None for value in result.run.values)
    shown = " ".join(terminal(result).split())
    assert shown.count(MISSING) == 3


def terminal(result: Reproduction) -> str:
    """What ``kdbench report`` shows."""
    console = Console(file=io.StringIO(), width=200)
    show_result(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------------ other versions


def test_stages_say_which_library_they_were_planned_with() -> None:
    made = [unpack(spec.stage) for spec in planned().plan.specs.values()]
    compressing = [each for each in made if isinstance(each, Compress)]
    assert {each.technique.needs for each in compressing} >= {""}
    for each in compressing:
        library = each.technique.needs
        assert each.made_with == (f"{library} {version(library.replace('_', '-'))}" if library else "")


@needs_extra
def test_with_another_version_exactly_the_stages_that_need_the_library_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = planned().plan
    monkeypatch.setattr(techniques, "version", lambda name: "99.0" if name == "torchao" else version(name))
    after = prepare("orthogonality", tier="laptop", claims="all", seeds=1, device="cpu", fetch=False).plan
    assert measured(after) == measured(before)
    gone = [before.specs[key] for key in set(before.specs) - set(after.specs)]
    come = [after.specs[key] for key in set(after.specs) - set(before.specs)]
    eight_bits = [key for key, spec in before.specs.items() if "Int8" in str(spec.stage.get("technique"))]
    assert {spec.hash for spec in gone} == set(eight_bits)
    assert len(come) == len(gone) == 7  # after training and with it, each without and with a teacher; three stacks
    assert {spec.stage["made_with"] for spec in come} == {"torchao 99.0"}


# ----------------------------------------------------------------------------------------------------------- whole runs


@needs_extra
@pytest.mark.slow
def test_stacks_measure_about_the_bytes_that_they_were_planned_with(tmp_path: Path) -> None:
    result = reproduce("orthogonality", tier="smoke", claims="H7", seeds=1, executor="inline", store=tmp_path)
    assert result.complete, result.run.failures
    values = {value.cell.removeprefix("stack/mnist1d-pool/"): value.value for value in result.run.values}
    data = DATASETS["mnist1d-pool"].expected()
    networks = stacked("smoke", data)
    for name in STACKS:
        assert values[f"{name}/bytes"] == stack_bytes(name, networks[name], data)
        assert values[f"{name}/bytes"] == pytest.approx(values["triple/bytes"], rel=0.1)
        assert values[f"{name}/accuracy"] is not None
        assert 0 < values[f"{name}/accuracy"] <= 100

"""The study as a plan: what pairs share, who teaches whom, and what is left out where something is missing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from orth_models import needs_extra
from rich.console import Console

from kdbench import reproduce
from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.data import DATASETS
from kdbench.paper import TIERS
from kdbench.report.terminal import show_result
from kdbench.result import Reproduction
from kdbench.stages import Teacher, Train
from kdbench.study import Node
from kdbench_orthogonality import techniques
from kdbench_orthogonality.compress import Compress
from kdbench_orthogonality.interaction import CONTROLS, control_of
from kdbench_orthogonality.recipes import MATCHES, MEMBERS, STACKS, method, stack_bytes, stacked
from kdbench_orthogonality.stages import Decompose, MatchConfidence
from kdbench_orthogonality.study import COMPRESSED, MISSING
from kdbench_orthogonality.techniques import Int8, Prune, Structured

DATASET = {"smoke": "mnist1d-pool", "laptop": "mnist1d-pool", "full": "cifar100"}
DURING = ("separable", "mixup", "cutmix", "label-smoothing", "weight-decay", "dropout")
NEED_EXTRA = {name for name, technique in COMPRESSED.items() if technique.library}
CLAIMS_OF_EXTRA = {"H2s", "H2s-additive", "H2s-additive-log", "H3-int8-ptq", "H3-int8-qat", "H7"}


@cache
def planned(tier: str = "laptop", claims: str = "all", seeds: int = 1) -> Prepared:
    return prepare("orthogonality", tier=tier, claims=claims, seeds=seeds, device="cpu", fetch=False)


def node(cell: str, tier: str = "laptop", seed: int | None = None) -> Node:
    table, _, rest = cell.partition("/")
    return planned(tier, seeds=1 if seed is None else seed + 1).plan.node(f"{table}/{DATASET[tier]}/{rest}", seed)


def stage(found: Node) -> Any:
    return unpack(found.spec.stage)


def trained(found: Node) -> Train:
    made = stage(found)
    assert isinstance(made, Train)
    return made


def teachers(found: Node) -> list[Node]:
    """The networks that taught a student."""
    return [each.inputs["network"] for role, each in found.inputs.items() if role.startswith("teacher")]


def teacher(found: Node) -> Node:
    (only,) = teachers(found)
    return only


def measured(plan: Any) -> set[str]:
    return {measurement.cell for measurement in plan.measurements}


# --------------------------------------------------------------------------------------------------------------- plans

NO_TORCH = """
import json, sys
from kdbench.api import prepare
found = {}
for tier in ("smoke", "laptop", "full"):
    for claims in ("core", "all"):
        plan = prepare("orthogonality", tier=tier, claims=claims, seeds=1, device="cpu", fetch=False).plan
        found[f"{tier} {claims}"] = sorted(plan.specs)
heavy = [name for name in ("torch", "torch_pruning", "torchao") if name in sys.modules]
print(json.dumps({"plans": found, "heavy": heavy}))
"""


def test_every_plan_is_built_without_torch_and_is_the_same_in_another_process() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert len(found["plans"]) == 6
    for name, hashes in found["plans"].items():
        assert hashes == sorted(planned(*name.split()).plan.specs), name


def test_labels_tell_all_stages_apart() -> None:
    for tier in TIERS:
        labels = [spec.label for spec in planned(tier).plan.specs.values()]
        # Teacher stages of one network differ in the cache that they leave, which nobody has to read of a label, and
        # trainings of one network in their examples.
        assert all(labels)
    assert len({node(f"accuracy/{name}/KD").spec.label for name in COMPRESSED}) == len(COMPRESSED)
    assert len({node(f"stack/{name}/accuracy").spec.label for name in STACKS}) == len(STACKS)


def test_seeds_share_nothing_and_cost_the_same() -> None:
    one, two = planned(claims="core").plan, planned(claims="core", seeds=2).plan
    assert set(one.specs) < set(two.specs)
    assert len(two.specs) == 2 * len(one.specs)


@needs_extra
@pytest.mark.parametrize("claims", ["core", "all"])
def test_every_cell_of_every_tested_claim_is_measured_at_laptop(claims: str) -> None:
    plan = planned(claims=claims).plan
    cells = measured(plan)
    tested = [claim for claim in plan.claims if not claim.not_tested]
    assert {claim.id for claim in plan.claims if claim.not_tested} <= {"C1", "C3", "C4"}
    assert len(tested) == (21 if claims == "core" else len(plan.claims) - 3)
    for claim in tested:
        assert set(claim.cells()) <= cells, claim.id
    assert plan.lab.left_out == {}


@needs_extra
def test_what_full_does_not_have_is_said() -> None:
    plan = planned("full").plan
    reasons = {claim.id: claim.not_tested for claim in plan.claims if claim.not_tested}
    assert reasons.keys() - {"C1", "C3", "C4"} == {"H5-dropout", "H5-dropout-additive", "H6"}
    assert reasons["H5-dropout"] == "not run: the ResNets of tier full have no dropout"
    assert reasons["H6"] == "not run: the ResNets of tier full differ in depth alone"
    cells = measured(plan)
    assert all(set(claim.cells()) <= cells for claim in plan.claims if not claim.not_tested)
    assert {"grid/cifar100/w1-d2/KD", "grid/cifar100/w1-d6/CE"} <= cells


# -------------------------------------------------------------------------------------------------------- the factorial


def pair(name: str, tier: str = "laptop") -> tuple[Node, Node]:
    return node(f"accuracy/{name}/CE", tier), node(f"accuracy/{name}/KD", tier)


@pytest.mark.parametrize("name", ["none", *DURING])
def test_pairs_share_initialisation_order_and_epochs(name: str) -> None:
    plain, distilled = map(trained, pair(name))
    # The weights at the start and the order of examples follow from these.
    assert (plain.network, plain.recipe, plain.restart) == (distilled.network, distilled.recipe, distilled.restart)
    assert plain.restart == 0
    assert pair(name)[0].spec.seed == pair(name)[1].spec.seed == 0
    assert not teachers(pair(name)[0])


@needs_extra
@pytest.mark.parametrize("name", COMPRESSED)
def test_pairs_of_a_compressed_student_come_from_the_pair_without_technique(name: str) -> None:
    for found, origin in zip(pair(name), pair("none"), strict=True):
        made = stage(found)
        assert isinstance(made, Compress)
        assert made.technique == COMPRESSED[name]
        assert found.inputs["network"] is origin
    plain, distilled = map(stage, pair(name))
    assert plain.recipe == distilled.recipe
    assert not teachers(pair(name)[0])


@needs_extra
def test_one_teacher_teaches_every_arm_of_a_seed() -> None:
    names = [*DURING, "none", *COMPRESSED]
    found = {teacher(node(f"accuracy/{name}/KD")).spec.hash for name in names}
    (only,) = found
    made = trained(teacher(node("accuracy/none/KD")))
    how = method(tier="laptop", data=DATASETS["mnist1d-pool"].expected(), seed=0)
    # No technique touches it, and its weights are not those that a student of its network would begin with.
    assert (made.network, made.recipe, made.restart) == (how.nets.teacher, how.recipe, 1)
    assert made.objective.label == ""
    assert only == teacher(node("stack/triple/accuracy").inputs["network"]).spec.hash


def test_seeds_have_training_sets_and_teachers_of_their_own() -> None:
    found = [node("accuracy/none/KD", seed=seed) for seed in (0, 1)]
    samples = [trained(each).recipe.sample for each in found]
    assert [each.number for each in samples if each is not None] == [0, 1]
    for each, sample in zip(found, samples, strict=True):
        assert trained(teacher(each)).recipe.sample == sample
    assert teacher(found[0]).spec.hash != teacher(found[1]).spec.hash


@needs_extra
def test_each_technique_is_compared_with_the_control_that_has_its_epochs() -> None:
    for name in [*DURING, *COMPRESSED]:
        if name in CONTROLS:
            continue
        measurement = next(
            m for m in planned().plan.measurements if m.cell == f"interaction/mnist1d-pool/{name}/accuracy"
        )
        assert {each.spec.hash for each in measurement.quantity.nodes} == {
            each.spec.hash for arm in (name, control_of(name)) for each in pair(arm)
        }
        mine, control = stage(pair(name)[0]), stage(pair(control_of(name))[0])
        further = mine.recipe.epochs if isinstance(mine, Compress) else 0
        assert further == (control.recipe.epochs if isinstance(control, Compress) else 0), name
        assert further == (0 if name in ("int8-ptq", *DURING) else 25), name


@needs_extra
def test_8_bits_after_training_are_not_trained_further() -> None:
    assert control_of("int8-ptq") == "none"
    assert [stage(each).recipe.epochs for each in pair("int8-ptq")] == [0, 0]
    assert [stage(each).recipe.epochs for each in pair("int8-qat")] == [25, 25]


def test_the_student_of_the_grid_is_the_factorials() -> None:
    for column in ("CE", "KD"):
        assert node(f"grid/w1-d4/{column}") is node(f"accuracy/none/{column}")
    for column in ("CE", "KD"):
        assert len({node(f"grid/w{w}-d{d}/{column}").spec.hash for w in (1, 2) for d in (2, 4, 6)}) == 6


# --------------------------------------------------------------------------------------------------- orders and stacks


def test_orders_of_pruning_and_distillation() -> None:
    plain, distilled = pair("none")
    expected = {"prune-KD": (plain, True), "KD-prune": (distilled, False), "joint": (distilled, True)}
    for name, (origin, taught) in expected.items():
        found = node(f"order/{name}")
        assert found.inputs["network"] is origin
        assert bool(teachers(found)) == taught
        assert stage(found).technique == Prune(amount=0.5)
        assert stage(found).recipe.epochs == 25
    assert node("order/joint") is node("accuracy/prune50/KD")


def test_staged_quantisation_has_the_epochs_of_the_naive_one() -> None:
    naive, second = node("order/naive-qat3"), node("order/staged-qat3")
    first = second.inputs["network"]
    assert stage(naive).technique == stage(first).technique == stage(second).technique == COMPRESSED["qat3"]
    assert naive.inputs["network"] is first.inputs["network"] is pair("none")[0]
    assert (bool(teachers(naive)), bool(teachers(first)), bool(teachers(second))) == (True, False, True)
    assert stage(first).recipe.epochs + stage(second).recipe.epochs == stage(naive).recipe.epochs


@needs_extra
@pytest.mark.parametrize("name", STACKS)
def test_stacks_apply_their_techniques_in_turn_for_the_same_epochs(name: str) -> None:
    found, applied, further = node(f"stack/{name}/accuracy"), [], 0
    while isinstance(stage(found), Compress):
        applied.insert(0, stage(found).technique)
        further += stage(found).recipe.epochs
        assert teacher(found) is teacher(node("accuracy/none/KD"))
        found = found.inputs["network"]
    kinds = {"prune": Structured(ratio=1 / 3), "int8": Int8(training=False)}
    assert applied == [kinds[part] for part in STACKS[name] if part in kinds]
    assert further == 25
    how = method(tier="laptop", data=DATASETS["mnist1d-pool"].expected(), seed=0)
    made = trained(found)
    assert (made.recipe, made.objective) == (how.recipe, how.distillation)
    assert made.network == stacked("laptop", DATASETS["mnist1d-pool"].expected())[name]


# --------------------------------------------------------------------------------------------------- the ensemble side


def members(arm: str) -> list[Node]:
    found = node(f"ensemble/{arm}/variance")
    assert isinstance(stage(found), Decompose)
    return [found.inputs[str(number)] for number in range(len(found.inputs))]


def sets(nodes: list[Node]) -> list[Any]:
    return [trained(each).recipe.sample for each in nodes]


@pytest.mark.parametrize("arm", ["CE", "LS", "KD-own", "KD-fixed"])
def test_members_of_an_arm_differ_in_their_training_set_alone(arm: str) -> None:
    found = members(arm)
    assert len(found) == MEMBERS
    assert [sample.number - sets(found)[0].number for sample in sets(found)] == list(range(MEMBERS))
    assert sets(found) == sets(members("CE"))
    assert len({trained(each).objective for each in found}) == 1
    assert {each.network for each in found} == {planned_nets().member}


def planned_nets() -> Any:
    return method(tier="laptop", data=DATASETS["mnist1d-pool"].expected(), seed=0).nets


def test_own_teachers_know_the_students_set_and_the_foreign_one_a_set_that_nobody_else_has() -> None:
    own = members("KD-own")
    assert [trained(teacher(each)).recipe for each in own] == [trained(each).recipe for each in own]
    (foreign,) = {teacher(each).spec.hash: teacher(each) for each in members("KD-fixed")}.values()
    sample = trained(foreign).recipe.sample
    everywhere = [
        spec.stage["recipe"]["sample"]["number"]
        for spec in planned().plan.specs.values()
        if spec.hash != foreign.spec.hash and "recipe" in spec.stage and spec.stage["recipe"]["sample"]
        and spec.stage["recipe"]["sample"]["size"] == 1_000 and "Compress" not in spec.stage["type"]
        and spec.stage["recipe"]["holdout"]
    ]  # fmt: skip
    assert sample is not None
    assert sample.number == sets(own)[-1].number + 1
    assert everywhere
    assert sample.number not in everywhere
    assert {trained(foreign).network} == {trained(teacher(each)).network for each in own}


def test_confidence_is_matched_set_by_set_among_strengths_from_none_on() -> None:
    for number, found in enumerate(members("LS-matched")):
        assert isinstance(stage(found), MatchConfidence)
        assert found.inputs["target"] is members("KD-own")[number]
        trials = [found.inputs[str(place)] for place in range(len(MATCHES) + 1)]
        assert trials[0] is members("CE")[number]
        assert [trained(each).objective.epsilon for each in trials[1:]] == list(MATCHES)  # type: ignore[attr-defined]
        assert {trained(each).recipe for each in trials} == {trained(members("CE")[number]).recipe}
    assert members("LS")[0] in members("LS-matched")[0].inputs.values()


def test_bagged_teachers_are_of_resamples_of_the_first_set_and_teach_a_student_of_that_set() -> None:
    bagged = node("ensemble/KD-bagged/single")
    assert len(teachers(bagged)) == MEMBERS
    (first,) = {sample for sample in [trained(members("CE")[0]).recipe.sample] if sample is not None}
    assert trained(bagged).recipe == trained(members("CE")[0]).recipe
    for number, each in enumerate(teachers(bagged)):
        sample = trained(each).recipe.sample
        assert sample is not None
        assert (sample.size, sample.number, sample.bootstrap) == (first.size, first.number, number)
    assert [teacher(each) for each in members("KD-boot")] == teachers(bagged)
    assert sets(members("CE-boot")) == sets(members("KD-boot")) == sets(teachers(bagged))


# --------------------------------------------------------------------------------------------- augmentation and inputs


def test_frozen_outputs_are_of_inputs_that_stay_and_redrawn_ones_of_those_that_move() -> None:
    frozen, redrawn = node("teacher-outputs/frozen"), node("teacher-outputs/redrawn")
    assert trained(frozen) == trained(redrawn)
    assert trained(frozen).recipe.augmentation == "shift"
    assert teacher(frozen) is teacher(redrawn) is teacher(node("accuracy/none/KD"))
    kept, drawn = (stage(each.inputs["teacher"]) for each in (frozen, redrawn))
    assert isinstance(kept, Teacher)
    assert (kept.cache, drawn.cache) == (True, False)


def test_further_inputs_come_to_a_student_of_the_same_teacher() -> None:
    less, more = node("unlabelled/KD"), node("unlabelled/KD-extra")
    assert teacher(less) is teacher(more)
    half = trained(less).recipe.sample
    assert trained(more).recipe.sample == trained(teacher(less)).recipe.sample == half
    assert trained(less).recipe.unlabelled is None
    assert trained(more).recipe.unlabelled is not None
    assert trained(teacher(less)).recipe.unlabelled is None


# ----------------------------------------------------------------------------------------------- without the libraries


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not installed."""
    monkeypatch.setattr(techniques, "available", lambda: False)


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
    assert all(not unpack(spec.stage).technique.library for spec in plan.specs.values() if "technique" in spec.stage)


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

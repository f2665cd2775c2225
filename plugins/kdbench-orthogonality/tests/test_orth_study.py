"""The factorial as a plan: what pairs share, who teaches whom, and in which order techniques are applied."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from orth_models import needs_extra
from orth_plans import how, measured, measurement, node, pair, planned, stage, teacher, teachers, trained

from kdbench.data import DATASETS
from kdbench.paper import TIERS
from kdbench.training import CrossEntropy
from kdbench_orthogonality.compress import Compress
from kdbench_orthogonality.interaction import CONTROLS, control_of
from kdbench_orthogonality.recipes import STACKS, stacked
from kdbench_orthogonality.study import COMPRESSED
from kdbench_orthogonality.techniques import Int8, Prune, Structured

DURING = ("separable", "mixup", "cutmix", "label-smoothing", "weight-decay", "dropout")

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
    assert len(tested) == (23 if claims == "core" else len(plan.claims) - 3)
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
    # No technique touches it, and its weights are not those that a student of its network would begin with.
    assert (made.network, made.recipe, made.restart) == (how().nets.teacher, how().recipe, 1)
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
        quantity = measurement(f"interaction/{name}/accuracy").quantity
        assert {each.spec.hash for each in quantity.nodes} == {
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
    for column in ("CE", "KD", "bytes"):
        assert len({node(f"grid/w{w}-d{d}/{column}").spec.hash for w in (1, 2) for d in (2, 4, 6)}) == 6


@pytest.mark.parametrize("cell", ["grid/w2-d6/{}", "accuracy/prune50/{}"])
def test_bytes_are_those_of_the_distilled_student(cell: str) -> None:
    of = cell.replace("accuracy", "front").format("bytes")
    quantity = measurement(of).quantity
    (only,) = quantity.nodes
    assert only is node(cell.format("KD"))
    record: Any = SimpleNamespace(notes={"sizes": {"bytes": 12_904, "parameters": 3_226}})
    assert quantity.read({only.spec.hash: record}) == 12_904.0


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


def test_staged_quantisation_differs_from_the_naive_one_in_who_teaches_the_first_half() -> None:
    first, second = how().halves()
    found = {name: node(f"order/{name}") for name in ("naive-qat3", "staged-qat3")}
    halfway = {name: each.inputs["network"] for name, each in found.items()}
    assert halfway["naive-qat3"].inputs["network"] is halfway["staged-qat3"].inputs["network"] is pair("none")[0]
    for nodes, recipe in ((halfway, first), (found, second)):
        assert {stage(each).technique for each in nodes.values()} == {COMPRESSED["qat3"]}
        assert {stage(each).recipe for each in nodes.values()} == {recipe}
    assert first.epochs + second.epochs == how().fine_tuning.epochs
    # Distillation all along, or after a first half on the labels; one teacher and one cycle each of equal length.
    assert {name: stage(each).objective for name, each in halfway.items()} == {
        "naive-qat3": how().distillation,
        "staged-qat3": CrossEntropy(),
    }
    assert [bool(teachers(each)) for each in halfway.values()] == [True, False]
    assert stage(found["naive-qat3"]) == stage(found["staged-qat3"])
    assert stage(found["naive-qat3"]).objective == how().distillation
    assert found["naive-qat3"].inputs["teacher"] is found["staged-qat3"].inputs["teacher"]
    assert teacher(found["naive-qat3"]) is teacher(node("accuracy/none/KD"))


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
    made = trained(found)
    assert (made.recipe, made.objective) == (how().recipe, how().distillation)
    assert made.network == stacked("laptop", DATASETS["mnist1d-pool"].expected())[name]

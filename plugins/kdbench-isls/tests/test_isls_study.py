"""The study as a plan: which stages it asks for, what they share, and which cells they fill. Nothing is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest

from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.stages import Train
from kdbench.study import Node
from kdbench.training import CrossEntropy, LabelSmoothing
from kdbench_isls.association import partial_rank_correlation
from kdbench_isls.objectives import (
    BetaSmoothing,
    EntropyPenalty,
    FlatTarget,
    FlooredSmoothing,
    MatchedSmoothing,
    SelfDistillation,
)
from kdbench_isls.recipes import GRID_A, GRID_ENTROPY, TEMPERATURES
from kdbench_isls.study import _association

ROW = {"smoke": "plain2/mnist1d/noise-20", "laptop": "plain4/mnist1d/noise-20", "full": "resnet34/cifar100/noise-0"}
CORE_ARMS = {"CE", "LS", "LS-matched", "SD-g1", "SD-g2", "SD-g3", "Beta", "shuffled"}
CONTROLS = {"reversed", "student-ranked", "quantile", "SD-flat", "SD-permuted", "entropy"}
CORE_CLAIMS = {
    "H1", "H2", "H2-all", "H2-variance", "H3", "H4", "H4-ece", "H4-nll", "H4-scaled", "H5", "H5-noise", "H6-beta", "M1",
}  # fmt: skip
SMOOTHED = {"clean": LabelSmoothing, "released": FlooredSmoothing}
EXPECTED_T = {"released": 4.0, "clean": 1.0}


@cache
def planned(tier: str = "smoke", protocol: str = "clean", claims: str = "all", seeds: int = 1) -> Prepared:
    return prepare("isls", tier=tier, protocol=protocol, claims=claims, seeds=seeds, device="cpu", fetch=False)


def node_of(cell: str, tier: str = "smoke", protocol: str = "clean", row: str = "") -> Node:
    table, column = cell.split("/")
    return planned(tier, protocol).plan.node(f"{table}/{row or ROW[tier]}/{column}")


def trained(node: Node) -> Train:
    stage = unpack(node.spec.stage)
    assert isinstance(stage, Train)
    return stage


def teacher_of(node: Node) -> Node:
    return node.inputs["teacher"].inputs["network"]


def kinds(prepared: Prepared) -> Counter[str]:
    return Counter(spec.stage["type"].partition(":")[2] for spec in prepared.plan.specs.values())


# --------------------------------------------------------------------------------------------------------------- plans

NO_TORCH = """
import json, sys
from kdbench.api import prepare
found = {}
for tier in ("smoke", "laptop", "full"):
    for protocol in ("released", "clean"):
        for claims in ("core", "all"):
            plan = prepare("isls", tier=tier, protocol=protocol, claims=claims, seeds=1, device="cpu", fetch=False).plan
            found[f"{tier} {protocol} {claims}"] = sorted(plan.specs)
print(json.dumps({"plans": found, "torch": "torch" in sys.modules}))
"""


def test_every_plan_is_built_without_torch_and_is_the_same_in_another_process() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert not found["torch"]
    assert len(found["plans"]) == 12
    for name, hashes in found["plans"].items():
        tier, protocol, claims = name.split()
        assert hashes == sorted(planned(tier, protocol, claims).plan.specs), name


@pytest.mark.parametrize("protocol", ["released", "clean"])
@pytest.mark.parametrize("tier", ["smoke", "laptop"])
def test_core_stages_of_one_seed(tier: str, protocol: str) -> None:
    # The eight arms; generations 0, 1 and 2 teach, generation 0 all arms that have a teacher; two measuring stages.
    expected = {"Train": 8, "Teacher": 3, "Calibrate": 1, "TeacherStatistics": 1}
    assert kinds(planned(tier, protocol, "core")) == expected


def test_core_stages_at_full_are_of_both_networks_and_no_other_level_of_noise() -> None:
    core, whole = planned("full", claims="core"), planned("full")
    assert kinds(core) == {"Train": 16, "Teacher": 6, "Calibrate": 2, "TeacherStatistics": 2}
    for prepared in (core, whole):
        rows = {m.cell.split("/", 1)[1].rpartition("/")[0] for m in prepared.plan.measurements}
        assert rows == {"resnet34/cifar100/noise-0", "densenet100/cifar100/noise-0"}
        assert {
            spec.stage["recipe"]["label_noise"] for spec in prepared.plan.specs.values() if "recipe" in spec.stage
        } == {0.0}


def test_seeds_share_nothing_and_cost_the_same() -> None:
    assert kinds(planned(seeds=2)) == {name: 2 * count for name, count in kinds(planned()).items()}


def test_laptop_has_ten_seeds_by_default() -> None:
    found = {}
    for tier in ("smoke", "laptop", "full"):
        found[tier] = len(prepare("isls", tier=tier, device="cpu", fetch=False).request.seeds)
    assert found == {"smoke": 1, "laptop": 10, "full": 5}


def test_protocols_share_no_student() -> None:
    one, other = (set(planned(protocol=protocol).plan.specs) for protocol in ("released", "clean"))
    assert not one & other


# -------------------------------------------------------------------------------------------------------------- claims


def test_which_claims_are_core() -> None:
    assert {claim.id for claim in planned(claims="core").plan.claims} == CORE_CLAIMS


@pytest.mark.parametrize("protocol", ["released", "clean"])
@pytest.mark.parametrize("claims", ["core", "all"])
def test_every_cell_of_a_claim_is_measured(claims: str, protocol: str) -> None:
    for tier in ("smoke", "laptop", "full"):
        plan = planned(tier, protocol, claims).plan
        measured = {m.cell for m in plan.measurements}
        for claim in plan.claims:
            assert set(claim.cells()) <= measured, (tier, claim.id)


def test_smoke_measures_the_core_arms_in_every_table() -> None:
    found: dict[str, set[str]] = {}
    for measurement in planned(claims="core").plan.measurements:
        table, *row, column = measurement.cell.split("/")
        assert "/".join(row) == ROW["smoke"]
        found.setdefault(table, set()).add(column)
    for table in ("accuracy", "nll", "ece", "ece20", "scaled-nll", "scaled-ece"):
        assert found[table] == CORE_ARMS
    assert found["target"] == CORE_ARMS - {"CE"}
    for table in ("uncertainty", "diversity", "variance", "confidence", "diversity-all", "variance-all"):
        assert found[table] == {"g0", "g1", "g2", "g3"}
    # What costs nothing more is kept too: the chain at the default temperature is one of the sweep.
    chain = {f"T{EXPECTED_T['clean']:g}-g{number}" for number in range(4)}
    assert found["accuracy-by-T"] == chain | {f"T{temperature:g}-g0" for temperature in TEMPERATURES}
    assert not {"association", "tuned"} & found.keys()


def test_all_claims_measure_every_arm_at_every_level_of_noise() -> None:
    cells = {m.cell for m in planned().plan.measurements}
    for noise in (0, 20, 40):
        row = f"plain2/mnist1d/noise-{noise}"
        assert {f"accuracy/{row}/{arm}" for arm in CORE_ARMS | CONTROLS} <= cells
        assert {f"tuned/{row}/{arm}" for arm in ("CE", "LS", "SD", "Beta", "entropy")} <= cells
        for table in ("accuracy", "uncertainty", "diversity", "variance", "confidence"):
            assert {f"{table}-by-T/{row}/T{t:g}-g{g}" for t in TEMPERATURES for g in range(4)} <= cells
        assert {f"target/{row}/{arm}" for arm in (CORE_ARMS | CONTROLS) - {"CE", "entropy"}} <= cells
        assert {cell for cell in cells if cell.startswith(f"association/{row}/")} == {f"association/{row}/partial"}
        for table in ("diversity-all", "variance-all"):
            assert {cell for cell in cells if cell.startswith(f"{table}/{row}/")} == {
                f"{table}/{row}/g{number}" for number in range(4)
            }


def test_statistics_over_all_examples_stand_beside_those_over_rightly_labelled_ones() -> None:
    for measurement in planned(claims="core").plan.measurements:
        table, *_, column = measurement.cell.split("/")
        if table in ("uncertainty", "diversity", "variance", "confidence", "diversity-all", "variance-all"):
            (node,) = measurement.quantity.nodes
            assert node.spec.hash == node_of(f"diversity/{column}").spec.hash
            assert measurement.quantity.name == node.metric(f"train.{table}.{column}").name


@pytest.mark.parametrize("noise", [0, 20, 40])
def test_a_cell_stands_at_the_noise_that_its_network_was_trained_with(noise: int) -> None:
    for cell in ("accuracy/CE", "accuracy/SD-g3", "accuracy/Beta", "accuracy-by-T/T4-g2"):
        node = node_of(cell, row=f"plain2/mnist1d/noise-{noise}")
        assert trained(node).recipe.label_noise == noise / 100
    for table in ("ece/Beta", "diversity/g1"):
        node = node_of(table, row=f"plain2/mnist1d/noise-{noise}")
        assert unpack(node.spec.stage).label_noise == noise / 100
        assert {trained(net).recipe.label_noise for net in node.inputs.values()} == {noise / 100}


# ---------------------------------------------------------------------------------------------------------------- arms

OBJECTIVES: dict[str, Any] = {
    "CE": CrossEntropy,
    "LS": LabelSmoothing,
    "LS-matched": MatchedSmoothing,
    "SD-g1": SelfDistillation,
    "SD-g2": SelfDistillation,
    "SD-g3": SelfDistillation,
    "Beta": BetaSmoothing,
    "shuffled": BetaSmoothing,
    "reversed": BetaSmoothing,
    "student-ranked": BetaSmoothing,
    "quantile": BetaSmoothing,
    "SD-flat": FlatTarget,
    "SD-permuted": SelfDistillation,
    "entropy": EntropyPenalty,
}


@pytest.mark.parametrize("protocol", ["released", "clean"])
@pytest.mark.parametrize("arm", sorted(OBJECTIVES))
def test_arms_differ_in_their_objective_alone(arm: str, protocol: str) -> None:
    """One initialisation and order of examples for all arms, that of generation 1; later generations start anew."""
    stage, scratch = (trained(node_of(f"accuracy/{name}", protocol=protocol)) for name in (arm, "CE"))
    assert type(stage.objective) is (SMOOTHED[protocol] if arm == "LS" else OBJECTIVES[arm])
    assert stage.restart == {"CE": 0, "SD-g2": 2, "SD-g3": 3}.get(arm, 1)
    assert (stage.network, stage.recipe) == (scratch.network, scratch.recipe)
    assert node_of(f"accuracy/{arm}", protocol=protocol).spec.seed == 0


def test_label_smoothing_is_computed_as_each_reading_computes_its_soft_terms() -> None:
    clean, released = (trained(node_of("accuracy/LS", protocol=name)).objective for name in ("clean", "released"))
    assert clean == LabelSmoothing(epsilon=pytest.approx(0.15), over="others")
    assert released == FlooredSmoothing(epsilon=pytest.approx(0.15), log_floor=1e-8)
    beta = trained(node_of("accuracy/Beta", protocol="released")).objective
    assert isinstance(beta, BetaSmoothing)
    assert beta.log_floor == 1e-8


def test_no_two_arms_are_one_and_their_labels_tell_them_apart() -> None:
    nodes = [node_of(f"accuracy/{arm}") for arm in OBJECTIVES]
    assert len({node.spec.hash for node in nodes}) == len(OBJECTIVES)
    assert len({node.spec.label for node in nodes}) == len(OBJECTIVES)


def test_who_teaches_whom() -> None:
    scratch = node_of("accuracy/CE").spec.hash
    for arm in ("SD-g1", "SD-flat", "SD-permuted", "LS-matched"):
        assert teacher_of(node_of(f"accuracy/{arm}")).spec.hash == scratch
    for number in (2, 3):
        assert (
            teacher_of(node_of(f"accuracy/SD-g{number}")).spec.hash == node_of(f"accuracy/SD-g{number - 1}").spec.hash
        )
    for arm in ("CE", "LS", "Beta", "shuffled", "reversed", "student-ranked", "quantile", "entropy"):
        assert not node_of(f"accuracy/{arm}").inputs


def test_controls_differ_from_beta_in_one_thing_each() -> None:
    def fields(arm: str) -> dict[str, Any]:
        objective = trained(node_of(f"accuracy/{arm}")).objective
        return {name: getattr(objective, name) for name in objective.__struct_fields__}

    beta = fields("Beta")
    assert (beta["a"], beta["alpha"], beta["ranking"], beta["values"]) == (3.0, 0.6, "average", "draws")
    changes = {
        "shuffled": {"ranking": "none"},
        "reversed": {"ranking": "reversed"},
        "student-ranked": {"ranking": "student"},
        "quantile": {"values": "quantiles"},
    }
    for arm, change in changes.items():
        assert fields(arm) == beta | change
    assert fields("SD-permuted") == fields("SD-g1") | {"confidence": "permuted"}
    for arm in ("SD-flat", "LS-matched"):
        assert fields(arm) == {name: fields("SD-g1")[name] for name in ("temperature", "alpha")}


@pytest.mark.parametrize("protocol", ["released", "clean"])
def test_the_chain_at_the_default_temperature_is_that_of_the_sweep(protocol: str) -> None:
    default = EXPECTED_T[protocol]
    for number in (1, 2, 3):
        arm = node_of(f"accuracy/SD-g{number}", protocol=protocol)
        assert trained(arm).objective.temperature == default  # type: ignore[attr-defined]
        assert arm.spec.hash == node_of(f"accuracy-by-T/T{default:g}-g{number}", protocol=protocol).spec.hash
    for number in range(4):
        statistics = node_of(f"diversity/g{number}", protocol=protocol)
        assert statistics.spec.hash == node_of(f"diversity-by-T/T{default:g}-g{number}", protocol=protocol).spec.hash
        assert unpack(statistics.spec.stage).temperature == default


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_sweep_has_one_start_and_one_temperature_a_chain(temperature: float) -> None:
    name = f"accuracy-by-T/T{temperature:g}-g"
    chain = [node_of(f"{name}{number}") for number in range(4)]
    assert chain[0].spec.hash == node_of("accuracy/CE").spec.hash
    for number in (1, 2, 3):
        assert trained(chain[number]).objective.temperature == temperature  # type: ignore[attr-defined]
        assert trained(chain[number]).restart == number
        assert teacher_of(chain[number]).spec.hash == chain[number - 1].spec.hash
    statistics = node_of(f"diversity-by-T/T{temperature:g}-g0")
    assert unpack(statistics.spec.stage).temperature == temperature
    assert {role: node.spec.hash for role, node in statistics.inputs.items()} == {
        f"g{number}": node.spec.hash for number, node in enumerate(chain)
    }


def test_students_are_set_against_the_diversity_of_their_own_teacher() -> None:
    (partial,) = (m for m in planned().plan.measurements if m.cell == f"association/{ROW['smoke']}/partial")
    nodes = partial.quantity.nodes
    points = len(TEMPERATURES) * 3
    assert len(nodes) == 3 * points
    order = [(number, temperature) for temperature in TEMPERATURES for number in range(3)]
    for place, (number, temperature) in enumerate(order):
        student, diversity, uncertainty = (nodes[place + part * points] for part in range(3))
        assert student.spec.hash == node_of(f"accuracy-by-T/T{temperature:g}-g{number + 1}").spec.hash
        for statistics in (diversity, uncertainty):
            assert statistics.inputs[f"g{number}"].spec.hash == teacher_of(student).spec.hash
            assert unpack(statistics.spec.stage).temperature == temperature


def test_association_is_of_diversity_with_accuracy_given_uncertainty() -> None:
    accuracy, diversity, uncertainty = [1.0, 2, 3, 5, 4], [2.0, 1, 3, 4, 5], [5.0, 5, 2, 1, 3]
    expected = partial_rank_correlation(diversity, accuracy, uncertainty)
    assert _association(*accuracy, *diversity, *uncertainty) == pytest.approx(expected)
    assert expected != pytest.approx(partial_rank_correlation(accuracy, uncertainty, diversity))
    for wrong in (float("nan"), float("-inf")):
        found = _association(*accuracy, wrong, *diversity[1:], *uncertainty)
        assert found != found


def test_tuned_arms_choose_among_four_by_validation() -> None:
    grids = {
        "LS": [(LabelSmoothing, {"epsilon": 0.6 / (a + 1), "over": "others"}) for a in GRID_A],
        "entropy": [(EntropyPenalty, {"weight": weight}) for weight in GRID_ENTROPY],
        "SD": [(SelfDistillation, {"temperature": t, "alpha": 0.6}) for t in TEMPERATURES],
        "Beta": [(BetaSmoothing, {"a": a, "ranking": "average"}) for a in GRID_A],
    }
    for arm, grid in grids.items():
        node = node_of(f"tuned/{arm}")
        assert unpack(node.spec.stage).by == "validation"
        trials = list(node.inputs.values())
        assert len(trials) == 4
        for trial, (kind, fields) in zip(trials, grid, strict=True):
            objective = trained(trial).objective
            assert type(objective) is kind
            for name, value in fields.items():
                found = getattr(objective, name)
                assert found == (pytest.approx(value) if isinstance(value, float) else value)
            assert trained(trial).restart == 1
    plain = [trained(trial) for trial in node_of("tuned/CE").inputs.values()]
    assert len(plain) == 4
    assert len({stage.restart for stage in plain}) == 4
    assert not {1, 2, 3} & {stage.restart for stage in plain}
    assert {type(stage.objective) for stage in plain} == {CrossEntropy}


def test_tuned_label_smoothing_has_the_released_floor_where_the_reading_is() -> None:
    found = [trained(trial).objective for trial in node_of("tuned/LS", protocol="released").inputs.values()]
    assert found == [FlooredSmoothing(epsilon=pytest.approx(0.6 / (a + 1)), log_floor=1e-8) for a in GRID_A]


def test_calibration_and_teachers_use_the_recipes_split() -> None:
    for cell in ("ece/CE", "ece/entropy", "diversity/g0"):
        node = node_of(cell)
        stage, recipe = unpack(node.spec.stage), trained(node_of("accuracy/CE")).recipe
        assert (stage.holdout, stage.label_noise) == (recipe.holdout, recipe.label_noise)
    assert set(node_of("ece/CE").inputs) == CORE_ARMS
    assert set(node_of("ece/entropy").inputs) == CONTROLS

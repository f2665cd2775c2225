"""The ensemble side of the study as a plan: whose sets, whose teachers, whose initialisation; then inputs that move."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from orth_plans import how, measurement, node, pair, planned, stage, teacher, teachers, trained

from kdbench.stages import Teacher
from kdbench.study import Node
from kdbench.training import CrossEntropy
from kdbench_orthogonality.recipes import MEMBERS
from kdbench_orthogonality.stages import Decompose, DecomposeMatched
from kdbench_orthogonality.study import COLUMNS, recovered

ARMS = ("CE", "LS", "KD-own", "KD-fixed")
RESAMPLED = ("CE-boot", "KD-boot")


def members(arm: str) -> list[Node]:
    """The networks that are decomposed, of one arm."""
    found = node(f"ensemble/{arm}/variance")
    assert stage(found) == Decompose()
    return [found.inputs[str(number)] for number in range(len(found.inputs))]


def sets(nodes: list[Node]) -> list[Any]:
    return [trained(each).recipe.sample for each in nodes]


def restarts(nodes: list[Node]) -> list[int]:
    return [trained(each).restart for each in nodes]


def foreign_teacher() -> Node:
    (found,) = {teacher(each).spec.hash: teacher(each) for each in members("KD-fixed")}.values()
    return found


# ------------------------------------------------------------------------------------------------- sets and beginnings


@pytest.mark.parametrize("arm", ARMS)
def test_members_of_an_arm_are_alike_but_for_their_training_set_and_beginning(arm: str) -> None:
    found = members(arm)
    assert len(found) == MEMBERS
    assert sets(found) == sets(members("CE"))
    assert [sample.number - sets(found)[0].number for sample in sets(found)] == list(range(MEMBERS))
    assert len({trained(each).objective for each in found}) == 1
    assert [trained(each).recipe for each in found] == [how().member(number) for number in range(MEMBERS)]
    assert {each.network for each in found} == {how().nets.student}


@pytest.mark.parametrize("arm", [*ARMS, *RESAMPLED])
def test_members_of_a_set_share_their_beginning_across_arms_and_those_of_two_sets_do_not(arm: str) -> None:
    found = members(arm)
    # The weights at the start and the order of examples follow from seed, restart and the network's name.
    assert {each.spec.seed for each in found} == {0}
    assert restarts(found) == list(range(MEMBERS)) == restarts(members("CE"))
    assert {each.network for each in found} == {each.network for each in members("CE")}


def test_no_teacher_begins_as_another_or_as_a_student() -> None:
    own, resampled = ([teacher(each) for each in members(arm)] for arm in ("KD-own", "KD-boot"))
    assert len({*restarts(own), *restarts([foreign_teacher()])}) == MEMBERS + 1
    assert restarts(resampled) == restarts(own)
    students = {restart for arm in (*ARMS, *RESAMPLED) for restart in restarts(members(arm))}
    students |= {trained(node(f"ensemble/{arm}/single")).restart for arm in ("CE-whole", "KD-whole", "KD-bagged")}
    assert not students & {*restarts(own), *restarts(resampled), *restarts([foreign_teacher()])}


def test_arms_differ_in_what_they_are_trained_on() -> None:
    goals = {arm: trained(members(arm)[0]).objective for arm in (*ARMS, *RESAMPLED)}
    assert goals["CE"] == goals["CE-boot"] == CrossEntropy()
    assert goals["LS"] == how().smoothing()
    assert goals["KD-own"] == goals["KD-fixed"] == goals["KD-boot"] == how().distillation
    assert [bool(teachers(each)) for arm in goals for each in members(arm)] == [
        arm.startswith("KD") for arm in goals for _ in range(MEMBERS)
    ]


# ------------------------------------------------------------------------------------------------------------- teachers


def test_teachers_are_plain_networks_trained_as_long_as_their_students() -> None:
    taught = [*members("KD-own"), *members("KD-boot")]
    assert [trained(teacher(each)).recipe for each in taught] == [trained(each).recipe for each in taught]
    everyone = [*map(teacher, taught), foreign_teacher()]
    assert {trained(each).network for each in everyone} == {how().nets.teacher}
    assert {trained(each).objective for each in everyone} == {CrossEntropy()}
    assert trained(foreign_teacher()).recipe == how().member(MEMBERS)


def test_the_foreign_teachers_set_is_nobody_elses() -> None:
    foreign = foreign_teacher()
    sample = trained(foreign).recipe.sample
    recipes = [spec.stage["recipe"] for spec in planned().plan.specs.values()
               if spec.hash != foreign.spec.hash and spec.stage.get("recipe", {}).get("holdout")]  # fmt: skip
    assert recipes, "a tenth is held out on the ensemble side alone"
    assert sample is not None
    assert sample.number == sets(members("KD-own"))[-1].number + 1
    assert sample.number not in {recipe["sample"]["number"] for recipe in recipes}


def test_seeds_have_sets_of_their_own() -> None:
    found = [node("ensemble/KD-bagged/single", seed=seed) for seed in (0, 1)]
    numbers = [trained(each).recipe.sample for each in found]
    assert [each.number for each in numbers if each is not None] == [12, 12 + MEMBERS + 1]
    assert not {each.spec.hash for each in teachers(found[0])} & {each.spec.hash for each in teachers(found[1])}


# ----------------------------------------------------------------------------------------------------------- decomposed


def test_smoothed_members_are_decomposed_as_sure_as_those_with_teachers_of_their_own() -> None:
    found = node("ensemble/LS-matched/variance")
    assert stage(found) == DecomposeMatched()
    sharpened = {str(number): each for number, each in enumerate(members("LS"))}
    targets = {f"target{number}": each for number, each in enumerate(members("KD-own"))}
    assert {role: each.spec.hash for role, each in found.inputs.items()} == {
        role: each.spec.hash for role, each in {**sharpened, **targets}.items()
    }


@pytest.mark.parametrize("arm", [*ARMS, *RESAMPLED, "LS-matched"])
def test_all_columns_of_an_arm_come_from_one_decomposition(arm: str) -> None:
    names = {column: f"test.{column}" for column in COLUMNS}
    if arm == "LS-matched":
        names |= {"matched-confidence": "validation.confidence", "target-confidence": "validation.target-confidence"}
    found = {column: measurement(f"ensemble/{arm}/{column}").quantity for column in names}
    assert {column: quantity.name for column, quantity in found.items()} == names
    assert {each.spec.hash for quantity in found.values() for each in quantity.nodes} == {
        node(f"ensemble/{arm}/single").spec.hash
    }


# -------------------------------------------------------------------------------------------------------------- bagging


def test_resamples_are_of_the_first_set() -> None:
    (first, *_) = sets(members("CE"))
    assert sets(members("CE-boot")) == sets(members("KD-boot")) == sets([teacher(x) for x in members("KD-boot")])
    for number, sample in enumerate(sets(members("CE-boot"))):
        assert (sample.size, sample.number, sample.bootstrap) == (first.size, first.number, number)


def test_bagged_teachers_are_those_of_resamples_and_teach_a_student_of_the_whole_set() -> None:
    bagged, alone, one = (node(f"ensemble/{arm}/single") for arm in ("KD-bagged", "CE-whole", "KD-whole"))
    assert teachers(bagged) == [teacher(each) for each in members("KD-boot")]
    assert trained(bagged).objective == how().several
    # What the three share is everything but who teaches.
    assert alone is members("CE")[0]
    assert one is members("KD-own")[0]
    for found in (alone, one):
        mine, other = trained(bagged), trained(found)
        assert (mine.network, mine.recipe, mine.restart) == (other.network, other.recipe, other.restart)
        assert bagged.spec.seed == found.spec.seed
    # A student that has no need of a teacher's set has one on the whole set, and the others of resamples.
    assert trained(teacher(one)).recipe.sample == trained(bagged).recipe.sample


@pytest.mark.parametrize(
    ("one", "alone", "ensemble", "share"),
    [(80, 70, 90, 0.5), (70, 70, 90, 0.0), (60, 70, 90, -0.5), (90, 70, 90, 1.0), (95, 70, 90, 1.25)],
)
def test_recovered_is_a_share_of_what_an_ensemble_gains(
    one: float, alone: float, ensemble: float, share: float
) -> None:
    assert recovered(one, alone, ensemble) == share


@pytest.mark.parametrize("ensemble", [70.0, 69.9, 0.0])
def test_nothing_is_recovered_where_the_ensemble_gains_nothing(ensemble: float) -> None:
    assert math.isnan(recovered(80.0, 70.0, ensemble))
    assert math.isnan(recovered(60.0, 70.0, ensemble))


def test_recovered_is_of_the_bagged_student_the_plain_one_and_the_plain_ensemble_of_resamples() -> None:
    bagged, alone = node("ensemble/KD-bagged/single"), node("ensemble/CE-whole/single")
    ensemble, quantity = node("ensemble/CE-boot/ensemble"), measurement("ensemble/KD-bagged/recovered").quantity
    metrics = {
        bagged.spec.hash: {"test.accuracy": 82.0},
        alone.spec.hash: {"test.accuracy": 70.0},
        ensemble.spec.hash: {"test.ensemble": 85.0, "test.single": 60.0},
    }
    records: Any = {key: SimpleNamespace(metrics=found) for key, found in metrics.items()}
    assert {each.spec.hash for each in quantity.nodes} == set(records)
    assert quantity.read(records) == 0.8
    records[ensemble.spec.hash].metrics["test.ensemble"] = 70.0
    assert math.isnan(quantity.read(records))


# --------------------------------------------------------------------------------------------- augmentation and inputs


def test_frozen_outputs_are_of_inputs_that_stay_and_redrawn_ones_of_those_that_move() -> None:
    frozen, redrawn = node("teacher-outputs/frozen"), node("teacher-outputs/redrawn")
    assert trained(frozen) == trained(redrawn)
    assert trained(frozen).recipe.augmentation == "shift"
    assert teacher(frozen) is teacher(redrawn) is teacher(node("accuracy/none/KD"))
    kept, drawn = (stage(each.inputs["teacher"]) for each in (frozen, redrawn))
    assert isinstance(kept, Teacher)
    assert (kept.cache, drawn.cache) == (True, False)


def test_with_moving_inputs_teachers_and_students_are_trained_on_them() -> None:
    (taught, plain), off = measurement("augmentation/shift-on/gain").quantity.nodes, pair("none")
    assert (teachers(plain), len(teachers(taught))) == ([], 1)
    for found in (plain, taught, teacher(taught)):
        assert trained(found).recipe == how().shifted()
    assert trained(teacher(taught)).restart == 1
    assert (trained(plain).network, trained(plain).restart) == (trained(taught).network, trained(taught).restart)
    # Without, it is the pair of the factorial; the students of outputs drawn anew have the factorial's teacher.
    assert {each.spec.hash for each in measurement("augmentation/shift-off/gain").quantity.nodes} == {
        each.spec.hash for each in off
    }
    assert teacher(taught) is not teacher(off[1])
    assert node("teacher-outputs/redrawn") is not taught


def test_further_inputs_come_to_a_student_of_the_same_teacher() -> None:
    less, more = node("unlabelled/KD"), node("unlabelled/KD-extra")
    assert teacher(less) is teacher(more)
    half = trained(less).recipe.sample
    assert trained(more).recipe.sample == trained(teacher(less)).recipe.sample == half
    assert trained(less).recipe.unlabelled is None
    assert trained(more).recipe.unlabelled is not None
    assert trained(teacher(less)).recipe.unlabelled is None

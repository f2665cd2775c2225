"""What makes the arms of 'hinton' comparable, and its facts honest."""

from collections import Counter
from math import sqrt

import pytest
from kdbench.component import unpack
from kdbench.training import CrossEntropy, Distillation

from kdbench_hinton import kdbench_papers, study
from kdbench_hinton.objectives import LabelSmoothing

PAPER = "hinton"
ARMS = ("plain", "smoothed", "distilled-T1", "distilled")
SMALL_ARMS = ("plain", "smoothed", "distilled")


@pytest.fixture
def facts():
    (paper,) = kdbench_papers()
    return paper


@pytest.fixture(params=["laptop", "full"])
def plan(request, kdbench_plan):
    return kdbench_plan(PAPER, tier=request.param, seeds=1)


def measured(plan, cell):
    """The node whose network a cell tests."""
    (measurement,) = [m for m in plan.measurements if m.cell == cell]
    return measurement.quantity.nodes[0]


def trials(plan, arm):
    choice = measured(plan, f"mnist/mnist1d/{arm}")
    assert unpack(choice.spec.stage).by == "validation"
    return [choice.inputs[role] for role in sorted(choice.inputs)]


def training(node):
    return unpack(node.spec.stage)


# The study.


def test_every_arm_has_the_same_trials_from_the_same_starts(plan):
    plain = [training(node) for node in trials(plan, "plain")]
    assert [stage.restart for stage in plain] == [0, 1, 2]
    for arm in ARMS:
        stages = [training(node) for node in trials(plan, arm)]
        for stage, reference in zip(stages, plain, strict=True):
            assert (stage.network, stage.recipe, stage.restart) == (
                reference.network,
                reference.recipe,
                reference.restart,
            )


def test_arms_differ_in_their_targets_as_the_facts_say(plan):
    objectives = {arm: [training(node).objective for node in trials(plan, arm)] for arm in ARMS}
    assert objectives["plain"] == [CrossEntropy()] * 3
    assert objectives["smoothed"] == [LabelSmoothing(strength=strength) for strength in (0.05, 0.1, 0.2)]
    assert objectives["distilled"] == [Distillation(temperature=t, alpha=0.9) for t in (2.0, 4.0, 8.0)]
    assert objectives["distilled-T1"] == [Distillation(temperature=1.0, alpha=0.9)] * 3


def test_all_distilled_arms_have_the_measured_teacher(plan):
    teacher = measured(plan, "mnist/mnist1d/teacher")
    students = [*trials(plan, "distilled"), *trials(plan, "distilled-T1"), measured(plan, "small/mnist1d/distilled")]
    assert len(students) == 7
    for student in students:
        assert student.inputs["teacher"].inputs["network"] is teacher
    for arm in ("plain", "smoothed"):
        assert not any(node.inputs for node in trials(plan, arm))


def test_the_teacher_is_larger_and_trained_by_the_students_recipe(plan):
    teacher, student = measured(plan, "mnist/mnist1d/teacher"), trials(plan, "plain")[0]
    sizes = [training(node).network.cost((1, 1, 40), 10).parameters for node in (teacher, student)]
    assert sizes[0] > 5 * sizes[1]
    assert training(teacher).recipe == training(student).recipe


def test_with_little_data_arms_differ_in_their_targets_alone(plan):
    stages = {arm: training(measured(plan, f"small/mnist1d/{arm}")) for arm in SMALL_ARMS}
    plain = stages["plain"]
    assert plain.recipe.holdout == 0.9
    for stage in stages.values():
        assert (stage.network, stage.recipe, stage.restart) == (plain.network, plain.recipe, 0)
    assert stages["smoothed"].objective == LabelSmoothing(strength=0.1)
    assert stages["distilled"].objective == Distillation(temperature=4.0, alpha=0.9)


def test_with_little_data_updates_are_about_as_many(plan):
    def updates(recipe):
        return recipe.epochs * 4000 * (1 - recipe.holdout) / recipe.batch_size

    small, large = (training(node).recipe for node in (measured(plan, "small/mnist1d/plain"), trials(plan, "plain")[0]))
    assert updates(small) == pytest.approx(updates(large), rel=0.05)
    assert (small.optimizer, small.schedule) == (large.optimizer, large.schedule)


def test_nothing_is_chosen_on_test_and_one_teacher_serves_a_seed(kdbench_plan):
    plan = kdbench_plan(PAPER, tier="laptop", seeds=3)
    stages = [unpack(spec.stage) for spec in plan.specs.values()]
    kinds = Counter(type(stage).__name__ for stage in stages)
    # A seed: the teacher and 4 x 3 + 3 students; the teacher frozen for each of two training sets; four choices.
    assert kinds == {"Train": 3 * 16, "Teacher": 3 * 2, "Choose": 3 * 4}
    assert {stage.by for stage in stages if hasattr(stage, "by")} == {"validation"}
    assert {stage.recipe.selection for stage in stages if hasattr(stage, "recipe")} == {"last"}


def test_every_cell_of_the_claims_is_measured_for_every_seed(kdbench_plan):
    plan = kdbench_plan(PAPER, tier="smoke", seeds=3)
    cells = {(m.cell, m.seed) for m in plan.measurements}
    assert [claim.id for claim in plan.claims] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert {(cell, seed) for claim in plan.claims for cell in claim.cells() for seed in range(3)} <= cells


# The run.


def test_smoke_gives_a_verdict_on_each_claim(kdbench_smoke):
    result = kdbench_smoke(PAPER)
    assert result.complete, result.run.failures
    verdicts = result.claim_verdicts()
    assert [verdict.claim for verdict in verdicts] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert [len(alternative) for verdict in verdicts for alternative in verdict.tests] == [1] * 6


def test_without_softening_all_arms_train_the_same_network(kdbench_smoke, monkeypatch):
    """No smoothing and no weight on the teacher: what is left is cross-entropy, from the same starts, in every arm."""
    monkeypatch.setattr(study, "STRENGTHS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(study, "FIXED_STRENGTH", 0.0)
    monkeypatch.setattr(study, "ALPHA", 0.0)
    result = kdbench_smoke(PAPER)
    assert result.complete, result.run.failures
    values = result.table().set_index("cell")["value"]
    for prefix, arms in (("mnist", ARMS), ("small", SMALL_ARMS)):
        plain = values[f"{prefix}/mnist1d/plain"]
        for arm in arms:
            assert values[f"{prefix}/mnist1d/{arm}"] == pytest.approx(plain, abs=0.05), (prefix, arm)


# The facts.


def test_no_number_of_the_paper_is_given(facts):
    cells = [cell for table in facts.tables for cell in table.cells]
    assert len(cells) == 5
    assert all(cell.value is None and cell.certainty == "not found" for cell in cells)
    assert not facts.gates
    assert not any(table.comparable for table in facts.tables)


def test_claims_cite_a_section_and_do_not_pass_for_the_papers_own(facts):
    for claim in facts.claims:
        assert claim.source.startswith("Section "), claim.id
        assert claim.certainty in ("paper?", "project"), claim.id
        if claim.certainty == "project":
            assert "the comparison is the project's" in claim.source, claim.id
        else:
            assert "Cited by" in claim.note or "cited by" in claim.note, claim.id
        assert all("smoothed" not in cell for cell in claim.cells()) or claim.certainty == "project", claim.id


@pytest.mark.parametrize(("claims", "accuracy"), [(("C1", "C2", "C3", "C4"), 0.9), (("C5", "C6"), 0.7)])
def test_margins_are_one_standard_error_of_a_test_and_values_two(facts, claims, accuracy):
    error = 100 * sqrt(accuracy * (1 - accuracy) / 6000)
    for claim in map(facts.claim, claims):
        assert claim.gain_margin == round(error, 1)
        assert claim.value_margin == pytest.approx(2 * claim.gain_margin)


def test_the_ledger_says_what_the_study_runs(facts):
    ledger = {deviation.id: deviation.clean for deviation in facts.deviations}
    assert f"{study.EPOCHS['laptop']} epochs at laptop, {study.EPOCHS['full']} at full" in ledger["optimiser"]
    assert f"for {study.EPOCHS['smoke']} epochs" in ledger["optimiser-smoke"]
    assert "T of 2, 4, 8; smoothing of .05, .1, .2" in ledger["search"]
    assert (study.TEMPERATURES, study.STRENGTHS) == ((2.0, 4.0, 8.0), (0.05, 0.1, 0.2))
    assert "alpha .9" in ledger["weights"]
    assert study.ALPHA == 0.9
    assert "smoothing .1 and T 4 fixed" in ledger["small-data"]
    assert (study.FIXED_STRENGTH, study.FIXED_TEMPERATURE) == (0.1, 4.0)

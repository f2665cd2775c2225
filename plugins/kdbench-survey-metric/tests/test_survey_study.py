"""The study: what it plans, what it computes from print, and that a teacher is trained once for two papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from survey_models import GOLDEN, GOLDEN_TEACHER, model
from survey_print import TABLE1, TABLE2
from survey_smoke import smoke_run

from kdbench.component import unpack
from kdbench.plan import Plan
from kdbench.plugins import registry
from kdbench.record import Record
from kdbench.result import Reproduction, read_run
from kdbench.store import Store
from kdbench_survey_metric.ranking import rank
from kdbench_survey_metric.stages import RecomputeReductions, Score, opposed_pairs
from kdbench_survey_metric.study import ALPHAS, WIDTHS

Planner = Callable[..., Plan]
Runner = Callable[..., Reproduction]

STUDENTS = [f"{arm}-{name}" for arm in ("plain", "distilled") for name in WIDTHS]


def record(result: Reproduction, label: str) -> Record:
    (line,) = [stage for stage in result.run.stages if stage.label.startswith(label)]
    found = Store(result.path.parents[1]).record(line.hash)
    assert found is not None
    return found


def test_laptop_trains_five_widths_both_ways_under_one_teacher_a_seed(kdbench_plan: Planner) -> None:
    plan = kdbench_plan("survey-metric", tier="laptop")
    trained = [spec for spec in plan.specs.values() if "recipe" in spec.stage]
    seeds = {spec.seed for spec in trained}
    assert len(seeds) == 5
    assert len(trained) == 5 * (1 + 2 * len(WIDTHS)) == 55
    for seed in seeds:
        above = plan.node("ds/mnist1d/teacher/accuracy", seed)
        for name in WIDTHS:
            plain = plan.node(f"ds/mnist1d/plain-{name}/accuracy", seed)
            distilled = plan.node(f"ds/mnist1d/distilled-{name}/accuracy", seed)
            assert distilled.inputs["teacher"].inputs["network"] is above
            for field in ("network", "recipe", "restart"):
                assert plain.spec.stage[field] == distilled.spec.stage[field], (name, field)
    sizes = [unpack(spec.stage).network.cost((1, 1, 40), 10).parameters for spec in trained if spec.seed == 0]
    shares = sorted({size / max(sizes) for size in sizes})
    assert shares[0] < 0.002
    assert 0.25 < shares[-2] < 0.5
    assert shares[-1] == 1


def test_scores_read_every_network_of_their_seed_and_nothing_else(kdbench_plan: Planner) -> None:
    plan = kdbench_plan("survey-metric", seeds=2)
    for seed in (0, 1):
        node = plan.node("ds/mnist1d/distilled-x4/0.5", seed)
        stage = unpack(node.spec.stage)
        assert isinstance(stage, Score)
        assert stage.size_unit == "parameters"
        assert set(node.inputs) == {"teacher", *STUDENTS}
        assert {parent.spec.seed for parent in node.inputs.values()} == {seed}


def test_the_teacher_is_gated_at_laptop_tier(kdbench_plan: Planner) -> None:
    plan = kdbench_plan("survey-metric", tier="laptop", seeds=1)
    gate = plan.node("ds/mnist1d/distilled-x4/accuracy").inputs["teacher"]
    assert unpack(gate.spec.stage).floor == pytest.approx(97.91 - 8.0)


def test_arithmetic_is_planned_once_whatever_the_seeds_and_trains_nothing(kdbench_plan: Planner) -> None:
    plans = [kdbench_plan("survey-metric", seeds=seeds, claims="G1,G2,G3") for seeds in (1, 3)]
    assert list(plans[0].specs) == list(plans[1].specs)
    assert len(plans[0].specs) == 2
    assert not any("recipe" in spec.stage for spec in plans[0].specs.values())


def test_rows_without_a_size_or_an_accuracy_reach_the_stage_unknown(kdbench_plan: Planner) -> None:
    plan = kdbench_plan("survey-metric", claims="G3")
    stage = unpack(plan.node("our-ds/difference/largest").spec.stage)
    assert isinstance(stage, RecomputeReductions)
    rows = {row.name: (row.accuracy, row.size, row.score) for row in stage.rows}
    assert rows == {f"table2/{name}": (a, size, score) for name, (a, _, size, score) in TABLE2.items()} | {
        f"table1/{name}": row for name, row in TABLE1.items()
    }
    measured = {m.cell for m in plan.measurements}
    for name, (accuracy, _, size, _) in TABLE2.items():
        assert (f"our-ds/table2/{name}/DS" in measured) is (None not in (accuracy, size)), name


def test_printed_scores_are_computed_again_and_unknown_ones_stay_unknown(kdbench_smoke: Runner) -> None:
    result = kdbench_smoke("survey-metric", claims="G1,G2,G3")
    assert result.complete, result.run.failures
    values = {value.cell: value.value for value in result.run.values}
    for name, (size, accuracy, reported) in GOLDEN.items():
        expected = 0.5 * size / 100 + 0.5 * (1 - accuracy / GOLDEN_TEACHER)
        assert values[f"golden/{name}/DS"] == pytest.approx(expected, abs=1e-12)
        assert values[f"golden/{name}/DS"] == pytest.approx(reported, abs=5e-4)
    assert [values[f"crossovers/{pair}/alpha"] for pair in ("62.84-35.36", "35.36-15.25", "15.25-3.74")] == (
        pytest.approx([0.0954, 0.2242, 0.7052], abs=1e-3)
    )
    for name, (reduction, _, size_reduction, ours) in TABLE2.items():
        if reduction is not None and size_reduction is not None:
            expected = 0.5 * (1 - size_reduction / 100) + 0.5 * reduction / 100
            assert values[f"our-ds/table2/{name}/DS"] == pytest.approx(expected, abs=1e-12)
            assert values[f"our-ds/table2/{name}/DS"] == pytest.approx(ours, abs=5e-4)
    unknown = record(result, "recompute the scores of Tables 1 and 2").notes["unknown"]
    assert set(unknown) == {
        *(f"table2/{name}" for name, row in TABLE2.items() if row[3] is None),
        *(f"table1/{name}" for name, row in TABLE1.items() if row[2] is None),
    }
    assert "accuracy reduction is not given" in unknown["table2/offline/Wang-2019"]
    assert "size reduction is not given" in unknown["table2/online/Kim-2019"]
    for verdict in result.claim_verdicts():
        assert verdict.gain_word == "reproduced", verdict.sentence


def test_arithmetic_that_is_off_by_one_printed_digit_is_contradicted(
    kdbench_smoke: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = registry().papers["survey-metric"]
    tables = tuple(
        msgspec.structs.replace(
            table,
            cells=tuple(
                msgspec.structs.replace(cell, value=0.139) if cell.cell == "golden/15.25/DS" else cell
                for cell in table.cells
            ),
        )
        for table in paper.tables
    )
    monkeypatch.setitem(registry().papers, "survey-metric", msgspec.structs.replace(paper, tables=tables))
    (verdict,) = kdbench_smoke("survey-metric", claims="G1").claim_verdicts()
    assert verdict.gain_word == "not reproduced", verdict.sentence


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, kdbench_cache: Path) -> Reproduction:
    return smoke_run(tmp_path_factory.getbasetemp())


def test_smoke_measures_everything_and_judges_every_claim(smoke: Reproduction) -> None:
    assert smoke.complete, smoke.run.failures
    verdicts = {verdict.claim: verdict.gain_word for verdict in smoke.claim_verdicts()}
    assert {verdicts[claim] for claim in ("G1", "G2", "G3")} == {"reproduced"}
    assert verdicts["M2"] == "supported"
    assert set(verdicts) == {"G1", "G2", "G3", "M1", "M2", "M3", "M4"}


def test_scores_follow_from_sizes_and_accuracies_of_the_records(smoke: Reproduction) -> None:
    samples = smoke.samples()
    for seed in (0, 1):
        accuracy = {row: samples[f"ds/mnist1d/{row}/accuracy"][seed] for row in ("teacher", *STUDENTS)}
        for row in STUDENTS:
            size = samples[f"gain/mnist1d/{row}/size"][seed] / 100
            for alpha in ALPHAS:
                expected = alpha * size + (1 - alpha) * (1 - accuracy[row] / accuracy["teacher"])
                assert samples[f"ds/mnist1d/{row}/{alpha:g}"][seed] == pytest.approx(expected, abs=1e-12), (row, alpha)
        for name in WIDTHS:
            gain = 0.5 * (accuracy[f"distilled-{name}"] - accuracy[f"plain-{name}"]) / accuracy["teacher"]
            assert samples[f"gain/mnist1d/distilled-{name}/dDS"][seed] == pytest.approx(gain, abs=1e-12)


def test_teacher_and_constant_predictor_have_rows(smoke: Reproduction) -> None:
    samples = smoke.samples()
    constant = samples["ds/mnist1d/constant/accuracy"]
    assert constant[0] == constant[1] == pytest.approx(100 * 626 / 6000, abs=1.0)  # ten classes of about equal size
    for seed in (0, 1):
        teacher = samples["ds/mnist1d/teacher/accuracy"][seed]
        for alpha in ALPHAS:
            assert samples[f"ds/mnist1d/teacher/{alpha:g}"][seed] == alpha
            expected = (1 - alpha) * (1 - constant[seed] / teacher)
            assert samples[f"ds/mnist1d/constant/{alpha:g}"][seed] == pytest.approx(expected, abs=1e-12)
        assert samples["gain/mnist1d/constant/chance-adjusted"][seed] == 0.5
        assert samples["gain/mnist1d/teacher/chance-adjusted"][seed] == 0.5


def test_a_gap_that_is_not_there_is_unknown_and_no_failure(smoke: Reproduction) -> None:
    """After two epochs the teacher is hardly above the widest students, if at all."""
    samples = smoke.samples()
    kept = {(value.cell, value.seed): value.value for value in read_run(smoke.path).run.values}
    missing = 0
    for seed in (0, 1):
        unknown = record(smoke, f"score 5 students under train plain10-x0.5 seed {seed}").notes["unknown"]
        for name in WIDTHS:
            base, best = (samples[f"ds/mnist1d/{row}/accuracy"][seed] for row in (f"plain-{name}", "teacher"))
            cell = f"gain/mnist1d/distilled-{name}/gap-closed"
            assert (kept[cell, seed] is None) is (best - base < 1.0)
            assert math.isnan(samples[cell][seed]) is (best - base < 1.0)
            assert (f"test.gap-closed.distilled-{name}" in unknown) is (best - base < 1.0)
            missing += best - base < 1.0
    assert missing, "every student has a gap to close here: take a seed where one has none"


def test_winners_move_to_smaller_students_as_alpha_grows(smoke: Reproduction) -> None:
    samples = smoke.samples()
    for seed in (0, 1):
        scores = {
            alpha: {name: samples[f"ds/mnist1d/distilled-{name}/{alpha:g}"][seed] for name in WIDTHS}
            for alpha in ALPHAS
        }
        sizes = [samples[f"winner/mnist1d/size/{alpha:g}"][seed] for alpha in ALPHAS]
        best = [min(WIDTHS, key=scores[alpha].__getitem__) for alpha in ALPHAS]
        assert sizes == [samples[f"gain/mnist1d/distilled-{name}/size"][seed] for name in best]
        assert sizes == sorted(sizes, reverse=True)
        moves = samples["winner/mnist1d/path/moves"][seed]
        assert samples["winner/mnist1d/path/moves-to-smaller"][seed] == moves >= len(set(sizes)) - 1


def test_opposed_pairs_is_kendalls_distance_over_what_both_rank() -> None:
    first = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert opposed_pairs(first, first) == 0.0
    assert opposed_pairs(first, {name: -value for name, value in first.items()}) == 1.0
    assert opposed_pairs(first, {"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0}) == 1 / 6
    assert opposed_pairs(first, {"a": 2.0, "b": 2.0, "c": 3.0}) == 0.0  # a tie opposes nothing
    assert opposed_pairs(first, {"c": 4.0, "b": 5.0, "elsewhere": 0.0}) == 1.0
    assert opposed_pairs(first, {"a": 1.0}) is None


def test_both_shares_of_opposed_pairs_are_of_the_same_students() -> None:
    """One half of the split sees no gap of 'c' to close, so its pairs count in neither share."""
    wrong = {  # on each half of 100 examples
        "teacher": (0, 0),
        "plain-a": (40, 40),
        "plain-b": (40, 40),
        "plain-c": (0, 40),
        "distilled-a": (20, 20),
        "distilled-b": (10, 10),
        "distilled-c": (0, 40),
    }
    right = {role: np.ones(200, dtype=np.bool_) for role in wrong}
    for role, (even, odd) in wrong.items():
        right[role][: 2 * even : 2] = False
        right[role][1 : 2 * odd : 2] = False
    sizes = {"a": 10, "b": 50, "c": 90}
    models = {r: model(r, sizes.get(r[-1], 100), float(each.mean())) for r, each in right.items() if r != "teacher"}
    plain = {f"distilled-{name}": models[f"plain-{name}"] for name in sizes}
    ranking = rank(models.values(), model("teacher", 100, 1.0), plain=plain)
    shares = Score(students=tuple(sizes), alphas=(0.5,), alpha=0.5)._opposed(ranking, right)
    assert shares == {"test.opposed.score": 1.0, "test.opposed.itself": 0.0}


takd = pytest.mark.skipif("takd" not in registry().papers, reason="kdbench-takd is not installed")


@takd
@pytest.mark.parametrize("tier", ["smoke", "laptop"])
def test_equal_stages_of_takd_are_the_same_stages(kdbench_plan: Planner, tier: str) -> None:
    ours, theirs = (kdbench_plan(paper, tier=tier, seeds=1) for paper in ("survey-metric", "takd"))
    shared = {spec.label for key, spec in ours.specs.items() if key in theirs.specs}
    assert shared == {
        "train plain10-x0.5 seed 0",
        "teacher plain10-x0.5 seed 0",
        "train plain2-x0.5 seed 0",
        "distil plain2-x0.5 from plain10-x0.5 (T 4, alpha 0.9) seed 0",
    }


@takd
def test_a_teacher_that_takd_trained_is_not_trained_again(kdbench_smoke: Runner) -> None:
    first = kdbench_smoke("takd", claims="H3", seeds=1)
    second = kdbench_smoke("survey-metric", claims="M3", seeds=1)
    assert first.path.parent == second.path.parent
    lines = {stage.label: stage for stage in second.run.stages}
    teacher = lines["train plain10-x0.5 seed 0"]
    assert teacher.reused
    assert teacher.hash in {stage.hash for stage in first.run.stages if not stage.reused}
    assert {stage.label for stage in second.run.stages if stage.reused} == {
        "train plain10-x0.5 seed 0",
        "teacher plain10-x0.5 seed 0",
        "train plain2-x0.5 seed 0",
        "distil plain2-x0.5 from plain10-x0.5 (T 4, alpha 0.9) seed 0",
    }
    assert second.complete, second.run.failures

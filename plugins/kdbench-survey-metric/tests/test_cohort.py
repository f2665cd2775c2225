"""The students of one teacher as one cohort: means over seeds, what is unknown, and intervals."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from survey_runs import DATA, GOOD, LABELS, PLAIN, TEACHER, Planted, answers, family

from kdbench.errors import KdbenchError, StageError
from kdbench.result import FailureLine, Reproduction, read_run
from kdbench_survey_metric.cohort import Cohort, of_family, score
from kdbench_survey_metric.interval import Interval, Outcomes
from kdbench_survey_metric.measured import Known, SizeUnit, Unknown
from kdbench_survey_metric.runs import families


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "store")


def results(planted: Planted) -> list[Reproduction]:
    return [read_run(planted.store.runs / run) for run in planted.store.run_ids()]


def cohort(planted: Planted, unit: SizeUnit = "parameters") -> Cohort:
    """Of the only teacher in the store."""
    (one,) = families(results(planted), planted.store)
    return of_family(one, results(planted), unit)


def test_means_sizes_and_classes_of_a_family(planted: Planted):
    family(planted)
    found = cohort(planted)
    good = next(student for student in found.students if student.name == "t/good")
    assert (str(found.teacher.size), str(found.teacher.accuracy)) == ("1,000 parameters", "90 %")
    assert (str(good.size), str(good.accuracy)) == ("200 parameters", "80 %")
    assert [str(accuracy) for accuracy in good.per_class] == ["90 %", "83.3333 %", "70 %", "50 %"]
    assert str(found.majority) == "40 %"
    assert found.plain.keys() == {"t/good"}
    assert (found.origin.seeds, found.origin.examples, found.origin.fingerprint) == ((0, 1), 100, DATA.fingerprint)


def test_accuracies_are_means_over_seeds_and_so_are_sizes_that_differ(planted: Planted):
    cells: dict[int, str] = {}
    for seed, (classes, nonzero) in enumerate(((GOOD, 90), (PLAIN, 70))):
        teacher = planted.stage("train big", TEACHER, seed=seed, network="big", nonzero_parameters=100)
        more = {"seed": seed, "network": "mid", "nonzero_parameters": nonzero}
        cells[seed] = planted.distilled("prune mid", classes, teacher, **more)
    planted.run("one", {"t/pruned": cells})
    (student,) = cohort(planted, "nonzero parameters").students
    assert (str(student.size), str(student.accuracy)) == ("80 nonzero parameters", "75 %")


def test_seeds_that_a_student_lacks_are_left_out_of_all(planted: Planted):
    cells: dict[str, dict[int, str]] = {"t/a": {}, "t/b": {}}
    for seed in range(3):
        teacher = planted.stage("train big", TEACHER, seed=seed, network="big")
        for name, classes in (("t/a", GOOD), ("t/b", PLAIN)):
            failed = name == "t/b" and seed == 1
            cells[name][seed] = "" if failed else planted.distilled(name, classes, teacher, seed=seed, network="mid")
    planted.run("one", cells, failed=True)
    found = cohort(planted)
    assert found.origin.seeds == (0, 2)
    assert "seed 1 is left out: not every student has it" in found.notes
    assert "run one is incomplete: not all that it asked for was measured" in found.notes
    answers_of_a = found.answers["t/a"]
    assert isinstance(answers_of_a, Outcomes)
    assert answers_of_a.student.shape == (2, 100)


@pytest.mark.parametrize(("label", "lacks"), [("figures", False), ("executor 'processes'", False), ("cell t/a", True)])
def test_only_what_was_not_measured_makes_a_run_lack_something(planted: Planted, label: str, lacks: bool):
    family(planted)
    (one,) = families(results(planted), planted.store)
    found = results(planted)
    for result in found:
        result.run = msgspec.structs.replace(
            result.run, status="incomplete", failures=(FailureLine("", label, "it broke", 0),)
        )
    notes = of_family(one, found, "parameters").notes
    assert any("not all that it asked for was measured" in note for note in notes) is lacks


def test_students_without_a_common_seed_are_refused(planted: Planted):
    teachers = [planted.stage("train big", TEACHER, seed=seed, network="big") for seed in (0, 1)]
    a, b = (
        {seed: planted.distilled(name, GOOD, teachers[seed], seed=seed, network="mid") for seed in seeds}
        for name, seeds in (("a", (0,)), ("b", (0, 1)))
    )
    planted.run("one", {"t/b": b, "t/a": a, "t/c": {1: planted.distilled("c", GOOD, teachers[1], seed=1, network="c")}})
    with pytest.raises(KdbenchError, match="no seed is common to all students of 'train big'") as error:
        cohort(planted)
    assert error.value.where == "t/b: seeds 0, 1, t/a: seeds 0, t/c: seeds 1"


def test_a_baseline_that_lacks_a_seed_is_none(planted: Planted):
    family(planted)
    run = results(planted)[0].run
    cells: dict[str, dict[int, str]] = {}
    for value in run.values:
        if (value.cell, value.seed) != ("t/plain", 1):
            cells.setdefault(value.cell, {})[value.seed] = value.stages[0]
    planted.run("one", cells)
    found = cohort(planted)
    assert found.plain == {}
    assert "t/good: its accuracy without a teacher is not known at seed 1" in found.notes


def test_a_unit_that_was_not_counted_is_unknown(planted: Planted):
    family(planted)
    scored = score(cohort(planted, "bytes"), 0.5)
    row = scored.ranking.row("t/good")
    assert row.size is None
    assert isinstance(row.score, Unknown)
    assert isinstance(row.gain, Known)  # it needs no size
    assert isinstance(scored.intervals["t/good"].score, Unknown)


def test_a_size_that_one_seed_lacks_is_unknown(planted: Planted):
    cells: dict[int, str] = {}
    for seed in (0, 1):
        teacher = planted.stage("train big", TEACHER, seed=seed, network="big")
        cells[seed] = planted.distilled("a", GOOD, teacher, seed=seed, network="a", parameters=None if seed else 10)
    planted.run("one", {"t/a": cells})
    assert cohort(planted).students[0].size is None


def test_units_are_those_of_the_record(planted: Planted):
    sizes = {"nonzero_parameters": 60, "bytes": 480, "macs": 5000}
    teacher = planted.stage("train big", TEACHER, network="big", parameters=1000, **sizes)
    planted.run("one", {"t/a": {0: planted.distilled("a", GOOD, teacher, network="a", parameters=10, **sizes)}})
    for unit, size in (("parameters", 10), ("nonzero parameters", 60), ("bytes", 480), ("MACs", 5000)):
        (student,) = cohort(planted, unit).students  # type: ignore[arg-type]
        assert student.size is not None
        assert (student.size.value, student.size.unit) == (size, unit)


def test_intervals_hold_the_score_of_the_table_and_are_paired(planted: Planted):
    family(planted)
    scored = score(cohort(planted), 0.3)
    for name, intervals in scored.intervals.items():
        row, interval = scored.ranking.row(name), intervals.score
        assert isinstance(row.score, Known)
        assert isinstance(interval, Interval)
        assert interval.estimate == pytest.approx(row.score.value, abs=1e-12)
        assert interval.low95 <= interval.low90 <= interval.estimate <= interval.high90 <= interval.high95
        assert (interval.examples, interval.seeds) == (100, 2)
    gain = scored.intervals["t/good"].gain
    assert isinstance(gain, Interval)
    assert gain.estimate == pytest.approx(0.7 * 0.1 / 0.9)
    assert scored.leader == "t/good"
    assert scored.behind.keys() == {"t/small", "t/large"}
    behind = scored.behind["t/small"]
    assert isinstance(behind, Interval)
    small, good = (scored.ranking.row(name).score for name in ("t/small", "t/good"))
    assert isinstance(small, Known)
    assert isinstance(good, Known)
    assert behind.estimate == pytest.approx(small.value - good.value)


def test_without_predictions_scores_have_no_interval_and_say_why(planted: Planted):
    teacher = planted.stage("train big", TEACHER, network="big")
    cells = {
        "t/a": {0: planted.distilled("a", GOOD, teacher, network="a")},
        "t/b": {0: planted.distilled("b", PLAIN, teacher, network="b", keep=False)},
    }
    planted.run("one", cells)
    scored = score(cohort(planted), 0.5)
    assert scored.intervals.keys() == {"t/a"}
    assert "t/b: no interval: the student's stages keep no predictions of the test split" in scored.notes
    assert isinstance(scored.ranking.row("t/b").score, Known)
    assert isinstance(scored.ranking.row("t/b").worst_class, Unknown)


def test_without_the_data_scores_stand_and_what_needs_its_labels_is_unknown(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
):
    def gone(ref: object) -> None:
        raise KdbenchError("the archive is gone", where="somewhere")

    family(planted)
    monkeypatch.setattr("kdbench.data.load", gone)
    scored = score(cohort(planted), 0.5)
    assert scored.intervals == {}
    assert any("the archive is gone [somewhere]" in note for note in scored.notes)
    row = scored.ranking.row("t/good")
    assert isinstance(row.score, Known)
    assert isinstance(row.chance_adjusted, Unknown)
    assert isinstance(scored.ranking.row("constant predictor").score, Unknown)


def test_predictions_that_were_changed_stop_the_ranking(planted: Planted):
    family(planted)
    key = next(value.stages[0] for value in results(planted)[0].run.values if value.cell == "t/good")
    path = planted.store.stages / key / "test_predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x03")
    with pytest.raises(StageError, match="does not match its record"):
        cohort(planted)


def test_a_split_of_one_class_has_nothing_above_chance(planted: Planted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kdbench_survey_metric.evidence.labels_of", lambda data, *stages: np.zeros(100, dtype=np.int64))
    teacher = planted.stage("train big", (np.arange(100) > 90).astype(np.int32), network="big", accuracy=91.0)
    student = planted.distilled("a", (np.arange(100) > 80).astype(np.int32), teacher, network="a", accuracy=81.0)
    planted.run("one", {"t/a": {0: student}})
    scored = score(cohort(planted), 0.5)
    row = scored.ranking.row("t/a")
    assert isinstance(row.score, Known)
    assert isinstance(row.chance_adjusted, Unknown)
    assert isinstance(scored.intervals["t/a"].chance_adjusted, Unknown)


def test_the_planted_split_has_a_largest_class_of_40_percent():
    assert np.bincount(LABELS).tolist() == [40, 30, 20, 10]
    assert (answers(40, 30, 20, 10) == LABELS).all()

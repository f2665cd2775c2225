"""Who taught whom, read off runs and their stages; and which runs may be scored together."""

from __future__ import annotations

from pathlib import Path

import pytest
from survey_runs import GOOD, PLAIN, TEACHER, Planted, family

from kdbench.errors import KdbenchError
from kdbench.result import Reproduction, read_run
from kdbench_survey_metric.cohort import of_family
from kdbench_survey_metric.runs import Family, choose, families, refuse


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "store")


def results(planted: Planted, *runs: str) -> list[Reproduction]:
    return [read_run(planted.store.runs / run) for run in runs or planted.store.run_ids()]


def found(planted: Planted, *runs: str) -> list[Family]:
    return families(results(planted, *runs), planted.store)


def only(planted: Planted) -> Family:
    (one,) = found(planted)
    return one


# Families


def test_students_stand_under_the_network_that_taught_them(planted: Planted):
    family(planted)
    one = only(planted)
    assert (one.label, one.cells, one.runs) == ("train big", ("t/teacher",), ("one",))
    assert [student.name for student in one.students] == ["t/good", "t/small", "t/large"]
    assert {seed: stage.record.label for seed, stage in one.teachers.items()} == {
        0: "train big seed 0",
        1: "train big seed 1",
    }
    assert all(set(student.seeds) == {0, 1} for student in one.students)


def test_the_baseline_is_the_same_network_by_the_same_recipe_and_seed(planted: Planted):
    teacher = planted.stage("train big", TEACHER, parameters=1000, network="big")
    others = {"network": "other"}, {"recipe": "other"}, {"seed": 1}
    cells = {
        f"t/plain{i}": {other.get("seed", 0): planted.stage(f"p{i}", PLAIN, **{"network": "mid", **other})}  # type: ignore[arg-type,dict-item,misc]
        for i, other in enumerate(others)
    }
    first, second = (planted.stage(f"train mid {i}", PLAIN, network="mid") for i in (1, 2))
    student = planted.distilled("distil mid", GOOD, teacher, network="mid")
    planted.run("one", {**cells, "t/good": {0: student}, "t/first": {0: first}, "t/second": {0: second}})
    baseline = only(planted).students[0].seeds[0].baseline
    assert baseline is not None
    assert baseline.record.hash == first  # of two that fit, the first that is measured


def test_a_choice_of_trials_has_the_teacher_of_its_trials(planted: Planted):
    teacher = planted.stage("train big", TEACHER, network="big")
    trials = [planted.distilled(f"trial {i}", GOOD, teacher, network="mid") for i in (0, 1)]
    best = planted.stage("best of 2", GOOD, network="mid", inputs={"0": trials[0], "1": trials[1]})
    again = planted.distilled("distil small", PLAIN, best, network="small")
    planted.run("one", {"t/best": {0: best}, "t/again": {0: again}})
    assert [(one.label, [s.name for s in one.students]) for one in found(planted)] == [
        ("train big", ["t/best"]),
        ("best of 2", ["t/again"]),
    ]


def test_a_stage_of_a_plugin_may_be_taught_without_a_gate(planted: Planted):
    teacher = planted.stage("train big", TEACHER, network="big")
    student = planted.stage("imitate", GOOD, inputs={"teacher": teacher}, network="mid")
    planted.run("one", {"t/imitated": {0: student}})
    assert only(planted).teachers[0].record.hash == teacher


def test_one_stage_under_two_names_is_one_student(planted: Planted):
    teacher = planted.stage("train big", TEACHER, network="big")
    student = planted.distilled("distil mid", GOOD, teacher, network="mid")
    planted.run("one", {"t/a": {0: student}, "fig/b": {0: student}})
    assert [(s.name, s.cells) for s in only(planted).students] == [("t/a", ("t/a", "fig/b"))]
    assert "t/a is also fig/b" in of_family(only(planted), results(planted), "parameters").notes


def test_what_is_no_network_s_own_accuracy_is_no_student(planted: Planted):
    teacher = planted.stage("train big", TEACHER, network="big")
    planted.run("one", {"t/teacher": {0: teacher}, "t/agreement": {0: planted.distilled("measure", None, teacher)}})
    assert found(planted) == []


def test_another_teacher_at_one_seed_is_another_teacher(planted: Planted):
    same = planted.stage("train big", TEACHER, network="big", seed=0)
    cells = {}
    for recipe in ("usual", "other"):
        second = planted.stage("train big", TEACHER, network="big", seed=1, recipe=recipe)
        cells[f"t/{recipe}"] = {
            seed: planted.distilled(f"distil {recipe}", GOOD, teacher, seed=seed, network="mid")
            for seed, teacher in enumerate((same, second))
        }
    planted.run("one", cells)
    assert [[s.name for s in one.students] for one in found(planted)] == [["t/usual"], ["t/other"]]


def test_a_stage_that_is_gone_is_named(planted: Planted):
    run = family(planted)
    key = next(value.stages[0] for value in results(planted, run)[0].run.values if value.cell == "t/good")
    (planted.store.stages / key / "record.json").unlink()
    with pytest.raises(KdbenchError, match=f"stage {key} of the run is not in the store") as error:
        found(planted)
    assert error.value.where == str(planted.store.root)


# Several runs


def test_runs_that_share_their_teacher_are_ranked_together(planted: Planted):
    family(planted)
    teacher = {seed: only(planted).teachers[seed].record.hash for seed in (0, 1)}
    cells = {
        "t/other": {s: planted.distilled("distil other", PLAIN, teacher[s], seed=s, network="mid") for s in (0, 1)},
        "t/good": {s: planted.distilled("distil good anew", GOOD, teacher[s], seed=s, network="mid") for s in (0, 1)},
    }
    planted.run("two", cells)
    one = choose(found(planted), ["one", "two"])
    assert one.runs == ("one", "two")
    assert [s.name for s in one.students] == ["t/good", "t/small", "t/large", "t/other", "t/good in two"]


def test_the_same_stages_in_two_runs_are_one_student_with_all_its_seeds(planted: Planted):
    family(planted, seeds=2, run_id="one")
    family(planted, seeds=3, run_id="two")
    one = choose(found(planted), ["one", "two"])
    assert [(s.name, s.cells, sorted(s.seeds)) for s in one.students] == [
        (name, (name,), [0, 1, 2]) for name in ("t/good", "t/small", "t/large")
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tier": "laptop"}, "the runs differ in tier: smoke and laptop"),
        ({"protocol": "released"}, "the runs differ in protocol: clean and released"),
        ({"dataset": "other"}, "the runs differ in data set: planted and other"),
        ({"fingerprint": "0" * 64}, "the runs were made on different data: fingerprints ffffffffffff and 000000000000"),
    ],
)
def test_runs_that_do_not_compare_are_refused_with_the_reason(planted: Planted, change: dict[str, str], reason: str):
    family(planted)
    planted.run("two", {}, **change)  # type: ignore[arg-type]
    with pytest.raises(KdbenchError) as error:
        refuse(results(planted))
    assert (error.value.what, error.value.where) == (reason, "runs 'one' and 'two'")
    assert error.value.cure


def test_runs_of_two_papers_may_share_a_teacher(planted: Planted):
    family(planted, run_id="one")
    planted.run("two", {}, paper="another")
    refuse(results(planted))


# The choice of a teacher


def two_teachers(planted: Planted) -> None:
    large = planted.stage("train big", TEACHER, parameters=1000, network="big")
    mid = planted.distilled("distil mid", GOOD, large, parameters=200, network="mid")
    direct = planted.distilled("distil small", PLAIN, large, parameters=50, network="small")
    second = planted.distilled("distil small", PLAIN, mid, parameters=50, network="small")
    planted.run("one", {"t/mid": {0: mid}, "t/direct": {0: direct}, "t/second": {0: second}})


def test_several_teachers_are_listed_with_their_students(planted: Planted):
    two_teachers(planted)
    with pytest.raises(KdbenchError, match="there are 2 teachers, and a score compares students of one") as error:
        choose(found(planted), ["one"])
    keys = [one.key for one in found(planted)]
    assert error.value.cure == (
        "name it with --teacher, by label, cell or hash: "
        f"'train big' ({keys[0]}): 2 students; 'distil mid' ({keys[1]}, measured as t/mid): 1 student"
    )


def test_a_teacher_is_named_by_label_cell_or_hash(planted: Planted):
    two_teachers(planted)
    first, second = found(planted)
    for name, expected in (("train big", first), (first.key, first), ("t/mid", second), ("distil mid", second)):
        assert choose([first, second], ["one"], name) is expected


def test_a_teacher_that_nobody_knows_is_refused_with_the_nearest(planted: Planted):
    two_teachers(planted)
    with pytest.raises(KdbenchError, match=r"unknown teacher 'train bog'; did you mean 'train big'\?"):
        choose(found(planted), ["one"], "train bog")


def test_a_label_that_two_teachers_have_is_refused(planted: Planted):
    cells = {}
    for recipe in ("usual", "other"):
        teacher = planted.stage("train big", TEACHER, network="big", recipe=recipe)
        cells[f"t/{recipe}"] = {0: planted.distilled("distil mid", GOOD, teacher, network="mid")}
    planted.run("one", cells)
    with pytest.raises(KdbenchError, match="'train big' is the name of 2 teachers; name it by its hash"):
        choose(found(planted), ["one"], "train big")
    assert choose(found(planted), ["one"], found(planted)[1].key).students[0].name == "t/other"


def test_runs_without_a_common_teacher_are_refused(planted: Planted):
    family(planted)
    teacher = planted.stage("train other", TEACHER, network="other")
    planted.run("two", {"t/a": {0: planted.distilled("distil mid", GOOD, teacher, network="mid")}})
    for wanted in (None, "train big"):
        with pytest.raises(KdbenchError, match="the runs have no teacher in common: 'train big'") as error:
            choose(found(planted), ["one", "two"], wanted)
        assert "3 students in one; 'train other'" in error.value.what
        assert "1 student in two" in error.value.what


def test_a_teacher_of_one_run_alone_is_refused_for_two(planted: Planted):
    family(planted)
    shared = only(planted).teachers[0].record.hash
    other = planted.stage("train other", TEACHER, network="other")
    cells = {"t/a": {0: planted.distilled("distil a", GOOD, shared, network="mid")}}
    planted.run("two", cells | {"t/b": {0: planted.distilled("distil b", GOOD, other, network="mid")}})
    with pytest.raises(KdbenchError, match="there are 2 teachers"):
        choose(found(planted), ["one", "two"])
    with pytest.raises(KdbenchError, match="the runs have different teachers") as error:
        choose(found(planted), ["one", "two"], "train other")
    assert error.value.where == "'train other' taught nobody in one"
    assert "'train big'" in (error.value.cure or "")
    assert choose(found(planted), ["one", "two"], "train big").runs == ("one", "two")


def test_a_run_without_students_is_refused(planted: Planted):
    planted.run("one", {"t/teacher": {0: planted.stage("train big", TEACHER, network="big")}})
    with pytest.raises(KdbenchError, match="there is no student to rank") as error:
        choose(found(planted), ["one"])
    assert error.value.where == "one"

"""Every reproduction's report shows the score of each student under its own teacher, for every paper."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from survey_runs import GOOD, LABELS, PLAIN, TEACHER, Planted, answers

from kdbench import Paper, reproduce
from kdbench.data import load
from kdbench.errors import StageError
from kdbench.networks import Plain
from kdbench.paper import Claim, Comparison, Protocol
from kdbench.plan import Plan
from kdbench.plugins import registry
from kdbench.result import Reproduction
from kdbench.stage import PREDICTIONS, Finished, read_spec
from kdbench.store import Store
from kdbench.study import Lab, Measurement
from kdbench.training import SGD, Distillation, Recipe
from kdbench_survey_metric import subjects
from kdbench_survey_metric.metrics import kdbench_metrics
from kdbench_survey_metric.runs import subjects_of

IDS = ("DS", "DS-chance", "DS-worst", "dDS", "gap-closed")


def study(lab: Lab) -> Iterator[Measurement]:
    """A third party's study: a teacher, a student with and without it, and one born again from the student."""
    recipe = Recipe(epochs=3, optimizer=SGD(lr=0.05), statistics="none", holdout=0.1)
    objective = Distillation(temperature=4.0, alpha=0.9)
    large, small = Plain(size=4, width=0.5), Plain(size=2, width=0.5)
    for seed in lab.seeds:
        teacher = lab.train(large, seed=seed, recipe=recipe)
        taught = [
            lab.distil(small, teacher, seed=seed, recipe=recipe, objective=objective, restart=restart)
            for restart in (0, 1)
        ]
        chosen = lab.choose(taught, by="validation")
        again = lab.distil(small, chosen, seed=seed, recipe=recipe, objective=objective)
        yield lab.measure("t/scratch", lab.train(small, seed=seed, recipe=recipe).accuracy, seed=seed)
        yield lab.measure("t/teacher", teacher.accuracy, seed=seed)
        yield lab.measure("t/chosen", chosen.accuracy, seed=seed)
        yield lab.measure("t/again", again.accuracy, seed=seed)


PAPER = Paper(
    id="third-party",
    title="A third party's paper",
    authors="Nobody",
    venue="Nowhere",
    year=2026,
    url="https://example.org",
    bibtex="@misc{third}",
    summary="Distillation helps.",
    datasets=("mnist1d",),
    default_dataset={"smoke": "mnist1d", "laptop": "mnist1d", "full": "mnist1d"},
    protocols=(Protocol(id="clean", sentence="clean"),),
    claims=(
        Claim(
            id="C1",
            title="Distillation helps",
            sentence="Twice even.",
            source="Table 1",
            certainty="project",
            core=True,
            alternatives=(
                (
                    Comparison(left="t/chosen", right="t/scratch"),
                    Comparison(left="t/again", right="t/teacher"),
                ),
            ),
        ),
    ),
    study=study,
)


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory, kdbench_cache: Path) -> Reproduction:
    """A run of a paper that knows nothing of this plugin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry().papers, PAPER.id, PAPER)
        return reproduce(
            PAPER.id, tier="smoke", seeds=2, executor="inline", store=tmp_path_factory.mktemp("third-party")
        )


def scores_of(result: Reproduction) -> dict[tuple[str, str, int], float]:
    return {(score.metric, score.cell, score.seed): score.value for score in result.run.scores}


def stage_of(result: Reproduction, cell: str, seed: int) -> Finished:
    key = next(value.stages[0] for value in result.run.values if (value.cell, value.seed) == (cell, seed))
    return Finished(result.path.parents[1] / "stages" / key)


def by_hand(student: Finished, teacher: Finished, plain: Finished | None) -> dict[str, float]:
    """The five numbers from records and files, without any of the plugin's code."""
    labels = load(read_spec(student.folder).data)["test"].labels.numpy()
    right = [stage.tensors(PREDICTIONS)["classes"].numpy() == labels for stage in (student, teacher)]
    worst = [min(float(row[labels == label].mean()) for label in range(10)) for row in right]
    s, t = (stage.record.metrics["test.accuracy"] / 100 for stage in (student, teacher))
    r = student.record.notes["parameters"] / teacher.record.notes["parameters"]
    c = max(float((labels == label).mean()) for label in range(10))
    found = {"DS": 0.5 * r + 0.5 * (1 - s / t), "DS-chance": 0.5 * r + 0.5 * (1 - (s - c) / (t - c))}
    if worst[1] > 0:
        found["DS-worst"] = 0.5 * r + 0.5 * (1 - worst[0] / worst[1])
    if plain is not None:
        p = plain.record.metrics["test.accuracy"] / 100
        found["dDS"] = (0.5 * r + 0.5 * (1 - p / t)) - found["DS"]
        if t - p >= 0.01:
            found["gap-closed"] = (s - p) / (t - p)
    return found


def test_the_metrics_are_published_once_the_plugin_is_installed():
    assert [registry().owner("metrics", name).name for name in IDS] == ["survey-metric"] * len(IDS)


def test_only_the_score_itself_is_the_survey_s():
    sources = {metric.id: metric.source for metric in kdbench_metrics()}
    survey = sources.pop("DS")
    assert survey.startswith("Alkhulaifi, Alsahli, Ahmad 2021")
    assert "third-party" in survey
    assert set(sources.values()) == {"derived; kdbench-survey-metric"}


def test_every_student_of_a_third_party_s_paper_has_the_scores_computed_by_hand(third_party: Reproduction):
    assert [metric.problem for metric in third_party.run.metrics if metric.id in IDS] == [""] * len(IDS)
    expected = {}
    for seed in (0, 1):
        scratch, teacher, chosen, again = (
            stage_of(third_party, f"t/{name}", seed) for name in ("scratch", "teacher", "chosen", "again")
        )
        for cell, triple in (("t/chosen", (chosen, teacher, scratch)), ("t/again", (again, chosen, scratch))):
            expected |= {(metric, cell, seed): value for metric, value in by_hand(*triple).items()}
    found = {key: value for key, value in scores_of(third_party).items() if key[0] in IDS}
    assert found == pytest.approx(expected, abs=1e-12)
    assert {("DS", "t/chosen", 1), ("DS-chance", "t/again", 0), ("dDS", "t/chosen", 0)} <= found.keys()


def test_a_run_read_back_has_the_same_students_teachers_and_baselines(third_party: Reproduction):
    """Who taught whom is read off the store as it was planned: every score comes out the same."""
    found = subjects_of(third_party, Store(third_party.path.parents[1]))
    assert [(subject.cell, subject.seed) for subject in found] == [(v.cell, v.seed) for v in third_party.run.values]
    again = {}
    for subject in found:
        for metric, compute in zip(
            IDS,
            (
                subjects.score,
                subjects.chance_adjusted_score,
                subjects.worst_class_score,
                subjects.score_gain,
                subjects.gap_closed,
            ),
            strict=True,
        ):
            value = compute(subject)
            if value is not None:
                again[metric, subject.cell, subject.seed] = value
    assert again == {key: value for key, value in scores_of(third_party).items() if key[0] in IDS}


def test_the_report_shows_them(third_party: Reproduction, capsys: pytest.CaptureFixture[str]):
    import kdbench.cli

    store = third_party.path.parents[1]
    with pytest.raises(SystemExit) as exit:
        kdbench.cli.main(["report", third_party.run.id, "--store", str(store)])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    header = next(line for line in out.splitlines() if "DS-chance" in line)
    assert header.split() == list(IDS)
    row = next(line for line in out.splitlines() if line.startswith("chosen "))
    mean = np.mean([scores_of(third_party)["DS", "t/chosen", seed] for seed in (0, 1)])
    assert row.split()[1] == f"{mean:.3f}"


@pytest.mark.slow
def test_every_distilled_student_of_takd_has_its_score(
    kdbench_smoke: Callable[..., Reproduction], kdbench_plan: Callable[..., Plan]
):
    if "takd" not in registry().papers:
        pytest.skip("kdbench-takd is not installed")
    plan, result = kdbench_plan("takd"), kdbench_smoke("takd")
    stages = result.path.parents[1] / "stages"
    expected = {}
    for measurement in plan.measurements:
        node = measurement.quantity.nodes[0]
        if measurement.quantity.name == "test.accuracy" and "teacher" in node.inputs:
            student = Finished(stages / node.spec.hash)
            teacher = Finished(stages / node.inputs["teacher"].inputs["network"].spec.hash)
            found = by_hand(student, teacher, None)
            expected |= {(metric, measurement.cell, measurement.seed): value for metric, value in found.items()}
    assert {cell for _, cell, _ in expected} >= {"table1/cnn/mnist1d/BLKD", "table1/cnn/mnist1d/TAKD"}
    found = {key: value for key, value in scores_of(result).items() if key[0] in ("DS", "DS-chance", "DS-worst")}
    assert found == pytest.approx(expected, abs=1e-12)
    nokd = {value.cell: value.value for value in result.run.values}["table1/cnn/mnist1d/NOKD"]
    blkd = stage_of(result, "table1/cnn/mnist1d/BLKD", 0).record.metrics["test.accuracy"]
    teacher = plan.node("table1/cnn/mnist1d/BLKD").inputs["teacher"].inputs["network"].spec.hash
    base = Finished(stages / teacher).record.metrics["test.accuracy"]
    assert scores_of(result)["dDS", "table1/cnn/mnist1d/BLKD", 0] == pytest.approx(0.5 * (blkd - nokd) / base)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "store")


def test_planted_answers_have_the_accuracies_that_the_tests_speak_of():
    assert [float((classes == LABELS).mean()) for classes in (TEACHER, GOOD, PLAIN)] == [0.9, 0.8, 0.7]


def test_the_numbers_of_a_student_by_hand(planted: Planted):
    """Teacher 90 %, worst class 80 %; student 80 %, 50 %; without a teacher 70 %; a fifth of the size; chance 40 %."""
    teacher = planted.stage("teacher", TEACHER, parameters=1000)
    student, plain = planted.stage("student", GOOD, parameters=200), planted.stage("plain", PLAIN, parameters=200)
    subject = planted.subject(student, teacher, plain)
    assert subjects.score(subject) == pytest.approx(0.1 + 0.5 * (1 - 8 / 9))
    assert subjects.chance_adjusted_score(subject) == pytest.approx(0.1 + 0.5 * (1 - 4 / 5))
    assert subjects.worst_class_score(subject) == pytest.approx(0.1 + 0.5 * (1 - 5 / 8))
    assert subjects.score_gain(subject) == pytest.approx(0.5 * 1 / 9)
    assert subjects.gap_closed(subject) == pytest.approx(1 / 2)


def _teacher(planted: Planted, **how: Any) -> str:
    return planted.stage("teacher", **{"classes": TEACHER, "parameters": 1000, **how})


ALL = (
    subjects.score,
    subjects.chance_adjusted_score,
    subjects.worst_class_score,
    subjects.score_gain,
    subjects.gap_closed,
)


@pytest.mark.parametrize(
    ("what", "silent"),
    [
        ("no teacher", ALL),
        ("no baseline", ALL[3:]),
        ("a baseline of another size", ALL[3:]),
        ("no size", ALL[:3]),
        ("a teacher without a size", ALL[:3]),
        ("a teacher that is always wrong", ALL),
        ("a teacher at chance", (ALL[1], ALL[2], ALL[4])),
        ("a teacher whose accuracy nobody measured", ALL),
        ("no predictions", ALL[2:3]),
        ("a teacher without predictions", ALL[2:3]),
        ("no gap", ALL[4:]),
        ("a teacher whose worst class is lost", ALL[2:3]),
    ],
)
def test_a_metric_says_nothing_where_it_knows_nothing(
    planted: Planted, what: str, silent: tuple[Callable[..., float | None], ...]
):
    majority = np.zeros(100, dtype=np.int32)
    teacher: str | None = {
        "no teacher": lambda: None,
        "a teacher without a size": lambda: _teacher(planted, parameters=None),
        "a teacher that is always wrong": lambda: _teacher(planted, classes=answers()),
        "a teacher at chance": lambda: _teacher(planted, classes=majority),
        "a teacher whose accuracy nobody measured": lambda: _teacher(planted, classes=None),
        "a teacher without predictions": lambda: _teacher(planted, keep=False),
        "no gap": lambda: _teacher(planted, classes=answers(36, 22, 10, 2)),
        "a teacher whose worst class is lost": lambda: _teacher(planted, classes=answers(40, 30, 18, 0)),
    }.get(what, lambda: _teacher(planted))()
    size = None if what == "no size" else 200
    student = planted.stage("student", GOOD, parameters=size, keep=what != "no predictions")
    other = 199 if what == "a baseline of another size" else size
    plain = None if what == "no baseline" else planted.stage("plain", PLAIN, parameters=other)
    subject = planted.subject(student, teacher, plain)
    assert {compute.__name__ for compute in ALL if compute(subject) is None} == {c.__name__ for c in silent}


@pytest.mark.parametrize("fault", ["changed", "deleted", "of another split", "of other labels"])
def test_predictions_that_are_not_those_of_the_record_are_named(planted: Planted, fault: str):
    teacher = planted.stage("teacher", TEACHER, parameters=1000)
    student = {
        "of another split": lambda: planted.stage("student", GOOD[:50], accuracy=80.0),
        "of other labels": lambda: planted.stage("student", GOOD, accuracy=75.0),
    }.get(fault, lambda: planted.stage("student", GOOD))()
    path = planted.store.stages / student / PREDICTIONS
    if fault == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x03")
    if fault == "deleted":
        path.unlink()
    message = {
        "of another split": "predictions of 50 examples, 100 labels",
        "of other labels": r"the predictions have 80\.0000 % right, their record says 75 %",
    }.get(fault, f"{PREDICTIONS} does not match its record")
    with pytest.raises(StageError, match=message) as error:
        subjects.worst_class_score(planted.subject(student, teacher))
    assert error.value.where == str(path)
    assert error.value.cure


def test_the_score_needs_records_alone(planted: Planted):
    """Listing the metrics and computing DS, dDS and the gap closed imports no torch: planning and reading stay fast."""
    teacher, student = planted.stage("teacher", TEACHER, parameters=1000), planted.stage("student", GOOD)
    code = f"""
import sys
from pathlib import Path
import kdbench_survey_metric
from kdbench.metric import Subject
from kdbench.stage import Finished, read_spec
assert "numpy" not in sys.modules and len(list(kdbench_survey_metric.kdbench_metrics())) == 5
from kdbench_survey_metric import subjects
student, teacher = (Finished(Path({str(planted.store.stages)!r}) / key) for key in ({student!r}, {teacher!r}))
subject = Subject("cell", 0, student, teacher, read_spec(student.folder).data, student)
print(subjects.score(subject), subjects.score_gain(subject), subjects.gap_closed(subject), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    score, gain, closed, torch = done.stdout.split()
    assert (float(score), float(gain), float(closed), torch) == (pytest.approx(0.05 + 0.5 / 9), 0.0, 0.0, "False")

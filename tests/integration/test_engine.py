"""Plans taken through executors: order, sharing, failures, dying workers, and equal bits whoever runs the stages."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from toy_paper import OBJECTIVE, RECIPE, STUDENT, TEACHER, toy_lab, toy_paper
from toy_paper import study as toy_study
from toy_stages import Chatters, Dies, Fails, Number

from kdbench.api import Prepared, carry_out
from kdbench.errors import KdbenchError
from kdbench.executors import Executor
from kdbench.executors.inline import InlineExecutor
from kdbench.executors.local import LocalExecutor
from kdbench.paper import Gate
from kdbench.plan import Plan, build_plan
from kdbench.result import Request
from kdbench.run import Failure, Results, drive
from kdbench.stage import WEIGHTS, Spec
from kdbench.stages import Choose
from kdbench.store import Store
from kdbench.study import Lab, Measurement, Node

Study = Callable[[Lab], Iterator[Measurement]]


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalExecutor]:
    """Two workers for all tests here: they must outlive whatever a test does to one of them."""
    executor = LocalExecutor(2)
    yield executor
    executor.close()
    assert all(worker.poll() is not None for worker in executor._workers)


@pytest.fixture
def place(store: Path) -> Store:
    found = Store(store)
    found.stages.mkdir(parents=True)
    found.runs.mkdir()
    return found


@pytest.fixture(params=["inline", "local"])
def executor(request: pytest.FixtureRequest, pool: LocalExecutor) -> Executor:
    return InlineExecutor() if request.param == "inline" else pool


class OneSlot:
    """The same workers, one stage at a time."""

    slots = 1

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def submit(self, folder: Path) -> Future[None]:
        return self.executor.submit(folder)

    def close(self) -> None: ...


class Log:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.begun: tuple[int, int] | None = None
        self.started_labels: list[str] = []
        self.ended: dict[str, str] = {}

    def begin(self, plan: Plan, todo: list[str], seconds: dict[str, float], workers: int) -> None:
        self.begun = (len(todo), workers)

    def started(self, spec: Spec, folder: Path) -> None:
        assert (folder / "spec.json").exists()
        self.started_labels.append(name_of(spec))

    def finished(self, spec: Spec, seconds: float) -> None:
        self.ended[name_of(spec)] = "finished"

    def failed(self, spec: Spec, failure: Failure) -> None:
        self.ended[name_of(spec)] = failure.cause

    def tick(self) -> None: ...


def name_of(spec: Spec) -> str:
    return spec.label.partition(" seed ")[0]


def plan_of(study: Study, **axes: Any) -> Plan:
    return build_plan(toy_lab(toy_paper(study), **axes), "all")


def taken(plan: Plan, place: Store, executor: Executor | None) -> tuple[Results, Log]:
    log = Log()
    return drive(plan, place, executor, log), log


class Draft:
    """Adds named stages and measures each, so that a study of a test reads as its graph."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.measured: list[Measurement] = []

    def __call__(self, name: str, stage: Any, *inputs: Node) -> Node:
        node = self.lab.stage(stage, seed=0, label=name, inputs={str(i): one for i, one in enumerate(inputs)})
        self.measured.append(self.lab.measure(f"t/{name}", node.accuracy, seed=0))
        return node


def graph(build: Callable[[Draft], None]) -> Study:
    def study(lab: Lab) -> Iterator[Measurement]:
        draft = Draft(lab)
        build(draft)
        yield from draft.measured

    return study


# -------------------------------------------------------------------------------------------------------------- order


def test_longest_chain_goes_first(place: Store) -> None:
    def build(add: Draft) -> None:
        add("small", Number(value=1, steps=100))
        add("large", Number(value=2, steps=500))
        first = add("first", Number(value=3, steps=10))
        add("second", Number(value=4, steps=1000), first)
        add("middle", Number(value=5, steps=300))

    results, log = taken(plan_of(graph(build)), place, InlineExecutor())
    assert log.started_labels == ["first", "second", "large", "middle", "small"]
    assert log.begun == (5, 1)
    assert set(log.ended.values()) == {"finished"}
    assert len(results.records) == 5


def test_finished_stages_are_reused_without_an_executor(place: Store) -> None:
    def build(add: Draft) -> None:
        add("b", Number(value=2), add("a", Number(value=1)))

    plan = plan_of(graph(build))
    first, _ = taken(plan, place, InlineExecutor())
    again, log = taken(plan, place, None)
    assert first.reused == set()
    assert again.reused == set(plan.specs)
    assert again.records == first.records
    assert log.begun is None
    assert plan.price(place).total == 0.0
    assert plan.price(place).measured == 0


def test_only_what_is_missing_runs(place: Store) -> None:
    def small(add: Draft) -> None:
        add("a", Number(value=1))

    def larger(add: Draft) -> None:
        add("b", Number(value=2), add("a", Number(value=1)))

    taken(plan_of(graph(small)), place, InlineExecutor())
    results, log = taken(plan_of(graph(larger)), place, InlineExecutor())
    assert log.started_labels == ["b"]
    assert len(results.reused) == 1
    assert sorted(record.metrics["test.accuracy"] for record in results.records.values()) == [1.0, 3.0]


# ----------------------------------------------------------------------------------------------------------- failures


def test_failure_is_named_its_dependants_skipped_the_rest_finished_and_nothing_cached(
    place: Store, executor: Executor, tmp_path: Path
) -> None:
    cure = tmp_path / "cured"

    def build(add: Draft) -> None:
        root = add("root", Number(value=1))
        broken = add("broken", Fails(unless=str(cure)), root)
        after = add("after", Number(value=2), broken, root)
        add("later", Number(value=3), after)
        add("other", Number(value=4), root)
        add("alone", Number(value=5))

    plan = plan_of(graph(build))
    for _ in range(2):  # what failed is tried again, and what finished is not
        results, log = taken(plan, place, executor)
        (failure,) = results.failures
        assert (failure.label, failure.skipped) == ("broken seed 0", 2)
        assert "ValueError: broken on purpose (at toy_stages.py:" in failure.cause
        assert "Traceback" in failure.trace
        assert {name_of(plan.specs[key]) for key in results.records} == {"root", "other", "alone"}
        assert not place.has(failure.hash)
        assert not {"after", "later"} & set(log.started_labels)
    assert log.started_labels == ["broken"]
    cure.touch()
    results, log = taken(plan, place, executor)
    assert not results.failures
    assert sorted(log.started_labels) == ["after", "broken", "later"]
    assert len(results.records) == 6


def test_number_that_is_none_is_a_failure_like_any_other(place: Store, executor: Executor) -> None:
    def build(add: Draft) -> None:
        add("nan", Fails(how="nan"))
        add("fine", Number(value=1))

    results, _ = taken(plan_of(graph(build)), place, executor)
    (failure,) = results.failures
    assert "test.accuracy is nan" in failure.cause
    assert len(results.records) == 1


@pytest.mark.parametrize(("how", "status"), [("exit", 7), ("kill", -9)])
def test_worker_that_dies_is_one_failure_and_the_pool_goes_on(
    place: Store, pool: LocalExecutor, how: Any, status: int
) -> None:
    def build(add: Draft) -> None:
        add("after", Number(value=9), add("dies", Dies(how=how)))
        for number in range(4):
            add(f"n{number}", Number(value=number))

    results, _ = taken(plan_of(graph(build)), place, pool)
    (failure,) = results.failures
    assert f"the worker process died (exit status {status})" in failure.cause
    assert "run again to resume" in failure.cause
    assert (failure.label, failure.skipped) == ("dies seed 0", 1)
    assert len(results.records) == 4
    assert all(worker.poll() is None for worker in pool._workers), "the dead worker was not replaced"


def test_ctrl_c_is_the_runs_to_handle_not_the_workers(place: Store, pool: LocalExecutor) -> None:
    def build(add: Draft) -> None:
        for number in range(4):
            add(f"n{number}", Number(value=number))

    def warm(add: Draft) -> None:
        for number in range(8):
            add(f"w{number}", Number(value=number + 10))

    taken(plan_of(graph(warm)), place, pool)  # a worker that is still starting could not say what it would do
    pids = [worker.pid for worker in pool._workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)  # a terminal sends it to the whole group
    results, _ = taken(plan_of(graph(build)), place, pool)
    assert not results.failures
    assert [worker.pid for worker in pool._workers] == pids


def test_what_a_stage_prints_is_no_answer(place: Store, pool: LocalExecutor) -> None:
    def build(add: Draft) -> None:
        chatter = add("chatter", Chatters())
        for number in range(4):
            add(f"n{number}", Number(value=number), chatter)

    results, log = taken(plan_of(graph(build)), place, pool)
    assert not results.failures
    assert set(log.ended.values()) == {"finished"}
    assert len(results.records) == 5


def test_executor_that_claims_success_is_not_believed(place: Store) -> None:
    class Liar(InlineExecutor):
        def submit(self, folder: Path) -> Future[None]:
            future: Future[None] = Future()
            future.set_result(None)
            return future

    results, _ = taken(plan_of(graph(lambda add: add("a", Number(value=1)) and None)), place, Liar())
    assert "left no record" in results.failures[0].cause


def test_corrupt_record_stops_the_run_and_names_the_folder(place: Store) -> None:
    def build(add: Draft) -> None:
        add("b", Number(value=2), add("a", Number(value=1)))

    plan = plan_of(graph(build))
    taken(plan, place, InlineExecutor())
    broken, *_ = plan.specs
    (place.stages / broken / "record.json").write_text("{")
    with pytest.raises(KdbenchError, match=r"record\.json is corrupt") as caught:
        taken(plan, place, InlineExecutor())
    assert broken in str(caught.value)
    assert all(place.has(key) for key in plan.specs), "something finished was lost"


def carried_out(place: Store, study: Study, seeds: tuple[int, ...], **facts: Any) -> Any:
    paper = toy_paper(study, **facts)
    request = Request(
        paper="toy",
        tier="smoke",
        dataset="mnist1d",
        protocol="clean",
        seeds=seeds,
        claims="core",
        device="cpu",
        workers=1,
        threads=1,
        executor="inline",
        data_dir=None,
    )
    return carry_out(Prepared(paper, request, build_plan(toy_lab(paper, seeds=seeds)), place))


def test_missing_values_become_none_and_the_verdict_counts_them(place: Store) -> None:
    def study(lab: Lab) -> Iterator[Measurement]:
        for seed in lab.seeds:
            stages = {"scratch": Number(value=50 + seed), "distilled": Number(value=52 + 2 * seed)}
            if seed == 1:
                stages["scratch"] = Fails()
            for name, stage in stages.items():
                node = lab.stage(stage, seed=seed, label=name)
                yield lab.measure(f"table1/{lab.dataset}/{name}", node.accuracy, seed=seed)

    done = carried_out(place, study, (0, 1, 2))
    assert not done.complete
    assert [(v.cell.rpartition("/")[2], v.seed) for v in done.run.values if v.value is None] == [("scratch", 1)]
    assert done.samples()["table1/mnist1d/distilled"] == {0: 52.0, 1: 54.0, 2: 56.0}
    assert [line.label for line in done.run.failures] == ["scratch seed 1"]
    assert list(done.traces) == [done.run.failures[0].hash]
    (verdict,) = done.claim_verdicts()
    assert "n=2 of 3 seeds" in verdict.sentence
    assert verdict.value_reason == "the paper has no MNIST-1D; tier smoke is not the paper's scale; " + (
        "protocol clean is not the paper's"
    )


def test_teacher_below_its_gate_teaches_nobody(place: Store) -> None:
    def gate(claimed: float) -> Gate:
        return Gate(
            network=TEACHER.name, dataset="mnist1d", claimed=claimed, tolerance=1, certainty="pilot", source="pilot"
        )

    done = carried_out(place, toy_study, (0,), gates=(gate(101.0),))
    (failure,) = done.run.failures
    assert "teacher gate: train plain4-x0.5 seed 0 reached" in failure.cause
    assert "below the 100.00 % it must have" in failure.cause
    assert failure.skipped == 1
    values = {value.cell.rpartition("/")[2]: value.value for value in done.run.values}
    assert values["distilled"] is None
    assert values["scratch"] is not None
    # Passed, the gate leaves the accuracy it looked at: of the validation split, where there is one.
    done = carried_out(place, toy_study, (0,), gates=(gate(1.0),))
    assert done.complete
    records = {name: place.record(line.hash) for line in done.run.stages for name in [line.label.split()[0]]}
    trained = next(place.record(line.hash) for line in done.run.stages if line.label == "train plain4-x0.5 seed 0")
    assert records["teacher"].metrics["gate.accuracy"] == trained.metrics["validation.accuracy"]


@pytest.mark.parametrize(("by", "chosen"), [("validation", 1), ("test", 2)])
def test_choice_is_by_the_declared_split_and_first_of_equals(place: Store, by: Any, chosen: int) -> None:
    trials = [Number(value=v, validation=w) for v, w in ((1, 5), (2, 9), (8, 9.0), (8, 3))]

    def build(add: Draft) -> None:
        add("choice", Choose(by=by), *(add(f"trial{i}", trial) for i, trial in enumerate(trials)))

    plan = plan_of(graph(build))
    results, _ = taken(plan, place, InlineExecutor())
    keys = {name_of(spec): key for key, spec in plan.specs.items()}
    record, winner = (results.records[keys[name]] for name in ("choice", f"trial{chosen}"))
    assert record.notes["chosen"] == chosen
    assert record.notes["chosen_label"] == f"trial{chosen} seed 0"
    assert record.metrics == winner.metrics
    assert record.files == winner.files
    assert record.notes["scores"] == [winner_of.metrics[f"{by}.accuracy"] for winner_of in results_of(results, keys)]


def results_of(results: Results, keys: dict[str, str]) -> list[Any]:
    return [results.records[keys[f"trial{i}"]] for i in range(4)]


# -------------------------------------------------------------------------------------------------------- determinism


def seeds_study(lab: Lab) -> Iterator[Measurement]:
    """The toy study, and the same student under augmentation, where the teacher is asked live."""
    yield from toy_study(lab)
    recipe = type(RECIPE)(
        epochs=1, optimizer=RECIPE.optimizer, augmentation="crop-flip", statistics="data", holdout=0.1
    )
    for seed in lab.seeds:
        teacher = lab.train(TEACHER, seed=seed, recipe=RECIPE)
        student = lab.distil(STUDENT, teacher, seed=seed, recipe=recipe, objective=OBJECTIVE, label="live")
        yield lab.measure("t/live", student.accuracy, seed=seed)


def test_records_are_equal_bit_for_bit_whoever_runs_the_stages(tmp_path: Path, pool: LocalExecutor) -> None:
    plan = plan_of(seeds_study, seeds=(0, 1))
    executors = {"inline": InlineExecutor(), "one worker": OneSlot(pool), "two workers": pool}
    found: dict[str, dict[str, tuple[Any, bytes | None]]] = {}
    for name, executor in executors.items():
        place = Store(tmp_path / name)
        place.stages.mkdir(parents=True)
        results, _ = taken(plan, place, executor)
        assert not results.failures
        found[name] = {}
        for key, record in results.records.items():
            weights = place.stages / key / WEIGHTS
            found[name][key] = (record.content(), weights.read_bytes() if weights.exists() else None)
    assert len(found["inline"]) == 12
    for key in plan.specs:
        assert found["one worker"][key] == found["two workers"][key], plan.specs[key].label
        assert found["inline"][key] == found["two workers"][key], plan.specs[key].label
    by_label = {plan.specs[key].label: one for key, one in found["inline"].items()}
    assert len(by_label) == 10  # both teacher stages of a seed have one label
    for label, (content, weights) in by_label.items():
        if label.endswith("seed 0"):
            other = by_label[label.replace("seed 0", "seed 1")]
            assert content["metrics"] != other[0]["metrics"], f"{label}: another seed gave the same"
            assert weights is None or weights != other[1]

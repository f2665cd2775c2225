"""The DAG that a study builds: sharing, pruning, order, price, and what a study may not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toy_paper import OBJECTIVE, RECIPE, STUDENT, TEACHER, toy_data, toy_lab, toy_paper
from toy_stages import Number

from kdbench.errors import KdbenchError
from kdbench.networks import Plain
from kdbench.paper import Claim, Comparison, Gate
from kdbench.plan import SECONDS_PER_STAGE, SECONDS_PER_STEP, Plan, Price, build_plan, cost_key, select_claims
from kdbench.stage import execute
from kdbench.stages import Train
from kdbench.store import Store
from kdbench.study import Lab, Measurement, derive
from kdbench.training import CrossEntropy, Distillation, ObjectiveInfo


def claim(claim_id: str, left: str, right: str, **changes: Any) -> Claim:
    return Claim(
        id=claim_id,
        title=claim_id,
        sentence="S",
        source="T",
        certainty="paper",
        alternatives=((Comparison(left=left, right=right),),),
        **changes,
    )


def plan_of(study: Callable[[Lab], Iterator[Measurement]], claims: str = "all", **axes: Any) -> Plan:
    return build_plan(toy_lab(toy_paper(study, claims=CLAIMS), **axes), claims)


CLAIMS = (claim("H1", "t/a", "t/b", core=True), claim("H2", "t/c", "t/b"), claim("H3", "t/d", "t/e"))


def diamond(lab: Lab) -> Iterator[Measurement]:
    """root -> a, b; a -> c; (b, c) -> d; and e, which stands alone."""
    for seed in lab.seeds:

        def node(value: float, seed: int = seed, **inputs: Any) -> Any:
            return lab.stage(
                Number(value=value, steps=round(100 * value)), seed=seed, label=f"n{value:g}", inputs=inputs
            )

        root = node(1)
        a, b = node(2, root=root), node(3, root=root)
        c = node(4, a=a)
        d, e = node(5, b=b, c=c), node(6)
        for name, one in zip("abcde", (a, b, c, d, e), strict=True):
            yield lab.measure(f"t/{name}", one.accuracy, seed=seed)
        yield lab.measure("t/free", derive("sum", lambda x, y: x + y, a.accuracy, b.accuracy), seed=seed)
        yield lab.measure("t/dear", derive("sum", lambda x, y: x + y, a.accuracy, e.accuracy), seed=seed)


def labels(plan: Plan) -> set[str]:
    return {spec.label.partition(" ")[0] for spec in plan.specs.values()}


def cells(plan: Plan) -> set[str]:
    return {measurement.cell for measurement in plan.measurements}


def test_equal_stages_are_one_node() -> None:
    lab = toy_lab()
    one = lab.train(TEACHER, seed=0, recipe=RECIPE)
    assert lab.train(TEACHER, seed=0, recipe=RECIPE, label="under another name") is one
    assert lab.train(Plain(size=4, width=0.5), seed=0, recipe=RECIPE) is one
    assert lab.train(TEACHER, seed=1, recipe=RECIPE) is not one
    objective = Distillation(temperature=4.0, alpha=0.9)
    students = [lab.distil(STUDENT, one, seed=0, recipe=RECIPE, objective=objective) for _ in range(2)]
    assert students[0] is students[1]
    assert lab.choose([one], by="test") is one
    assert lab.teacher(one, RECIPE) is students[0].inputs["teacher"]


def test_plan_of_the_toy_paper_shares_the_teacher() -> None:
    def study(lab: Lab) -> Iterator[Measurement]:
        teacher = lab.train(TEACHER, seed=0, recipe=RECIPE)
        for temperature in (1.0, 2.0, 4.0):
            objective = Distillation(temperature=temperature, alpha=0.9)
            student = lab.distil(STUDENT, teacher, seed=0, recipe=RECIPE, objective=objective)
            yield lab.measure(f"t/{temperature}", student.accuracy, seed=0)

    plan = plan_of(study)
    assert len(plan.specs) == 5  # the teacher, its gate and logits, three students
    assert sorted(plan.uses().values()) == [0, 0, 0, 1, 3]
    assert plan.shared() == 1


def test_order_respects_inputs_and_counts_are_right() -> None:
    plan = plan_of(diamond, seeds=(0, 1))
    done: set[str] = set()
    for key in plan.specs:
        assert done.issuperset(plan.inputs[key])
        done.add(key)
    assert len(plan.specs) == 12
    uses = {plan.specs[key].label: count for key, count in plan.uses().items()}
    assert uses["n1 seed 0"] == 2
    assert uses["n3 seed 1"] == 1
    assert uses["n5 seed 0"] == uses["n6 seed 0"] == 0
    assert plan.shared() == 2


@pytest.mark.parametrize(
    ("claims", "stages", "measured"),
    [
        ("core", {"n1", "n2", "n3"}, {"t/a", "t/b", "t/free"}),  # t/free needs nothing more, t/dear does
        ("H2", {"n1", "n2", "n3", "n4"}, {"t/a", "t/b", "t/c", "t/free"}),
        ("H3", {"n1", "n2", "n3", "n4", "n5", "n6"}, {"t/a", "t/b", "t/c", "t/d", "t/e", "t/free", "t/dear"}),
        ("all", {"n1", "n2", "n3", "n4", "n5", "n6"}, {"t/a", "t/b", "t/c", "t/d", "t/e", "t/free", "t/dear"}),
    ],
)
def test_plan_is_pruned_to_its_claims(claims: str, stages: set[str], measured: set[str]) -> None:
    plan = plan_of(diamond, claims)
    assert labels(plan) == stages
    assert cells(plan) == measured


def test_cell_that_is_measured_twice_is_an_error() -> None:
    def study(lab: Lab) -> Iterator[Measurement]:
        for value in (1.0, 2.0):
            yield lab.measure("t/a", lab.stage(Number(value=value), seed=0, label="n").accuracy, seed=0)

    with pytest.raises(KdbenchError, match="measures 't/a' twice for seed 0"):
        plan_of(study)


def test_unknown_network_names_the_nearest() -> None:
    lab = toy_lab(networks={"plain10": Plain(size=10), "plain2": Plain(size=2)})
    with pytest.raises(KdbenchError, match="did you mean 'plain10'"):
        lab.train("plain1O", seed=0, recipe=RECIPE)
    assert lab.train("plain2", seed=0, recipe=RECIPE).network == Plain(size=2)


def test_claims_are_selected_by_word_or_id() -> None:
    paper = toy_paper(claims=CLAIMS)

    def ids(wanted: str) -> list[str]:
        return [claim.id for claim in select_claims(paper, wanted)]

    assert ids("core") == ["H1"]
    assert ids("all") == ["H1", "H2", "H3"]
    assert ids("H3, H1") == ["H3", "H1"]
    with pytest.raises(KdbenchError, match="unknown claim 'H9'") as caught:
        ids("H1,H9")
    assert "H1, H2, H3" in str(caught.value)
    for nothing in ("", " , "):
        with pytest.raises(KdbenchError, match="no claim is named"):
            ids(nothing)


def test_axis_that_the_study_leaves_out_is_an_error() -> None:
    paper = toy_paper(diamond, claims=(claim("H1", "t/{family}/a", "t/b", core=True),))
    with pytest.raises(KdbenchError, match="axis 'family'"):
        build_plan(toy_lab(paper))


def test_price_follows_the_longest_chain_and_falls_to_nothing(tmp_path: Path) -> None:
    plan, store = plan_of(diamond), Store(tmp_path)
    store.stages.mkdir(parents=True)
    price = plan.price(store)
    by_label = {spec.label[:2]: key for key, spec in plan.specs.items()}
    fixed, step = SECONDS_PER_STAGE, 100 * SECONDS_PER_STEP["cpu"]
    seconds = {label: price.seconds[key] for label, key in by_label.items()}
    assert seconds == pytest.approx({f"n{i}": i * step + fixed for i in range(1, 7)})
    critical = {label: price.critical[key] for label, key in by_label.items()}
    chains = {"n1": (12, 4), "n2": (11, 3), "n4": (9, 2), "n3": (8, 2), "n5": (5, 1), "n6": (6, 1)}
    assert critical == pytest.approx({label: work * step + n * fixed for label, (work, n) in chains.items()})
    assert price.measured == 0
    assert price.total == pytest.approx(21 * step + 6 * fixed)
    assert price.elapsed(1) == pytest.approx(price.total)
    assert price.elapsed(100) == pytest.approx(12 * step + 4 * fixed)  # no number of workers beats the chain
    for spec in plan.specs.values():
        before = plan.price(store).total
        execute(store.prepare(spec))
        assert plan.price(store).total < before
    assert plan.price(store).total == 0.0
    assert plan.price(store).elapsed(2) == 0.0


def test_price_takes_the_stores_own_timings(tmp_path: Path) -> None:
    plan, store = plan_of(diamond, seeds=(0, 1)), Store(tmp_path)
    store.stages.mkdir(parents=True)
    root = next(spec for spec in plan.specs.values() if spec.label == "n1 seed 0")
    for seconds in (10.0, 30.0, 20.0):
        store.note_timing(cost_key(root), seconds)
    with (tmp_path / "timings.jsonl").open("ab") as file:
        file.write(b'["cut sho')  # by a kill
    price = plan.price(store)
    assert price.measured == 2  # the other seed costs the same
    assert [price.seconds[key] for key, spec in plan.specs.items() if spec.label.startswith("n1 ")] == [20.0, 20.0]


def test_empty_price() -> None:
    assert Price({}, {}, 0).elapsed(0) == 0.0


def test_derived_quantity_needs_all_its_stages_and_computes_from_them(tmp_path: Path) -> None:
    plan, store = plan_of(diamond), Store(tmp_path)
    store.stages.mkdir(parents=True)
    for spec in plan.specs.values():
        execute(store.prepare(spec))
    records = {key: record for key in plan.specs if (record := store.record(key)) is not None}
    values = {m.cell: m.quantity.read(records) for m in plan.measurements}
    assert values == {"t/a": 3, "t/b": 4, "t/c": 7, "t/d": 16, "t/e": 6, "t/free": 7, "t/dear": 9}
    dear = next(m.quantity for m in plan.measurements if m.cell == "t/dear")
    assert {node.spec.label for node in dear.nodes} == {"n2 seed 0", "n6 seed 0"}


def test_gate_of_the_paper_becomes_the_teachers_floor() -> None:
    gate = Gate(network=TEACHER.name, dataset="mnist1d", claimed=80.0, tolerance=3.0, certainty="pilot", source="pilot")
    for gates, floor in (((gate,), 77.0), ((), None)):
        lab = toy_lab(toy_paper(gates=gates))
        node = lab.teacher(lab.train(TEACHER, seed=0, recipe=RECIPE), RECIPE)
        assert node.spec.stage["floor"] == floor
        assert node.spec.stage["cache"] is True
        # A distilled network has no accuracy claimed for it, whatever its architecture.
        distilled = lab.distil(TEACHER, node.inputs["network"], seed=0, recipe=RECIPE, objective=OBJECTIVE)
        assert lab.teacher(distilled, RECIPE).spec.stage["floor"] is None
        trials = [lab.train(TEACHER, seed=0, recipe=RECIPE, restart=restart) for restart in (0, 1)]
        assert lab.teacher(lab.choose(trials, by="test"), RECIPE).spec.stage["floor"] == floor


def test_a_measured_cell_leads_to_its_stage() -> None:
    plan = plan_of(diamond, seeds=(0, 7))
    assert plan.node("t/a").spec.label == "n2 seed 0"
    assert plan.node("t/a", seed=7).spec.label == "n2 seed 7"
    with pytest.raises(KdbenchError, match=r"unknown cell 't/z'"):
        plan.node("t/z")
    with pytest.raises(KdbenchError, match=r"'t/free' is computed from 2 stages"):
        plan.node("t/free")


def test_a_choice_is_called_by_what_its_trials_have_in_common() -> None:
    lab = toy_lab()
    teacher = lab.train(TEACHER, seed=0, recipe=RECIPE)
    trials = [
        lab.distil(STUDENT, teacher, seed=0, recipe=RECIPE, objective=Distillation(temperature=t, alpha=0.9), restart=n)
        for n, t in enumerate((2.0, 4.0))
    ]
    assert lab.choose(trials, by="validation").spec.label == (
        "best of 2 by validation: distil plain2-x0.5 from plain4-x0.5 seed 0"
    )
    restarts = [lab.train(STUDENT, seed=0, recipe=RECIPE, restart=number) for number in range(3)]
    assert lab.choose(restarts, by="test").spec.label == "best of 3 by test: train plain2-x0.5 seed 0"
    assert lab.choose(restarts, by="test", label="mine") is lab.choose(restarts, by="test")
    assert lab.choose(restarts[1:], by="test", label="mine").spec.label == "mine seed 0"
    assert lab.choose(restarts[:1], by="test") is restarts[0]
    with pytest.raises(KdbenchError, match=r"there is no trial to choose from"):
        lab.choose([], by="test")


def test_an_objective_is_built_by_its_name() -> None:
    info = ObjectiveInfo(id="kd", title="", source="", create="kdbench.training:Distillation")
    lab = toy_lab(objectives={"kd": info})
    assert lab.objective("kd", temperature=2.0, alpha=0.5) == Distillation(temperature=2.0, alpha=0.5)
    with pytest.raises(KdbenchError, match=r"unknown objective 'dk'; did you mean 'kd'\?"):
        lab.objective("dk")
    with pytest.raises(KdbenchError, match=r"objective 'kd': .*alpha.*kdbench.training:Distillation"):
        lab.objective("kd", temperature=2.0)


def test_a_network_is_trained_on_another_objective() -> None:
    lab = toy_lab()
    plain = lab.train(STUDENT, seed=0, recipe=RECIPE)
    other = lab.train(STUDENT, seed=0, recipe=RECIPE, objective=Distillation(temperature=2.0, alpha=0.5))
    assert plain is lab.train(STUDENT, seed=0, recipe=RECIPE, objective=CrossEntropy())
    assert other is not plain
    assert other.spec.label == "train plain2-x0.5 (T 2, alpha 0.5) seed 0"
    assert not other.inputs


def test_a_claim_asked_for_twice_is_judged_once() -> None:
    assert [claim.id for claim in select_claims(toy_paper(), "C1, C1")] == ["C1"]


@pytest.mark.parametrize(("augmentation", "forwards"), [("none", 0), ("crop-flip", 1)])
def test_a_live_teacher_has_its_price_and_a_cached_one_has_none(augmentation: str, forwards: int) -> None:
    recipe = msgspec.structs.replace(RECIPE, augmentation=augmentation)
    shape, classes, images = (3, 32, 32), 10, 1000
    data = msgspec.structs.replace(toy_data(), input_shape=shape, sizes={"train": images, "test": 10})
    stage = Train(network=STUDENT, recipe=recipe, objective=OBJECTIVE)
    student, teacher = (network.cost(shape, classes).macs for network in (STUDENT, TEACHER))
    seen = images * (1 - recipe.holdout) * recipe.epochs
    found = stage.effort(data, {"teacher": TEACHER})
    assert found.macs == pytest.approx(seen * (3 * student + forwards * teacher))
    assert stage.effort(data, {}).macs == pytest.approx(seen * 3 * student)


class Twice(CrossEntropy, frozen=True):
    """Asks the student's network twice more."""

    @property
    def forwards(self) -> float:
        return 2.0


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_forward_passes_of_an_objective_have_their_price(augmentation: str) -> None:
    data = msgspec.structs.replace(toy_data(), input_shape=(3, 32, 32), sizes={"train": 1000, "test": 10})
    recipe = msgspec.structs.replace(RECIPE, augmentation=augmentation)
    macs = STUDENT.cost((3, 32, 32), 10).macs
    plain, twice = (
        Train(network=STUDENT, recipe=recipe, objective=objective).effort(data, {})
        for objective in (CrossEntropy(), Twice())
    )
    images = 1000 * (1 - recipe.holdout) * recipe.epochs
    assert CrossEntropy().forwards == 0
    assert plain.macs == pytest.approx(3 * macs * images)
    assert twice.macs == pytest.approx(5 * macs * images)
    assert twice[0] == plain[0], "as many steps"


def elsewhere(*noise: str) -> Lab:
    """A claim on every level of an axis of which the tier may have none, beside one on no axis."""
    here, there = claim("here", "t/a", "t/b", core=True), claim("elsewhere", "t/a", "t/{noise}", core=True)
    lab = toy_lab(toy_paper(diamond, claims=(here, msgspec.structs.replace(there, title="at {noise}"))))
    lab.axis("noise", *noise)
    return lab


@pytest.mark.parametrize("asked", ["elsewhere", "here,elsewhere"])
def test_a_claim_asked_for_that_the_tier_does_not_have_is_refused(asked: str) -> None:
    with pytest.raises(KdbenchError, match="claim elsewhere compares what tier 'smoke' does not have") as caught:
        build_plan(elsewhere(), asked)
    assert caught.value.where == "toy, mnist1d"
    assert "take another tier" in str(caught.value.cure)


@pytest.mark.parametrize("claims", ["core", "all", "here"])
def test_a_claim_that_nobody_named_is_left_out_where_it_has_no_instance(claims: str) -> None:
    assert [one.id for one in build_plan(elsewhere(), claims).claims] == ["here"]


def test_a_claim_with_an_instance_is_planned_by_its_name() -> None:
    assert [one.id for one in build_plan(elsewhere("c"), "elsewhere").claims] == ["elsewhere"]

"""The study as a plan: how much every arm may search, where it chooses, and what is derived. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from takd_plans import kind, node_of, planned, sizes

from kdbench.api import Prepared
from kdbench.component import unpack
from kdbench.paper import PROTOCOLS
from kdbench.study import Node
from kdbench_takd.recipes import method

# ------------------------------------------------------------------------------------------------------------- trials


def losses(node: Node) -> list[tuple[float, float, int]]:
    trials = node.inputs.values() if kind(node.spec) == "Choose" else [node]
    stages = [trial.spec.stage for trial in trials]
    return [(s["objective"]["alpha"], s["objective"]["temperature"], s["restart"]) for s in stages]


def test_the_temperature_of_the_rival_is_tuned_over_a_grid_that_holds_the_usual_one() -> None:
    for prepared in (planned(), planned("full"), planned("full", "released")):
        dataset = prepared.request.dataset
        node = node_of(prepared, f"tuned/{dataset}/BLKD-tau")
        assert losses(node) == [(0.9, temperature, 0) for temperature in (1, 2, 4, 8)]
    laptop = planned()
    usual = node_of(laptop, "table1/cnn/mnist1d/BLKD").spec.hash
    assert usual in node_of(laptop, "tuned/mnist1d/BLKD-tau").spec.inputs.values()


@pytest.mark.parametrize(
    ("tier", "protocol", "count"),
    [("laptop", "clean", 2), ("laptop", "released", 2), ("full", "clean", 8), ("full", "written", 240)],
)
def test_equal_trials_are_those_of_both_stages_of_takd(tier: str, protocol: str, count: int) -> None:
    prepared = planned(tier, protocol)
    dataset = prepared.request.dataset
    student = node_of(prepared, f"table1/cnn/{dataset}/TAKD")
    trials = list(student.inputs.values()) if kind(student.spec) == "Choose" else [student]
    assistant = trials[0].inputs["teacher"].inputs["network"]
    fair = losses(node_of(prepared, f"fair/{dataset}/BLKD-equal-trials"))
    assert len(fair) == len(set(fair)) == len(losses(student)) + len(losses(assistant)) == count
    direct = losses(node_of(prepared, f"table1/cnn/{dataset}/BLKD"))
    assert fair[: len(direct)] == direct


@pytest.mark.parametrize(("tier", "protocol"), [("laptop", "clean"), ("full", "clean"), ("full", "released")])
def test_a_net_born_again_shares_no_initialisation_with_its_teacher(tier: str, protocol: str) -> None:
    """Seed, network and restart decide initialisation and order: equal ones would make the second net a copy's heir."""
    prepared = planned(tier, protocol)
    again = node_of(prepared, f"fair/{prepared.request.dataset}/born-again")
    one = next(iter(again.inputs.values())) if kind(again.spec) == "Choose" else again
    first = one.inputs["teacher"].inputs["network"]
    restarts = [{restart for _, _, restart in losses(node)} for node in (again, first)]
    assert restarts[0].isdisjoint(restarts[1])
    assert [loss[:2] for loss in losses(again)] == [loss[:2] for loss in losses(first)]


def trials(node: Node) -> int:
    return len(node.inputs) if kind(node.spec) == "Choose" else 1


def trials_in_all(node: Node, teacher: tuple[int, ...]) -> int:
    """Trials of every stage on the way from that teacher, which every arm shares."""
    first = next(iter(node.inputs.values())) if kind(node.spec) == "Choose" else node
    source = first.inputs["teacher"].inputs["network"]
    return trials(node) + (0 if sizes(source) == teacher else trials_in_all(source, teacher))


@pytest.mark.parametrize(
    ("family", "teacher", "table"), [("cnn", 10, "table2"), ("resnet", 110, "table3")], ids=["cnn", "resnet"]
)
@pytest.mark.parametrize(("protocol", "takd"), [("clean", 8), ("written", 240), ("released", 240)])
def test_tuning_budget_of_every_arm_at_full(family: str, teacher: int, table: str, protocol: str, takd: int) -> None:
    prepared = planned("full", protocol)
    assisted = [m.cell for m in prepared.plan.measurements if m.cell.startswith((f"{table}/", f"table1/{family}/"))]
    arms = {cell: node_of(prepared, cell) for cell in assisted}
    direct = arms.pop(f"table1/{family}/cifar100/BLKD")
    scratch = arms.pop(f"table1/{family}/cifar100/NOKD")
    assert len(arms) >= 4
    assert {trials_in_all(node, (teacher,)) for node in arms.values()} == {takd}
    # Clean: as many for each arm. Else as published, where three seeds are all that a net without a teacher can search.
    expected = (takd, takd) if protocol == "clean" else (takd // 2, 3)
    assert (trials_in_all(direct, (teacher,)), trials(scratch)) == expected
    assert len({str(sorted(n.spec.stage.items(), key=str)) for n in scratch.inputs.values()}) == trials(scratch)


@pytest.mark.parametrize("tier", ["smoke", "laptop"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_a_search_every_arm_is_the_one_stage_that_figures_show_too(tier: str, protocol: str) -> None:
    prepared = planned(tier, protocol)
    for arm, same in (("BLKD", "fig2/mnist1d/T10"), ("NOKD", "fig4/cnn/mnist1d/scratch2")):
        assert node_of(prepared, f"table1/cnn/mnist1d/{arm}").spec.hash == node_of(prepared, same).spec.hash


def test_the_clean_rival_of_h14_at_full_is_the_arm_of_table1() -> None:
    prepared = planned("full")
    fair = node_of(prepared, "fair/cifar100/BLKD-equal-trials")
    assert fair.spec.hash == node_of(prepared, "table1/cnn/cifar100/BLKD").spec.hash


@pytest.mark.parametrize(("protocol", "by"), [("clean", "validation"), ("written", "test"), ("released", "test")])
def test_every_choice_is_made_on_the_split_of_the_reading(protocol: str, by: str) -> None:
    for prepared in (planned("full", protocol), planned("laptop", protocol)):
        chosen = [spec.stage["by"] for spec in prepared.plan.specs.values() if kind(spec) == "Choose"]
        assert set(chosen) == {by}


def test_the_clean_reading_treats_every_arm_alike() -> None:
    specs = planned("full").plan.specs
    recipes: dict[str, list[Any]] = {"Plain": [], "CifarResNet": []}
    for spec in specs.values():
        if kind(spec) == "Train":
            family = spec.stage["network"]["type"].rpartition(":")[2]
            if spec.stage["recipe"] not in recipes[family]:
                recipes[family].append(spec.stage["recipe"])
    assert {family: len(found) for family, found in recipes.items()} == {"Plain": 1, "CifarResNet": 1}
    # Four trials a stage, from scratch or distilled; NOKD and BLKD of Table 1 have those of TAKD's two stages.
    counts = Counter(len(spec.inputs) for spec in specs.values() if kind(spec) == "Choose")
    assert set(counts) == {4, 8}
    assert counts[8] == 2 * 2
    chosen = {key for spec in specs.values() if kind(spec) == "Choose" for key in spec.inputs.values()}
    assert {key for key, spec in specs.items() if kind(spec) == "Train"} == chosen


# ------------------------------------------------------------------------------------------------- derived quantities


def read(prepared: Prepared, cell: str, metrics: dict[tuple[int, ...], dict[str, float]]) -> float:
    """The cell's quantity on records made by hand, one for every chain of sizes."""
    (measurement,) = (m for m in prepared.plan.measurements if m.cell == cell)
    records: Any = {n.spec.hash: SimpleNamespace(metrics=metrics[sizes(n)]) for n in measurement.quantity.nodes}
    return measurement.quantity.read(records)


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_relative_gain_is_in_percent_of_scratch(size: int) -> None:
    metrics = {(10, size): {"test.accuracy": 92.0}, (size,): {"test.accuracy": 80.0}}
    assert read(planned(), f"fig3/mnist1d/S{size}", metrics) == pytest.approx(15.0)


def scratch_and_chains(split: str, scratch: dict[int, float]) -> dict[tuple[int, ...], dict[str, float]]:
    """Chosen by ``split``; on the other split each assistant has a neighbour's accuracy, so that another is nearest."""
    other = {"test": "validation", "validation": "test"}[split]
    decoy = scratch | {4: scratch[6], 6: scratch[8], 8: scratch[4]}
    metrics: dict[tuple[int, ...], dict[str, float]] = {
        (size,): {f"{split}.accuracy": scratch[size], f"{other}.accuracy": decoy[size]} for size in scratch
    }
    return metrics | {(10, size, 2): {"test.accuracy": 50.0 + size} for size in (8, 6, 4)}


@pytest.mark.parametrize(("protocol", "split"), [("clean", "validation"), ("released", "test"), ("written", "test")])
@pytest.mark.parametrize(
    ("scratch", "order"),
    [
        ({2: 60, 4: 82, 6: 71, 8: 95, 10: 100}, (4, 6, 8)),
        ({2: 60, 4: 62, 6: 79, 8: 95, 10: 100}, (6, 8, 4)),
        ({2: 60, 4: 62, 6: 70, 8: 81, 10: 100}, (8, 6, 4)),
        ({2: 60, 4: 79, 6: 95, 8: 81, 10: 100}, (8, 4, 6)),  # of equals the largest, as the sizes are listed
    ],
)
def test_assistants_stand_by_their_gap_to_the_mean(
    protocol: str, split: str, scratch: dict[int, float], order: tuple[int, ...]
) -> None:
    metrics = scratch_and_chains(split, scratch)
    cells = [f"fig4/cnn/mnist1d/TA-{name}" for name in ("nearest", "other-1", "other-2")]
    assert tuple(read(planned(protocol=protocol), cell, metrics) for cell in cells) == tuple(
        50 + size for size in order
    )


def test_the_nearest_resnet_assistant_on_the_authors_own_accuracies() -> None:
    scratch = {8: 61.37, 14: 64.0, 20: 67.03, 32: 69.0, 56: 71.0, 110: 72.38}  # 14, 32, 56: not known, by depth
    metrics = {(size,): {"validation.accuracy": accuracy} for size, accuracy in scratch.items()}
    metrics |= {(110, size, 8): {"test.accuracy": 50.0 + size} for size in (14, 20, 32, 56)}
    cells = [f"fig4/resnet/cifar100/TA-{name}" for name in ("nearest", "other-1", "other-2", "other-3")]
    assert [read(planned("full"), cell, metrics) - 50 for cell in cells] == [20, 32, 14, 56]


@pytest.mark.parametrize(
    ("tier", "dataset", "family", "table", "others"),
    [("laptop", "mnist1d", "cnn", "table2", (8, 6, 4)), ("full", "cifar10", "resnet", "table3", (56, 32, 20, 14))],
)
def test_the_students_by_gap_are_those_of_the_tables(
    tier: str, dataset: str, family: str, table: str, others: tuple[int, ...]
) -> None:
    prepared = planned(tier, dataset=dataset)
    students = {node_of(prepared, f"{table}/{dataset}/TA{size}").spec.hash for size in others}
    by_gap = [m for m in prepared.plan.measurements if m.cell.startswith(f"fig4/{family}/{dataset}/TA-")]
    assert len(by_gap) == len(others)
    for measurement in by_gap:
        assert students <= {node.spec.hash for node in measurement.quantity.nodes}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_plan_trains_by_the_recipe_of_its_reading(protocol: str) -> None:
    for spec in planned("full", protocol).plan.specs.values():
        if kind(spec) == "Train":
            stage = unpack(spec.stage)
            family = "cnn" if stage.network.name.startswith("plain") else "resnet"
            assert stage.recipe == method(protocol=protocol, tier="full", dataset="cifar100", family=family).recipe

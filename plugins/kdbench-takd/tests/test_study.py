"""The study as a plan: which stages it asks for, what they share, and which cells they fill. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.paper import PROTOCOLS
from kdbench.stage import Spec
from kdbench.study import Node
from kdbench_takd.recipes import method

PLAIN_CLAIMS = {"H1", "H2", "H3", "H4", "H5", "H6", "H7", "H10", "H11", "H11-tau", "H13", "H14"}
NOT_TESTED = {"H8", "H9", "H12"}


@cache
def planned(
    tier: str = "laptop", protocol: str = "clean", claims: str = "all", dataset: str | None = None, seeds: int = 1
) -> Prepared:
    return prepare(
        "takd",
        tier=tier,
        dataset=dataset,
        protocol=protocol,
        claims=claims,
        seeds=seeds,
        device="cpu",
        fetch=False,
    )


def kind(spec: Spec) -> str:
    return str(spec.stage["type"]).partition(":")[2]


def kinds(prepared: Prepared) -> Counter[str]:
    return Counter(map(kind, prepared.plan.specs.values()))


def node_of(prepared: Prepared, cell: str, position: int = 0) -> Node:
    (measurement,) = (m for m in prepared.plan.measurements if m.cell == cell)
    return measurement.quantity.nodes[position]


@cache  # a search of 120 trials at every step has 120 ways up for each of them
def sizes(node: Node) -> tuple[int, ...]:
    """The way knowledge took to a network, read off the stages: (10, 4, 2). Trials of one arm agree on it."""
    if kind(node.spec) == "Choose":
        (way,) = {sizes(trial) for trial in node.inputs.values()}
        return way
    network = unpack(node.spec.stage["network"])
    size = getattr(network, "size", None) or network.depth
    teacher = node.inputs.get("teacher")
    return (*sizes(teacher.inputs["network"]), size) if teacher else (size,)


# --------------------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("tier", ["smoke", "laptop"])
@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        # Five sizes from scratch; from T10 the three assistants; S2 from T4, T6, T8, T10 and from each assistant.
        ("core", {"Train": 5 + 3 + 4 + 3, "Teacher": 4 + 3}),
        # 5 scratch and the 15 of the path tree; S2 from T4, T6, T8; three more temperatures, one more trial, one born
        # again.
        # Teachers: four from scratch, seven assistants of the tree, the first S2 of born-again.
        ("all", {"Train": 5 + 15 + 3 + 3 + 1 + 1, "Teacher": 4 + 7 + 1, "Agreement": 2, "Choose": 2}),
        ("H13", {"Train": 5, "Teacher": 3}),
        ("H11", {"Train": 4, "Teacher": 4}),
        ("H3", {"Train": 2 + 2 + 1, "Teacher": 2}),
        ("H1,H13", {"Train": 4 + 4 + 2, "Teacher": 5}),
    ],
)
def test_stages_of_one_seed(tier: str, protocol: str, claims: str, expected: dict[str, int]) -> None:
    assert kinds(planned(tier, protocol, claims)) == expected


def test_seeds_share_nothing_and_cost_the_same() -> None:
    assert kinds(planned(seeds=3)) == {name: 3 * count for name, count in kinds(planned()).items()}


@pytest.mark.parametrize("claims", ["H8", "H9", "H12", "H4-resnet"])
def test_a_claim_that_the_tier_cannot_test_asks_for_no_stage(claims: str) -> None:
    prepared = planned(claims=claims)
    assert [claim.id for claim in prepared.plan.claims] == [claims]
    assert not prepared.plan.specs


def test_fewer_claims_take_stages_of_the_whole_and_no_others() -> None:
    whole = set(planned().plan.specs)
    for claims in ("core", *sorted(PLAIN_CLAIMS)):
        some = planned(claims=claims).plan
        assert set(some.specs) < whole, claims
        asked = {cell for claim in some.claims for cell in claim.cells()}
        assert asked <= {m.cell for m in some.measurements}, claims


def test_protocols_and_tiers_share_no_stage() -> None:
    plans = [planned(tier, protocol, dataset="mnist1d").plan for tier in ("smoke", "laptop") for protocol in PROTOCOLS]
    assert sum(len(plan.specs) for plan in plans) == len({key for plan in plans for key in plan.specs})


# ---------------------------------------------------------------------------------------------------------- the paths


@pytest.mark.parametrize(("tier", "dataset"), [("laptop", "mnist1d"), ("full", "cifar100")])
def test_every_path_of_fig5_is_the_chain_that_it_names(tier: str, dataset: str) -> None:
    prepared = planned(tier, dataset=dataset)
    prefix = f"fig5/{dataset}/"
    names = [m.cell.removeprefix(prefix) for m in prepared.plan.measurements if m.cell.startswith(prefix)]
    paths = {name: node_of(prepared, prefix + name) for name in names if not name.startswith("NOKD")}
    for name, node in paths.items():
        assert sizes(node) == tuple(map(int, name.split("-")))
    assert len({node.spec.hash for node in paths.values()}) == len(paths) == 15
    assert Counter(name.rpartition("-")[2] for name in paths) == {"2": 8, "4": 4, "6": 2, "8": 1}
    scratch = {node_of(prepared, f"fig4/{dataset}/scratch{size}").spec.hash: size for size in (2, 4, 6, 8, 10)}
    assert len(scratch) == 5
    for size in (2, 4, 6, 8):
        assert scratch[node_of(prepared, f"{prefix}NOKD-S{size}").spec.hash] == size


@pytest.mark.parametrize(
    ("cell", "way"),
    [
        ("table1/cnn/{}/NOKD", (2,)),
        ("table1/cnn/{}/BLKD", (10, 2)),
        ("table1/cnn/{}/TAKD", (10, 4, 2)),
        ("table1/resnet/{}/NOKD", (8,)),
        ("table1/resnet/{}/BLKD", (110, 8)),
        ("table1/resnet/{}/TAKD", (110, 20, 8)),
        *((f"table2/{{}}/TA{size}", (10, size, 2)) for size in (8, 6, 4)),
        *((f"table3/{{}}/TA{size}", (110, size, 8)) for size in (56, 32, 20, 14)),
        *((f"fig2/{{}}/T{size}", (size, 2)) for size in (4, 6, 8, 10)),
        *((f"fig4/{{}}/scratch{size}", (size,)) for size in (2, 4, 6, 8, 10)),
        ("fig4/{}/TA-middle", (10, 6, 2)),
        ("tuned/{}/BLKD-tau", (10, 2)),
        ("fair/{}/BLKD-equal-trials", (10, 2)),
        ("fair/{}/born-again", (10, 2, 2)),
    ],
)
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_cell_is_measured_on_the_chain_that_the_paper_means(cell: str, way: tuple[int, ...], dataset: str) -> None:
    assert sizes(node_of(planned("full", dataset=dataset), cell.format(dataset))) == way


def test_mechanisms_hold_each_student_against_its_own_teacher() -> None:
    prepared = planned()
    for name, student, teacher in (("T", (10, 2), (10,)), ("TA", (10, 4, 2), (10, 4))):
        for split, metric in product(("train", "test"), ("kl", "agreement")):
            node = node_of(prepared, f"fit/mnist1d/{split}-{metric}/{name}")
            assert (sizes(node.inputs["student"]), sizes(node.inputs["teacher"])) == (student, teacher)
    for size in (4, 6, 8, 10):
        node = node_of(prepared, f"entropy/mnist1d/T{size}")
        assert (kind(node.spec), sizes(node.inputs["network"])) == ("Teacher", (size,))


# -------------------------------------------------------------------------------------------------------- the teachers


AT_FULL = [("full", "cifar100", protocol) for protocol in PROTOCOLS]


@pytest.mark.parametrize(
    ("tier", "dataset", "protocol"), [*AT_FULL, *(("laptop", "mnist1d", protocol) for protocol in PROTOCOLS)]
)
def test_every_teacher_is_evaluated_once_and_cached_where_its_inputs_never_change(
    tier: str, dataset: str, protocol: str
) -> None:
    specs = planned(tier, protocol, dataset=dataset).plan.specs
    teachers = {spec.inputs["network"]: spec for spec in specs.values() if kind(spec) == "Teacher"}
    assert len(teachers) == sum(kind(spec) == "Teacher" for spec in specs.values())
    # Whoever distils takes it from a teacher stage, never from the network itself.
    students = [spec for spec in specs.values() if kind(spec) == "Train" and spec.inputs]
    assert {spec.inputs["teacher"] for spec in students} <= {spec.hash for spec in teachers.values()}
    live = {"resnet"} if protocol == "clean" else set()
    for network, teacher in teachers.items():
        trained = specs[network]
        while kind(trained) == "Choose":
            trained = specs[trained.inputs["0"]]
        family = "resnet" if "CifarResNet" in trained.stage["network"]["type"] else "cnn"
        assert teacher.stage["cache"] is (family not in live)
        assert teacher.stage["holdout"] == trained.stage["recipe"]["holdout"]


def floors(prepared: Prepared) -> Iterator[tuple[tuple[int, ...], float | None]]:
    seen: dict[str, Node] = {}

    def walk(node: Node) -> None:
        if node.spec.hash not in seen:
            seen[node.spec.hash] = node
            for parent in node.inputs.values():
                walk(parent)

    for measurement in prepared.plan.measurements:
        for node in measurement.quantity.nodes:
            walk(node)
    for node in seen.values():
        if kind(node.spec) == "Teacher":
            yield sizes(node.inputs["network"]), node.spec.stage["floor"]


def test_gates_stand_before_the_teachers_whose_accuracy_is_known() -> None:
    laptop = dict(floors(planned()))
    assert {way: laptop.pop(way) for way in [(4,), (6,), (8,), (10,)]} == pytest.approx(
        {(4,): 91.8, (6,): 92.48, (8,): 92.29, (10,): 92.91}
    )
    assert set(laptop.values()) == {None}  # what was distilled is the method's own, good or bad
    assert len(laptop) == 8
    # The pilot's accuracies are those of the clean recipe, and of its length.
    for other in (planned(protocol="released"), planned(protocol="written"), planned("smoke")):
        assert set(dict(floors(other)).values()) == {None}
    full = {way: floor for way, floor in floors(planned("full", "released")) if floor is not None}
    assert full == pytest.approx({(110,): 70.38})


# -------------------------------------------------------------------------------------------------- claims and cells


@pytest.mark.parametrize(
    ("tier", "dataset", "tested"),
    [
        ("laptop", "mnist1d", PLAIN_CLAIMS),
        ("laptop", "cifar10", PLAIN_CLAIMS),
        ("full", "mnist1d", PLAIN_CLAIMS),
        ("full", "cifar10", PLAIN_CLAIMS | {"H4-resnet"}),
        ("full", "cifar100", PLAIN_CLAIMS | {"H4-resnet"}),
    ],
)
def test_every_cell_of_a_claim_is_measured_where_the_claim_is_tested(tier: str, dataset: str, tested: set[str]) -> None:
    plan = planned(tier, dataset=dataset).plan
    measured = {m.cell for m in plan.measurements}
    assert {claim.id for claim in plan.claims if claim.not_tested} == NOT_TESTED
    assert {claim.id for claim in plan.claims if claim.cells() and measured.issuperset(claim.cells())} == tested
    families = 2 if "H4-resnet" in tested else 1
    assert [claim.id for claim in plan.claims].count("H3") == families


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_measured_and_reported_cells_have_the_same_names(dataset: str) -> None:
    prepared = planned("full", dataset=dataset)
    measured = {m.cell for m in prepared.plan.measurements}
    reported = {cell for cell, (_, table) in prepared.paper.reported().items() if table.comparable}
    ours = {cell for cell in reported if f"/{dataset}/" in cell and not cell.startswith("fig6/")}  # H8: not tested
    assert ours <= measured
    tables = {cell.partition("/")[0] for cell in reported}
    beyond = {cell for cell in measured - reported if cell.partition("/")[0] in tables}
    # The paper shows Fig. 5 on CIFAR-100 alone.
    assert beyond == ({cell for cell in measured if cell.startswith("fig5/")} if dataset == "cifar10" else set())


def test_a_cell_is_measured_once_for_every_seed() -> None:
    measurements = planned(seeds=3).plan.measurements
    assert set(Counter(m.cell for m in measurements).values()) == {3}
    assert {m.seed for m in measurements} == {0, 1, 2}


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
    # Four trials each, from scratch or distilled; only the control of H14 has more.
    trials = Counter(len(spec.inputs) for spec in specs.values() if kind(spec) == "Choose")
    assert set(trials) == {4, 8}
    assert trials[8] == 1
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
    ("scratch", "nearest"),
    [
        ({2: 60, 4: 82, 6: 71, 8: 95, 10: 100}, 4),
        ({2: 60, 4: 62, 6: 79, 8: 95, 10: 100}, 6),
        ({2: 60, 4: 62, 6: 70, 8: 81, 10: 100}, 8),
        ({2: 60, 4: 79, 6: 95, 8: 81, 10: 100}, 8),  # of equals the largest, as the sizes are listed
    ],
)
def test_nearest_assistant_is_the_one_nearest_to_the_mean(
    protocol: str, split: str, scratch: dict[int, float], nearest: int
) -> None:
    metrics = scratch_and_chains(split, scratch)
    assert read(planned(protocol=protocol), "fig4/mnist1d/TA-nearest", metrics) == 50 + nearest


def test_the_students_of_the_nearest_assistant_are_those_of_table2() -> None:
    prepared = planned()
    (nearest,) = (m for m in prepared.plan.measurements if m.cell == "fig4/mnist1d/TA-nearest")
    assert {node_of(prepared, f"table2/mnist1d/TA{size}").spec.hash for size in (8, 6, 4)} <= {
        node.spec.hash for node in nearest.quantity.nodes
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_plan_trains_by_the_recipe_of_its_reading(protocol: str) -> None:
    for spec in planned("full", protocol).plan.specs.values():
        if kind(spec) == "Train":
            stage = unpack(spec.stage)
            family = "cnn" if stage.network.name.startswith("plain") else "resnet"
            assert stage.recipe == method(protocol=protocol, tier="full", dataset="cifar100", family=family).recipe

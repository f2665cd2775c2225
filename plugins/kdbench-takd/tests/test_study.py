"""The study as a plan: which stages it asks for, what they share, and which cells they fill. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest
from takd_plans import kind, kinds, node_of, planned, sizes

from kdbench.api import Prepared
from kdbench.paper import PROTOCOLS
from kdbench.study import Node

PLAIN_CLAIMS = {"H1", "H2", "H3", "H4", "H5", "H6", "H7", "H10", "H11", "H11-tau", "H13", "H14"}
RESNET_CLAIMS = {"H4-resnet", "H5-resnet"}
NOT_TESTED = {"H8", "H9", "H12"}


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


@pytest.mark.parametrize("claims", ["H8", "H9", "H12", "H4-resnet", "H5-resnet"])
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
    scratch = {node_of(prepared, f"fig4/cnn/{dataset}/scratch{size}").spec.hash: size for size in (2, 4, 6, 8, 10)}
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
        *((f"fig4/cnn/{{}}/scratch{size}", (size,)) for size in (2, 4, 6, 8, 10)),
        *((f"fig4/resnet/{{}}/scratch{size}", (size,)) for size in (8, 14, 20, 32, 56, 110)),
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
        {(4,): 88.8, (6,): 89.48, (8,): 89.29, (10,): 89.91}
    )
    assert set(laptop.values()) == {None}  # what was distilled is the method's own, good or bad
    assert len(laptop) == 8
    # The pilot's accuracies are those of the clean recipe, and of its length.
    for other in (planned(protocol="released"), planned(protocol="written"), planned("smoke")):
        assert set(dict(floors(other)).values()) == {None}
    full = {way: floor for way, floor in floors(planned("full")) if floor is not None}
    assert full == pytest.approx({(110,): 70.38})
    # The other two readings are expected to end lower, and their runs must be able to show where.
    for protocol in ("written", "released"):
        assert set(dict(floors(planned("full", protocol))).values()) == {None}


# -------------------------------------------------------------------------------------------------- claims and cells


@pytest.mark.parametrize(
    ("tier", "dataset", "tested"),
    [
        ("laptop", "mnist1d", PLAIN_CLAIMS),
        ("laptop", "cifar10", PLAIN_CLAIMS),
        ("full", "mnist1d", PLAIN_CLAIMS),
        ("full", "cifar10", PLAIN_CLAIMS | RESNET_CLAIMS),
        ("full", "cifar100", PLAIN_CLAIMS | RESNET_CLAIMS),
    ],
)
def test_every_cell_of_a_claim_is_measured_where_the_claim_is_tested(tier: str, dataset: str, tested: set[str]) -> None:
    plan = planned(tier, dataset=dataset).plan
    measured = {m.cell for m in plan.measurements}
    assert {claim.id for claim in plan.claims if claim.not_tested} == NOT_TESTED
    assert {claim.id for claim in plan.claims if claim.cells() and measured.issuperset(claim.cells())} == tested
    families = 2 if tested > PLAIN_CLAIMS else 1
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

"""The study as a plan: which stages it asks for, what they share, and which cells they fill. Nothing is trained."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vid_plans import PLANS, PROTOCOLS, kinds, measured, measurement, network, planned, rows, stage

from kdbench.api import prepare
from kdbench.paper import TIERS
from kdbench_vidlankd.datasets import UNSPOKEN
from kdbench_vidlankd.finetune import FineTune
from kdbench_vidlankd.objectives import CRD, NST, NTXent
from kdbench_vidlankd.pretrain import PretrainStudent, PretrainTeacher
from kdbench_vidlankd.probes import PROBES, Probe
from kdbench_vidlankd.recipes import DISTILLED_STEP, GRID, VOKENS, WEIGHTS
from kdbench_vidlankd.retrieval import RANKS, Retrieve, chance
from kdbench_vidlankd.study import TASKS
from kdbench_vidlankd.vokens import Vokenize, VokenLabels
from kdbench_vidlankd.world import PARTS, TEST_CLIPS, World

for extra in ("transformers", "tokenizers", "sklearn"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

CORE = {"text", "nst", "crd", "nst-mismatched", "crd-mismatched"}
OBJECTIVES = {
    "soft", "l2", "nt-xent", "nst+crd", "nst-released", "nt-xent-released", "nst-headless", "crd-headless", "voken",
    "voken-many",
}  # fmt: skip
TEACHERS = {"mlm-only", "contrastive-only", "single-frame", "frozen", "2d", "random"}
CONTROLS = {"text+captions", "text-compute", "teacher", "teacher-then-text"}
ARMS = CORE | OBJECTIVES | CONTROLS | {f"crd-{kind}" for kind in TEACHERS} | {"nst-random"}


@pytest.fixture(scope="module", autouse=True)
def data(cache: Path) -> None:
    """Plans are made with the session's folder for data, in which there are none that are supplied."""


# --------------------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("claims", ["core", "all"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("tier", "dataset"), PLANS)
def test_every_cell_of_every_claim_is_measured_or_has_a_reason(
    tier: str, dataset: str, protocol: str, claims: str
) -> None:
    plan = planned(tier, dataset=dataset, protocol=protocol, claims=claims).plan
    cells = measured(plan)
    axes = plan.lab.axes
    compared = {cell for claim in plan.lab.paper.claims for each in claim.instances(axes) for cell in each.cells()}
    everything = {each.cell for each in plan.lab.paper.study(plan.lab)}
    assert compared <= everything | plan.lab.left_out.keys()
    assert not everything & plan.lab.left_out.keys()
    assert plan.lab.left_out.keys() <= compared
    assert all(reason.startswith("not run: ") for reason in plan.lab.left_out.values())
    tested = [claim for claim in plan.claims if not claim.not_tested]
    assert tested
    for claim in tested:
        assert set(claim.cells()) <= cells, claim.id


def test_what_is_not_measured_is_said_in_words() -> None:
    words = "not run: HowTo100M has no nouns whose attributes are known"
    left_out = planned("full").plan.lab.left_out
    assert {reason for cell, reason in left_out.items() if cell.startswith(("probe/", "teacher/"))} == {words}
    assert left_out["text/howto100m/nst/acceptability"] == "not run: HowTo100M features has no such task"
    assert "text/howto100m/nst/mlm" not in left_out
    world = planned("laptop").plan.lab
    assert {cell.partition("/")[0] for cell in world.left_out} == {"glue"}
    assert set(world.left_out.values()) == {f"not run: {world.data.title} has no such task"}
    released = planned("laptop", protocol="released").plan.lab.left_out
    assert released["probe/unspoken/soft/colour"] == "not run: the released code has no such arm that runs"


@pytest.mark.parametrize(("tier", "dataset"), PLANS[:-3])
def test_every_arm_of_a_world_is_measured(tier: str, dataset: str) -> None:
    tables = rows(planned(tier, dataset=dataset).plan)
    assert tables["probe"].keys() == ARMS | {"chance"}
    assert all(columns == set(PROBES) for columns in tables["probe"].values())
    assert tables["teacher"].keys() == TEACHERS | {"video", "mismatched"}
    assert all(columns == {*PROBES, "collapse"} for columns in tables["teacher"].values())
    assert tables["text"].keys() == CORE | OBJECTIVES | CONTROLS
    for arm, columns in tables["text"].items():
        assert columns == {"mlm", *(("acceptability", "acceptability-collapsed") if arm in CORE else ())}
    assert tables["retrieval"].keys() == {"crd", "teacher", "chance"}
    assert all(columns == {f"recall{rank}" for rank in RANKS} for columns in tables["retrieval"].values())
    assert tables["weights"].keys() == {f"{name}@{weight:g}" for name, grid in GRID.items() for weight in grid}
    expected = {name for task in TASKS[dataset] for name in (task, f"{task}-collapsed")}
    assert tables.get("glue", {}) == (dict.fromkeys(CORE, expected) if expected else {})


def test_of_real_videos_text_and_tasks_are_measured() -> None:
    tables = rows(planned("full").plan)
    assert tables.keys() == {"text", "glue"}
    assert tables["text"] == {arm: {"mlm"} for arm in CORE | OBJECTIVES | CONTROLS}
    expected = {name for task in ("SST-2", "QNLI", "QQP", "MNLI") for name in (task, f"{task}-collapsed")}
    assert tables["glue"] == dict.fromkeys(CORE, expected)


def test_as_released_there_are_the_core_arms() -> None:
    for tier in TIERS:
        tables = rows(planned(tier, protocol="released").plan)
        assert tables["text"].keys() == CORE


# ------------------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(("tier", "dataset"), PLANS[:-3])
def test_core_stages_of_one_seed(tier: str, dataset: str) -> None:
    # Two teachers, of which the mismatched one need not be probed; five students, three of which are asked for text.
    expected = {"PretrainTeacher": 2, "PretrainStudent": 5, "Probe": 6, "MaskedLoss": 3}
    assert kinds(planned(tier, dataset=dataset, claims="core").plan) == expected


def test_core_stages_of_real_videos_are_those_that_text_needs() -> None:
    expected = {"PretrainTeacher": 1, "PretrainStudent": 3, "MaskedLoss": 3}
    assert kinds(planned("full", claims="core").plan) == expected


def test_all_stages_of_one_seed() -> None:
    found = kinds(planned("laptop").plan)
    sweeps = sum(len(grid) - 1 for grid in GRID.values())  # the chosen weights are arms
    students = len(ARMS - {"teacher"}) + sweeps
    assert found == {
        "PretrainTeacher": 8,
        "PretrainStudent": students,
        "Probe": students + 8,
        "MaskedLoss": len(CORE | OBJECTIVES | CONTROLS),
        "FineTune": len(CORE),
        "Vokenize": 2,
        "Retrieve": 2,
    }


@pytest.mark.parametrize("claims", ["core", "all"])
def test_seeds_share_nothing_and_cost_the_same(claims: str) -> None:
    one, two = (planned(claims=claims, seeds=seeds).plan for seeds in (1, 2))
    assert set(one.specs) < set(two.specs)
    assert kinds(two) == {name: 2 * count for name, count in kinds(one).items()}
    worlds = {(spec.seed, spec.stage["world"]) for spec in two.specs.values()}
    assert worlds == {(0, 0), (1, 1)}
    for spec in two.specs.values():
        assert {two.specs[key].seed for key in spec.inputs.values()} <= {spec.seed}


def test_seeds_by_default() -> None:
    found = {tier: len(prepare("vidlankd", tier=tier, device="cpu", fetch=False).request.seeds) for tier in TIERS}
    assert found == {"smoke": 1, "laptop": 5, "full": 5}


def test_protocols_share_no_network() -> None:
    one, other = (set(planned(protocol=protocol).plan.specs) for protocol in PROTOCOLS)
    assert not one & other


@pytest.mark.parametrize(("tier", "dataset"), PLANS)
def test_labels_tell_stages_apart(tier: str, dataset: str) -> None:
    labels = [spec.label for spec in planned(tier, dataset=dataset).plan.specs.values()]
    assert all(labels)
    twice = {label for label in labels if labels.count(label) > 1}
    # A text-only student of more epochs is the same kind of thing.
    assert all(label.startswith(("student on text seed", "probe: student on text seed")) for label in twice)


# --------------------------------------------------------------------------------------------------------------- arms


def arm(name: str, **more: Any) -> PretrainStudent:
    made = stage(network(planned(**more), f"text/{name}/mlm"))
    assert isinstance(made, PretrainStudent)
    return made


def taught_by(name: str, **more: Any) -> PretrainTeacher:
    found = network(planned(**more), f"probe/{name}/colour").inputs["teacher"]
    made = stage(found)
    assert isinstance(made, PretrainTeacher)
    return made


@pytest.mark.parametrize(("tier", "dataset"), PLANS)
def test_arms_differ_in_objectives_alone(tier: str, dataset: str) -> None:
    plain = arm("text", tier=tier, dataset=dataset)
    assert plain.objectives == ()
    for name in CORE | OBJECTIVES:
        found = arm(name, tier=tier, dataset=dataset)
        assert msgspec.structs.replace(found, objectives=()) == plain, name
        assert bool(found.objectives) == (name != "text")
    assert arm("nst+crd", tier=tier).objectives == arm("nst", tier=tier).objectives + arm("crd", tier=tier).objectives


def test_one_teacher_teaches_every_arm_of_a_seed() -> None:
    plan = planned(seeds=2)
    for seed in (0, 1):
        video = network(plan, "teacher/video/colour", seed)
        names = ("nst", "crd", "soft", "l2", "nt-xent", "nst+crd", "nst-released", "nst-headless", "crd-headless")
        for name in names:
            assert network(plan, f"probe/{name}/colour", seed).inputs == {"teacher": video}, name
        assert network(plan, "probe/text/colour", seed).inputs == {}
        assert network(plan, "probe/text+captions/colour", seed).inputs == {}
        assert network(plan, "probe/teacher/colour", seed) is video
        assert network(plan, "probe/teacher-then-text/colour", seed).inputs == {"start": video}
        for name in VOKENS:
            labels = network(plan, f"probe/{name}/colour", seed).inputs["vokens"]
            assert labels.inputs == {"teacher": video}
        for name in ("crd", "teacher"):
            (node,) = measurement(plan, f"retrieval/{name}/recall5", seed).quantity.nodes
            assert isinstance(stage(node), Retrieve)
            assert node.inputs["teacher"] is video
            assert node.inputs["network"] is (video if name == "teacher" else network(plan, "probe/crd/colour", seed))


@pytest.mark.parametrize("kind", sorted(TEACHERS | {"mismatched"}))
def test_other_teachers_differ_in_one_thing_and_teach_their_own_students(kind: str) -> None:
    video, other = taught_by("crd"), taught_by(f"crd-{kind}")
    differ = {name for name in video.__struct_fields__ if getattr(video, name) != getattr(other, name)}
    expected = {
        "mismatched": "pairing", "mlm-only": "contrast", "contrastive-only": "masked", "single-frame": "frames",
        "frozen": "video", "2d": "streams", "random": "recipe",
    }[kind]  # fmt: skip
    assert differ == {expected}
    assert stage(network(planned(), f"teacher/{kind}/colour")) == other
    student = stage(network(planned(), f"probe/crd-{kind}/colour"))
    assert student == stage(network(planned(), "probe/crd/colour"))
    if kind in ("mlm-only", "contrastive-only"):
        assert getattr(other, expected) == 0.0
    if kind == "random":
        assert other.recipe.epochs == 0
        assert taught_by("nst-random") == other
    if kind == "frozen":
        assert other.video == msgspec.structs.replace(video.video, trained=False)
        assert video.video.trained


def test_vokens_are_labels_of_the_same_blocks() -> None:
    for name, count in VOKENS.items():
        node = network(planned(), f"probe/{name}/colour")
        student, labels = stage(node), stage(node.inputs["vokens"])
        assert labels == Vokenize(count=count, world=0, length=student.length)
        assert student.objectives == (VokenLabels(weight=1.0, count=count),)
        assert count <= UNSPOKEN.sizes["train"]


def test_equal_compute_is_equal_compute() -> None:
    expected = UNSPOKEN.expected()
    plain, longer, distilled = (arm(name).effort(expected, {}) for name in ("text", "text-compute", "crd"))
    assert plain.steps == distilled.steps
    # A forward pass of the teacher's for three of the student's, the head and the memory.
    assert 1.45 < distilled.macs / plain.macs < DISTILLED_STEP
    assert longer.macs / plain.macs == pytest.approx(DISTILLED_STEP, rel=0.05)
    assert msgspec.structs.replace(arm("text-compute"), recipe=arm("text").recipe) == arm("text")


def test_controls_are_what_they_say() -> None:
    plain = arm("text")
    assert msgspec.structs.replace(arm("text+captions"), captions=False) == plain
    assert not plain.captions
    assert arm("text+captions").captions
    assert arm("teacher-then-text") == plain
    for name in ("nst", "crd"):
        (with_head,), (without,) = arm(name).objectives, arm(f"{name}-headless").objectives
        assert msgspec.structs.replace(without, head=True) == with_head
        assert not without.head


@pytest.mark.parametrize("tier", TIERS)
def test_as_released(tier: str) -> None:
    """The released code, as the ledger has it."""
    how = {"tier": tier, "protocol": "released"}
    plain, nst, crd = (arm(name, **how) for name in ("text", "nst", "crd"))
    assert nst.objectives == (NST(weight=1.0, divide="length"),)
    assert crd.objectives == (NTXent(weight=1.0, temperature=1.0, released=True),)
    steps = 44 / 40 if tier == "full" else 220 / 500  # at full the data are HowTo100M's, the towers of 6 layers
    assert plain.recipe.epochs == max(1, round(nst.recipe.epochs * steps))
    node = network(planned(**how), "text/nst/mlm").inputs["teacher"]
    made = stage(node)
    assert (made.masked, made.contrast, made.margin, made.near, made.captions) == (1.0, 1.0, 1.0, 0.0, "first")
    assert (made.video.trained, made.video.vector, made.video.encoder.dropout) == (False, "pooler", 0.1)
    assert arm("nst-released").objectives == (NST(weight=1.0, divide="length"),)
    assert arm("nt-xent-released").objectives == crd.objectives


@pytest.mark.parametrize("tier", TIERS)
def test_clean(tier: str) -> None:
    (crd,) = arm("crd", tier=tier).objectives
    assert isinstance(crd, CRD)
    assert crd.weight == WEIGHTS["crd"]
    assert arm("text", tier=tier).recipe == arm("crd", tier=tier).recipe
    node = network(planned(tier), "text/nst/mlm").inputs["teacher"]
    made = stage(node)
    assert (made.video.trained, made.video.vector, made.captions, made.pairing) == (True, "mean", "random", "matched")
    assert made.language == arm("text", tier=tier).tower, "teacher and student are of one size"


# --------------------------------------------------------------------------------------------- weights, chance, tuning


def test_weights_are_swept_on_development_nouns_and_the_chosen_ones_are_the_arms() -> None:
    plan = planned(seeds=3)
    swept = [each for each in plan.plan.measurements if each.cell.startswith("weights/")]
    assert {each.seed for each in swept} == {0, 1}
    assert {each.quantity.name for each in swept} == {"development.colour"}
    for name, grid in GRID.items():
        assert WEIGHTS[name] in grid
        assert len(set(grid)) == len(grid) > 1
        for seed, weight in product((0, 1), grid):
            node = network(plan, f"weights/{name}@{weight:g}/colour", seed)
            (objective,) = stage(node).objectives
            assert objective.weight == weight
            own = network(plan, f"probe/{name}/colour", seed)
            assert (node is own) == (weight == WEIGHTS[name])
            assert msgspec.structs.replace(objective, weight=WEIGHTS[name]) == stage(own).objectives[0]


def test_no_claim_but_those_of_weights_sees_development_nouns() -> None:
    for each in planned().plan.measurements:
        table = each.cell.partition("/")[0]
        assert each.quantity.name.startswith("development.") == (table == "weights")


def test_chance_is_that_of_the_world() -> None:
    world = World(0)
    test = world.part("test")
    for column in PROBES:
        quantity = measurement(planned(), f"probe/chance/{column}").quantity
        records: Any = {node.spec.hash: SimpleNamespace(metrics={"test.colour": 61.0}) for node in quantity.nodes}
        assert quantity.read(records) == PROBES[column]
    gallery = len(test) * TEST_CLIPS
    for rank in RANKS:
        quantity = measurement(planned(), f"retrieval/chance/recall{rank}").quantity
        records = {node.spec.hash: SimpleNamespace(metrics={"test.colour": 61.0}) for node in quantity.nodes}
        assert quantity.read(records) == chance(rank, own=TEST_CLIPS, gallery=gallery)
    assert {"spoken", "development", "test"} == set(PARTS)


@pytest.mark.parametrize(("tier", "dataset"), PLANS)
def test_arms_are_fine_tuned_alike(tier: str, dataset: str) -> None:
    plan = planned(tier, dataset=dataset)
    table, task = ("glue", TASKS[dataset][0]) if TASKS[dataset] else ("text", "acceptability")
    found = set()
    for name in CORE:
        for column, metric in ((task, "test.score"), (f"{task}-collapsed", "test.collapsed")):
            quantity = measurement(plan, f"{table}/{name}/{column}").quantity
            assert quantity.name == metric
            (node,) = quantity.nodes
            assert node.inputs["network"] is network(plan, f"text/{name}/mlm")
            found.add(stage(node))
    (made,) = found
    assert isinstance(made, FineTune)
    assert made.task == task


def test_columns_of_a_probe_are_its_test_nouns_metrics() -> None:
    for column in PROBES:
        quantity = measurement(planned(), f"probe/nst/{column}").quantity
        assert quantity.name == f"test.{column}"
        assert isinstance(stage(quantity.nodes[0]), Probe)

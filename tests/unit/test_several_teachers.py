"""Several teachers of one student: planning, the logits of each, and the objectives that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_bench import Bench, work_of
from toy_paper import OBJECTIVE, RECIPE, STUDENT, TEACHER, toy_data, toy_lab, toy_paper

from kdbench.builtin import kdbench_objectives
from kdbench.component import load_object
from kdbench.errors import KdbenchError, StageError
from kdbench.metric import subjects
from kdbench.paper import Gate
from kdbench.stage import WEIGHTS
from kdbench.stages import Train
from kdbench.stages.teacher import LOGITS, teacher_logits
from kdbench.study import Node
from kdbench.testing import assert_loss_parity
from kdbench.testing.checks import objectives as checks
from kdbench.training import (
    Distillation,
    EnsembleDistillation,
    LabelSmoothing,
    Mixing,
    Objective,
    Sample,
    SmoothedDistillation,
)
from kdbench.training.batch import Batch
from kdbench.training.evaluate import predict

MEAN = EnsembleDistillation(temperature=4.0, alpha=0.9, combine="probabilities")

BATCHES: list[Batch] = []


class Spy(EnsembleDistillation, frozen=True):
    """Keeps every batch."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        BATCHES.append(batch)
        return super().loss(logits, batch)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def networks(where: Bench, count: int = 3) -> list[Node]:
    """Nets of one kind, each trained on a sample of its own."""
    recipes = [msgspec.structs.replace(RECIPE, sample=Sample(size=500, number=number)) for number in range(count)]
    return [where.lab.train(TEACHER, seed=0, recipe=recipe) for recipe in recipes]


# ---------------------------------------------------------------------------------------------------------- planning


def test_each_of_several_teachers_is_an_input_of_its_own(bench: Bench) -> None:
    nets = networks(bench)
    node = bench.lab.distil(STUDENT, nets, seed=0, recipe=RECIPE, objective=MEAN)
    assert list(node.inputs) == ["teacher", "teacher1", "teacher2"]
    assert [stage.inputs["network"] for stage in node.inputs.values()] == nets
    assert node.spec.label == "distil plain2-x0.5 from 3 teachers (T 4, alpha 0.9, mean of probabilities) seed 0"
    below = bench.lab.distil(STUDENT, node, seed=0, recipe=RECIPE, objective=OBJECTIVE)
    assert below.spec.label.startswith("distil plain2-x0.5 from 3 teachers-plain2-x0.5 (T 4")


def test_one_teacher_in_a_list_is_one_teacher(bench: Bench) -> None:
    (net,) = networks(bench, 1)
    for objective in (OBJECTIVE, MEAN):
        one, listed = (
            bench.lab.distil(STUDENT, each, seed=0, recipe=RECIPE, objective=objective) for each in (net, [net])
        )
        assert one is listed
        assert one.spec.label.startswith("distil plain2-x0.5 from plain4-x0.5 (T 4")


def test_no_teacher_is_an_error(bench: Bench) -> None:
    with pytest.raises(KdbenchError, match=r"there is no teacher to distil from.*lab.train"):
        bench.lab.distil(STUDENT, [], seed=0, recipe=RECIPE, objective=MEAN)


@pytest.mark.parametrize(
    "objective", [OBJECTIVE, SmoothedDistillation(temperature=4, alpha=0.9, epsilon=0.1, over="all")]
)
def test_an_objective_of_one_teacher_is_given_no_more(bench: Bench, objective: Objective) -> None:
    with pytest.raises(KdbenchError, match=rf"{type(objective).__name__} takes one teacher, and 2 were given"):
        bench.lab.distil(STUDENT, networks(bench, 2), seed=0, recipe=RECIPE, objective=objective)


def test_every_teacher_is_gated(tmp_path: Path) -> None:
    gate = Gate(network=TEACHER.name, dataset="mnist1d", claimed=101.0, tolerance=0.0, certainty="project", source="S")
    where = Bench(tmp_path / "store", toy_lab(toy_paper(gates=(gate,))))
    scratch = where.lab.train(TEACHER, seed=0, recipe=RECIPE)
    distilled = where.lab.distil(TEACHER, scratch, seed=0, recipe=RECIPE, objective=OBJECTIVE)
    node = where.lab.distil(STUDENT, [distilled, scratch], seed=0, recipe=RECIPE, objective=MEAN)
    floors = [stage.spec.stage["floor"] for stage in node.inputs.values()]
    assert floors == [None, 101.0], "a distilled teacher is not held to what is claimed of nets from scratch"
    where.run(scratch)
    with pytest.raises(StageError, match="teacher gate"):
        where.run(node.inputs["teacher1"])


def test_several_live_teachers_have_their_price() -> None:
    data = toy_data()
    student, teacher = (network.cost(data.input_shape, data.num_classes).macs for network in (STUDENT, TEACHER))
    roles = {"teacher": TEACHER, "teacher1": TEACHER, "teacher2": TEACHER}
    for augmentation, forwards in (("none", 0), ("shift", 3)):
        recipe = msgspec.structs.replace(RECIPE, augmentation=augmentation)
        found = Train(network=STUDENT, recipe=recipe, objective=MEAN).effort(data, roles).macs
        assert found == pytest.approx(7200 * (3 * student + forwards * teacher))


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "changes",
    [{}, {"augmentation": "shift"}, {"mixing": Mixing(kind="mixup", strength=1.0)}],
    ids=["cached", "augmented", "mixed"],
)
def test_a_student_sees_the_logits_of_all_teachers_in_order(bench: Bench, changes: dict[str, Any]) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=1, **changes)
    nets = networks(bench)
    BATCHES.clear()
    objective = Spy(temperature=4.0, alpha=0.9, combine="probabilities")
    student = bench.run(bench.lab.distil(STUDENT, nets, seed=0, recipe=recipe, objective=objective))
    work = work_of(student)
    cached = [LOGITS in work.input(role).record.files for role in ("teacher", "teacher1", "teacher2")]
    assert cached == [not changes] * 3
    models = [bench.run(net).model(work) for net in nets]
    for batch in BATCHES:
        assert batch.teacher_logits.shape == (3, len(batch.labels), 10)
        assert not batch.teacher_logits.requires_grad
        for found, model in zip(batch.teacher_logits, models, strict=True):
            torch.testing.assert_close(found, predict(model, batch.inputs), rtol=1e-4, atol=1e-5)


def test_teachers_are_counted_by_number_and_not_by_letter(bench: Bench) -> None:
    """``teacher10`` comes after ``teacher2``."""
    first, last = networks(bench, 2)
    node = bench.lab.distil(STUDENT, [first] * 10 + [last], seed=0, recipe=RECIPE, objective=MEAN)
    work = work_of(bench.run(node))
    inputs, indices = work.data()["train"].inputs[:4], torch.arange(4)
    teachers = teacher_logits(work, RECIPE)
    assert teachers is not None
    logits = teachers(inputs, indices)
    tables = [work.input(role).tensors(LOGITS)["train"][:4] for role in ("teacher", "teacher10")]
    assert not torch.equal(*tables)
    assert torch.equal(logits, torch.stack([tables[0]] * 10 + [tables[1]]))


def test_one_teacher_teaches_as_with_the_plain_loss(bench: Bench) -> None:
    (net,) = networks(bench, 1)
    students = [
        bench.run(bench.lab.distil(STUDENT, net, seed=0, recipe=RECIPE, objective=objective))
        for objective in (Distillation(temperature=4.0, alpha=0.9), MEAN)
    ]
    assert students[0].record.curves == students[1].record.curves
    assert students[0].record.files[WEIGHTS] == students[1].record.files[WEIGHTS]


@pytest.mark.parametrize("augmentation", ["none", "shift"], ids=["cached", "live"])
def test_a_killed_run_resumes_to_the_same_bits(bench: Bench, tmp_path: Path, augmentation: Any) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=3, batch_size=400, augmentation=augmentation)

    def student(where: Bench) -> Node:
        return where.lab.distil(STUDENT, networks(where, 2), seed=0, recipe=recipe, objective=MEAN)

    whole, other = bench.run(student(bench)), Bench(tmp_path / "killed")
    again = other.killed_and_resumed(student(other), epoch=2)
    assert again.record.files[WEIGHTS] == whole.record.files[WEIGHTS]
    assert (again.record.metrics, again.record.curves) == (whole.record.metrics, whole.record.curves)


def test_a_metric_is_given_the_first_of_several_teachers(bench: Bench) -> None:
    nets = networks(bench, 2)
    student = bench.lab.distil(STUDENT, nets, seed=0, recipe=RECIPE, objective=MEAN)
    plain = bench.lab.train(STUDENT, seed=0, recipe=RECIPE)
    measured = [bench.lab.measure(f"t/{name}", n.accuracy, seed=0) for name, n in (("KD", student), ("CE", plain))]
    hashes = [bench.run(node).record.hash for node in (*nets, student, plain)]
    distilled, alone = subjects(measured, toy_data(), bench.store.stages, hashes)
    assert distilled.teacher is not None
    assert distilled.baseline is not None
    assert (distilled.teacher.record.hash, distilled.baseline.record.hash) == (hashes[0], hashes[-1])
    assert (alone.teacher, alone.baseline) == (None, None)


# ------------------------------------------------------------------------------------------------------- objectives


class Taught:
    """An objective as the parity check calls a loss, with teachers made of the one that it gives."""

    def __init__(self, objective: Any, method: str, count: int) -> None:
        self.objective = objective
        self.method = method
        self.count = count

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        chosen = msgspec.structs.replace(self.objective, temperature=temperature)
        teachers = torch.stack([teacher_logits.roll(shift, 1) * (1 + shift) for shift in range(self.count)])
        batch = Batch(student_logits, labels, torch.arange(len(labels)), teachers.detach(), 0)
        value: Tensor = getattr(chosen, self.method)(student_logits, batch)
        return value


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("combine", ["probabilities", "losses"])
def test_the_loss_of_several_teachers_is_its_formulas(combine: Any, count: int) -> None:
    objective = EnsembleDistillation(temperature=1.0, alpha=0.6, combine=combine)
    assert_loss_parity(
        Taught(objective, "loss", count),
        Taught(objective, "reference", count),
        dtypes=[torch.float32, torch.float64],
        shapes=[(4, 10), (1, 2), (7, 17)],
    )


def batch_of(count: int) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    student, *teachers = 2 * torch.randn(count + 1, 6, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (6,), generator=generator)
    return student, Batch(torch.zeros(6, 1, 1, 4), labels, torch.arange(6), torch.stack(teachers), 0)


@pytest.mark.parametrize("combine", ["probabilities", "losses"])
def test_the_loss_of_several_teachers_by_hand(combine: Any) -> None:
    logits, batch = batch_of(3)
    soft = functional.softmax(batch.teacher_logits / 3, 2)
    log_q = functional.log_softmax(logits / 3, 1)
    if combine == "probabilities":
        mean = soft.mean(0)
        divergence = (mean * (mean.log() - log_q)).sum(1).mean()
    else:
        divergence = (soft * (soft.log() - log_q)).sum(2).mean()
    label = -functional.log_softmax(logits, 1)[torch.arange(6), batch.labels].mean()
    expected = 0.3 * label + 0.7 * 9 * divergence
    objective = EnsembleDistillation(temperature=3.0, alpha=0.7, combine=combine)
    assert objective.loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-12)


def test_both_ways_to_combine_teachers_teach_the_same() -> None:
    logits, batch = batch_of(3)
    values, gradients = [], []
    for combine in ("probabilities", "losses"):
        leaf = logits.clone().requires_grad_()
        loss = EnsembleDistillation(temperature=3.0, alpha=0.7, combine=combine).loss(leaf, batch)  # type: ignore[arg-type]
        values.append(loss.item())
        gradients += torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)
    assert values[1] > values[0] + 0.1, "their values differ by the teachers' disagreement"


@pytest.mark.parametrize("shape", [(6, 10), (1, 6, 10)], ids=["one tensor", "one of several"])
@pytest.mark.parametrize("combine", ["probabilities", "losses"])
def test_one_teacher_is_the_plain_distillation(combine: Any, shape: tuple[int, ...]) -> None:
    logits, batch = batch_of(1)
    plain = Distillation(temperature=3.0, alpha=0.7).loss(
        logits, batch._replace(teacher_logits=batch.teacher_logits[0])
    )
    several = EnsembleDistillation(temperature=3.0, alpha=0.7, combine=combine)
    found = several.loss(logits, batch._replace(teacher_logits=batch.teacher_logits.reshape(shape)))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("over", ["all", "others"])
def test_smoothed_labels_and_a_teacher_are_both_losses_at_once(over: Any) -> None:
    logits, batch = batch_of(1)
    batch = batch._replace(teacher_logits=batch.teacher_logits[0])
    found = SmoothedDistillation(temperature=3.0, alpha=0.7, epsilon=0.2, over=over).loss(logits, batch)
    smoothed = LabelSmoothing(epsilon=0.2, over=over).loss(logits, batch)
    soft = Distillation(temperature=3.0, alpha=1.0).loss(logits, batch)
    assert found.item() == pytest.approx((0.3 * smoothed + 0.7 * soft).item(), rel=1e-12)
    unsmoothed = SmoothedDistillation(temperature=3.0, alpha=0.7, epsilon=0.0, over=over).loss(logits, batch)
    assert unsmoothed.item() == pytest.approx(Distillation(temperature=3.0, alpha=0.7).loss(logits, batch).item())


@pytest.mark.parametrize("info", list(kdbench_objectives()), ids=lambda info: info.id)
def test_kdbenchs_own_objectives_conform(info: Any) -> None:
    made = checks.published(info)
    assert isinstance(made, Objective)
    assert type(made) is load_object(info.create)
    assert checks.unfaithful_anywhere(made, f"objective '{info.id}'", checks.OTHERS) == []

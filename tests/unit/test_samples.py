"""Training sets that are samples of a larger split, resamples of one, and examples whose labels are hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_bench import Bench, work_of
from toy_paper import OBJECTIVE, RECIPE, STUDENT, TEACHER, toy_data, toy_lab

from kdbench.component import pack, unpack
from kdbench.data import Split, channel_statistics, load
from kdbench.data.base import HIDDEN
from kdbench.data.samples import resample, sample
from kdbench.errors import KdbenchError
from kdbench.plan import cost_key
from kdbench.stage import WEIGHTS, Work
from kdbench.stages import Agreement, Train
from kdbench.stages import Teacher as TeacherStage
from kdbench.stages.splits import splits_of
from kdbench.stages.teacher import LOGITS
from kdbench.training import (
    CrossEntropy,
    Distillation,
    EnsembleDistillation,
    LabelSmoothing,
    Mixing,
    Objective,
    Recipe,
    Sample,
    SmoothedDistillation,
)
from kdbench.training.batch import Batch
from kdbench.training.evaluate import agreement, metrics_of, predict

SAMPLED = msgspec.structs.replace(RECIPE, sample=Sample(size=300, number=2), statistics="data")
EXTENDED = msgspec.structs.replace(SAMPLED, unlabelled=Sample(size=200, number=5))  # places 1000 to 1200

BATCHES: list[Batch] = []


class Spy(Distillation, frozen=True):
    """Keeps every batch."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        BATCHES.append(batch)
        return super().loss(logits, batch)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Of a stage on MNIST-1D that is never run."""
    return Work(tmp_path_factory.mktemp("stage"), toy_lab().train(STUDENT, seed=0, recipe=RECIPE).spec)


def rows(split: Split) -> list[tuple[float, ...]]:
    """Inputs as values that can be members of a set; no two of MNIST-1D are equal."""
    return [tuple(row) for row in split.inputs.flatten(1).tolist()]


# ------------------------------------------------------------------------------------------------------- the indices


def test_samples_of_a_size_are_disjoint_and_fill_the_split() -> None:
    parts = [sample(100, 25, number, seed=3).tolist() for number in range(4)]
    assert sorted(place for part in parts for place in part) == list(range(100))
    assert parts[0] != sorted(parts[0]), "not shuffled"


def test_samples_of_two_sizes_are_cut_from_one_order() -> None:
    assert sample(100, 10, 4, seed=3).tolist() == sample(100, 20, 2, seed=3).tolist()[:10]
    assert sample(100, 10, 4, seed=3).tolist() != sample(100, 10, 4, seed=4).tolist()


def test_resamples_are_drawn_with_replacement_and_independently() -> None:
    first, again, other = (resample(10_000, seed) for seed in ((1, 0, 0), (1, 0, 0), (1, 0, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for drawn in (first, other):
        assert (len(drawn), int(drawn.min()) >= 0, int(drawn.max()) < 10_000) == (10_000, True, True)
        # 1 - 1/e of the examples are expected to be in it; four standard deviations of that share are .013.
        assert len(drawn.unique()) / 10_000 == pytest.approx(1 - np.exp(-1), abs=0.013)


def test_samples_are_the_same_in_every_version_and_touch_no_generator() -> None:
    """Frozen: a change here changes the training sets of every study that was recorded."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert sample(40, 8, 1, seed=1).tolist() == FROZEN_SAMPLE
    assert resample(8, (1, 0, 0)).tolist() == FROZEN_RESAMPLE
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


FROZEN_SAMPLE = [19, 26, 32, 17, 30, 36, 33, 28]
FROZEN_RESAMPLE = [0, 5, 4, 6, 7, 1, 0, 0]


@pytest.mark.parametrize(
    ("size", "number", "message"),
    [
        (30, 3, r"sample 3 of 30 examples ends at place 120 .* has 100.*numbered 0 to 2 here"),
        (101, 0, r"sample 0 of 101 examples ends at place 101 .*draw smaller samples"),
    ],
)
def test_a_split_that_is_too_small_is_named(size: int, number: int, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        sample(100, size, number, seed=0)


@pytest.mark.parametrize(
    "fields", [{"size": 0, "number": 0}, {"size": 5, "number": -1}, {"size": 5, "number": 0, "bootstrap": -1}]
)
def test_a_sample_that_is_none_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(KdbenchError, match="numbered from 0"):
        Sample(**fields)


# ---------------------------------------------------------------------------------------------------------- splits


def test_without_a_sample_the_splits_are_what_they_were(work: Work) -> None:
    plain, named = splits_of(work, 0.1, 0.2), splits_of(work, holdout=0.1, label_noise=0.2, sample=None)
    assert list(plain) == list(named) == ["train", "test", "validation"]
    for name in plain:
        assert all(torch.equal(one, other) for one, other in zip(plain[name], named[name], strict=True))


def test_the_holdout_is_drawn_inside_the_sample(work: Work) -> None:
    drawn = splits_of(work, 0.0, sample=Sample(size=300, number=2))
    held = splits_of(work, 0.1, sample=Sample(size=300, number=2))
    assert set(drawn) == {"train", "test"}
    assert (len(held["train"].labels), len(held["validation"].labels)) == (270, 30)
    assert not set(rows(held["train"])) & set(rows(held["validation"]))
    assert {*rows(held["train"]), *rows(held["validation"])} == set(rows(drawn["train"]))
    assert torch.equal(held["test"].inputs, load(toy_data())["test"].inputs)
    other = splits_of(work, 0.1, sample=Sample(size=300, number=3))
    for name in ("train", "validation"):
        assert not set(rows(other[name])) & set(rows(drawn["train"]))


def test_inputs_keep_their_labels(work: Work) -> None:
    whole = load(toy_data())["train"]
    known = dict(zip(rows(whole), whole.labels.tolist(), strict=True))
    for part in (Sample(size=300, number=2), Sample(size=300, number=2, bootstrap=1)):
        for name, split in splits_of(work, 0.1, sample=part).items():
            if name != "test":
                assert [known[row] for row in rows(split)] == split.labels.tolist()


def test_a_resample_has_copies_none_of_them_held_out_and_all_labelled_alike(work: Work) -> None:
    plain = splits_of(work, 0.1, 0.3, Sample(size=300, number=2))
    noisy = dict(zip(rows(plain["train"]), plain["train"].labels.tolist(), strict=True))
    found = [splits_of(work, 0.1, 0.3, Sample(size=300, number=2, bootstrap=k)) for k in (0, 0, 1)]
    for splits in found:
        drawn = rows(splits["train"])
        assert len(drawn) == 270
        assert len(set(drawn)) < 220
        assert set(drawn) <= set(noisy)
        assert [noisy[row] for row in drawn] == splits["train"].labels.tolist()
        assert torch.equal(splits["validation"].inputs, plain["validation"].inputs)
    assert rows(found[0]["train"]) == rows(found[1]["train"])
    assert rows(found[0]["train"]) != rows(found[2]["train"])
    other = splits_of(work, 0.0, sample=Sample(size=300, number=3, bootstrap=0))
    same = splits_of(work, 0.0, sample=Sample(size=300, number=2, bootstrap=0))
    places = [
        [rows(splits_of(work, 0.0, sample=Sample(size=300, number=number))["train"]).index(row) for row in rows(split)]
        for number, split in ((3, other["train"]), (2, same["train"]))
    ]
    assert places[0] != places[1], "two samples are resampled alike"


def test_label_noise_is_of_the_sample(work: Work) -> None:
    clean, noisy = (splits_of(work, 0.1, noise, Sample(size=300, number=2)) for noise in (0.0, 0.2))
    assert int((clean["train"].labels != noisy["train"].labels).sum()) == round(0.2 * 270)
    assert torch.equal(clean["validation"].labels, noisy["validation"].labels)


def test_hidden_labels_follow_the_labelled_examples(work: Work) -> None:
    part, further = Sample(size=300, number=2), Sample(size=200, number=5)
    plain = splits_of(work, 0.1, 0.2, part)
    found = splits_of(work, 0.1, 0.2, part, further)
    assert torch.equal(found["train"].inputs[:270], plain["train"].inputs)
    assert torch.equal(found["train"].labels[:270], plain["train"].labels)
    assert found["train"].labels[270:].tolist() == [HIDDEN] * 200
    assert rows(found["train"])[270:] == rows(splits_of(work, 0.0, sample=further)["train"])
    assert not set(rows(found["train"])[270:]) & {*rows(plain["train"]), *rows(plain["validation"])}
    assert torch.equal(found["validation"].labels, plain["validation"].labels)


# ------------------------------------------------------------------------------------------------------- the recipe


def test_a_recipe_travels_with_its_samples_and_they_are_in_its_hash() -> None:
    lab = toy_lab()
    recipes = [
        SAMPLED,
        EXTENDED,
        msgspec.structs.replace(SAMPLED, sample=Sample(size=300, number=3)),
        msgspec.structs.replace(SAMPLED, sample=Sample(size=300, number=2, bootstrap=0)),
    ]
    assert [unpack(pack(recipe)) for recipe in recipes] == recipes
    assert len({lab.train(STUDENT, seed=0, recipe=recipe).spec.hash for recipe in recipes}) == 4


@pytest.mark.parametrize("labelled", [None, Sample(size=300, number=2), Sample(size=10, number=69)])
def test_unlabelled_examples_that_are_labelled_are_refused(labelled: Sample | None) -> None:
    with pytest.raises(KdbenchError, match=r"unlabelled examples are among the labelled ones.*places 600 to 700"):
        msgspec.structs.replace(RECIPE, sample=labelled, unlabelled=Sample(size=100, number=6))


def test_unlabelled_examples_beside_the_labelled_ones_are_not() -> None:
    for neighbour in (Sample(size=10, number=59), Sample(size=100, number=7), Sample(size=350, number=2)):
        msgspec.structs.replace(RECIPE, sample=neighbour, unlabelled=Sample(size=100, number=6))


def test_hidden_labels_cannot_be_mixed() -> None:
    with pytest.raises(KdbenchError, match="mixup mixes labels, and unlabelled examples have none"):
        msgspec.structs.replace(EXTENDED, mixing=Mixing(kind="mixup", strength=1.0))


def test_the_effort_is_that_of_the_examples_seen() -> None:
    data = toy_data()
    steps = {recipe: Train(network=STUDENT, recipe=recipe).effort(data, {}) for recipe in (RECIPE, SAMPLED, EXTENDED)}
    macs = 3 * STUDENT.cost(data.input_shape, data.num_classes).macs
    for recipe, examples in ((RECIPE, 3600), (SAMPLED, 270), (EXTENDED, 470)):
        assert steps[recipe].steps == round(2 * examples / 128)
        assert steps[recipe].macs == pytest.approx(macs * 2 * examples)


def test_stages_on_samples_of_one_size_have_one_price() -> None:
    lab = toy_lab()

    def key(number: int, size: int = 300, bootstrap: int | None = None) -> str:
        recipe = msgspec.structs.replace(RECIPE, sample=Sample(size=size, number=number, bootstrap=bootstrap))
        return cost_key(lab.train(STUDENT, seed=number, recipe=recipe).spec)

    assert key(0) == key(1) == key(1, bootstrap=3)
    assert key(0) != key(0, size=200)
    assert key(0) != cost_key(lab.train(STUDENT, seed=0, recipe=RECIPE).spec)


# ------------------------------------------------------------------------------------------------------- the stages


def test_a_network_is_trained_on_its_sample_alone(bench: Bench) -> None:
    spy = Spy(temperature=4.0, alpha=0.5)
    teacher = bench.lab.train(TEACHER, seed=0, recipe=RECIPE)
    bench.run(bench.lab.teacher(teacher, SAMPLED))
    BATCHES.clear()
    student = bench.run(bench.lab.distil(STUDENT, teacher, seed=0, recipe=SAMPLED, objective=spy))
    train = splits_of(work_of(student), 0.1, sample=SAMPLED.sample)["train"]
    seen = torch.cat([batch.inputs for batch in BATCHES[: len(BATCHES) // 2]])
    assert sorted(rows(Split(seen, seen))) == sorted(rows(train))
    mean, std = channel_statistics(train)
    assert (student.record.notes["mean"], student.record.notes["std"]) == (list(mean), list(std))
    assert unpack(student.record.notes["recipe"]) == SAMPLED


@pytest.mark.parametrize("augmentation", ["none", "shift"], ids=["cached", "live"])
def test_the_teacher_answers_exactly_what_the_student_sees(bench: Bench, augmentation: Any) -> None:
    """Also of inputs with hidden labels, and of a sample that is not the teacher's own."""
    recipe = msgspec.structs.replace(EXTENDED, augmentation=augmentation)
    own = msgspec.structs.replace(SAMPLED, sample=Sample(size=400, number=7))
    network = bench.lab.train(TEACHER, seed=0, recipe=own)
    teacher = bench.run(bench.lab.teacher(network, recipe))
    assert (LOGITS in teacher.record.files) == (augmentation == "none")
    BATCHES.clear()
    objective = Spy(temperature=4.0, alpha=0.5)
    student = bench.run(bench.lab.distil(STUDENT, network, seed=1, recipe=recipe, objective=objective))
    work = work_of(student)
    train = splits_of(work, recipe.holdout, sample=recipe.sample, unlabelled=recipe.unlabelled)["train"]
    net = bench.run(network).model(work_of(teacher))
    epoch = BATCHES[: len(BATCHES) // 2]
    assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(470))
    for batch in epoch:
        assert torch.equal(batch.labels, train.labels[batch.indices])
        torch.testing.assert_close(batch.teacher_logits, predict(net, batch.inputs), rtol=1e-4, atol=1e-5)
        assert torch.equal(batch.inputs, train.inputs[batch.indices]) == (augmentation == "none")


def test_a_teachers_own_metrics_leave_hidden_labels_out(bench: Bench) -> None:
    network = bench.lab.train(TEACHER, seed=0, recipe=SAMPLED)
    found = {}
    for name, recipe in (("labelled", SAMPLED), ("extended", EXTENDED)):
        stage = bench.run(bench.lab.teacher(network, recipe))
        found[name] = stage.record.metrics
        logits, work = stage.tensors(LOGITS)["train"], work_of(stage)
        assert len(logits) == (270 if name == "labelled" else 470)
        train = splits_of(work, 0.1, sample=recipe.sample)["train"]
        for metric, value in metrics_of(logits[:270], train.labels).items():
            assert stage.record.metrics[f"train.{metric}"] == pytest.approx(value, rel=1e-12)
    assert found["labelled"] == pytest.approx(found["extended"], rel=1e-6)


def test_a_teacher_is_planned_for_the_students_own_examples() -> None:
    lab = toy_lab()
    stage = unpack(lab.teacher(lab.train(TEACHER, seed=0, recipe=RECIPE), EXTENDED).spec.stage)
    assert stage == TeacherStage(
        floor=None, cache=True, holdout=0.1, sample=EXTENDED.sample, unlabelled=EXTENDED.unlabelled
    )


def test_agreement_is_measured_on_the_students_sample(bench: Bench) -> None:
    one, other = (bench.lab.train(STUDENT, seed=seed, recipe=SAMPLED) for seed in (0, 1))
    node = bench.lab.agreement(one, other, EXTENDED)
    assert unpack(node.spec.stage) == Agreement(holdout=0.1, sample=SAMPLED.sample)
    metrics = bench.run(node).record.metrics
    work = work_of(bench.run(one))
    inputs = splits_of(work, 0.1, sample=SAMPLED.sample)["train"].inputs
    nets = [bench.run(net).model(work) for net in (one, other)]
    expected = agreement(*(predict(net, inputs) for net in nets))
    assert {name: metrics[f"train.{name}"] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_a_killed_run_on_a_sample_resumes_to_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(
        EXTENDED, epochs=3, sample=Sample(size=300, number=2, bootstrap=4), augmentation="shift", selection="validation"
    )

    def student(where: Bench) -> Any:
        teacher = where.lab.train(TEACHER, seed=0, recipe=SAMPLED)
        return where.lab.distil(STUDENT, teacher, seed=0, recipe=recipe, objective=OBJECTIVE)

    whole, resumed = bench.run(student(bench)), Bench(tmp_path / "killed")
    again = resumed.killed_and_resumed(student(resumed), epoch=2)
    assert again.record.files[WEIGHTS] == whole.record.files[WEIGHTS]
    assert (again.record.metrics, again.record.curves) == (whole.record.metrics, whole.record.curves)


# ---------------------------------------------------------------------------------------------------- hidden labels


def half_hidden(classes: int = 10, count: int = 12) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, count, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[::2] = HIDDEN
    return student, Batch(torch.zeros(count, 1, 1, 4), labels, torch.arange(count), teacher, 0)


def by_hand(objective: Any, logits: Tensor, batch: Batch) -> Tensor:
    """The label's term over labelled rows, the teacher's over all rows."""
    known = batch.labels != HIDDEN
    log_p, classes = functional.log_softmax(logits, 1), logits.shape[1]
    target = functional.one_hot(batch.labels[known], classes).double()
    if hasattr(objective, "epsilon"):
        target = (1 - objective.epsilon) * target + objective.epsilon / classes
    label = -(target * log_p[known]).sum(1).mean()
    if not hasattr(objective, "temperature"):
        return label
    soft = functional.softmax(batch.teacher_logits / objective.temperature, 1)
    log_q = functional.log_softmax(logits / objective.temperature, 1)
    divergence = (soft * (soft.log() - log_q)).sum(1).mean()
    return (1 - objective.alpha) * label + objective.alpha * objective.temperature**2 * divergence


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(),
        LabelSmoothing(epsilon=0.2, over="all"),
        Distillation(temperature=3.0, alpha=0.7),
        EnsembleDistillation(temperature=3.0, alpha=0.7, combine="probabilities"),
        SmoothedDistillation(temperature=3.0, alpha=0.7, epsilon=0.2, over="all"),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_hidden_labels_have_no_label_term(objective: Objective) -> None:
    logits, batch = half_hidden()
    found, gradients = [], []
    for function in (objective.loss, objective.reference, lambda *given: by_hand(objective, *given)):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, batch)
        gradients += torch.autograd.grad(value, leaf)
        found.append(value.item())
    assert found == pytest.approx([found[-1]] * 3, rel=1e-10)
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[-1], rtol=1e-9, atol=1e-12)


def test_a_batch_without_a_label_learns_from_the_teacher_alone() -> None:
    logits, batch = half_hidden()
    batch = batch._replace(labels=torch.full_like(batch.labels, HIDDEN))
    both, alone = (Distillation(temperature=3.0, alpha=alpha).loss(logits, batch).item() for alpha in (0.7, 1.0))
    assert both == pytest.approx(0.7 * alone, rel=1e-12)
    assert alone > 0
    assert SmoothedDistillation(temperature=3.0, alpha=0.7, epsilon=0.2, over="all").loss(
        logits, batch
    ).item() == pytest.approx(both, rel=1e-12)


def test_a_recipe_says_how_many_examples_an_epoch_has() -> None:
    plain: Recipe = msgspec.structs.replace(RECIPE, holdout=0.25)
    assert plain.examples(1000) == 750
    assert msgspec.structs.replace(plain, sample=Sample(size=400, number=0)).examples(1000) == 300
    extended = msgspec.structs.replace(plain, sample=Sample(size=400, number=0), unlabelled=Sample(size=100, number=4))
    assert extended.examples(1000) == 400

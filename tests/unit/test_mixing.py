"""Mixup and cutmix: the inputs, the loss of mixed labels, what the teacher sees, and the augmentation ``shift``."""

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
from kdbench.data.base import Split
from kdbench.data.mixing import cutmix, mixup
from kdbench.data.transforms import random_crop, random_flip
from kdbench.errors import KdbenchError, StageError
from kdbench.stage import WEIGHTS
from kdbench.stages import Teacher as TeacherStage
from kdbench.stages import Train
from kdbench.stages.teacher import LOGITS
from kdbench.training import (
    SGD,
    CrossEntropy,
    Distillation,
    EnsembleDistillation,
    LabelSmoothing,
    Mixing,
    Objective,
    Recipe,
    SmoothedDistillation,
    loop,
)
from kdbench.training.batch import Batch, weighed
from kdbench.training.loop import fit
from kdbench.training.model import Normalised
from kdbench.training.seeds import derive_seed

MIXUP, CUTMIX = (Mixing(kind=kind, strength=0.8) for kind in ("mixup", "cutmix"))
SHORT = Recipe(epochs=3, optimizer=SGD(lr=0.05), batch_size=20, mixing=MIXUP)

BATCHES: list[Batch] = []


class Spy(Distillation, frozen=True):
    """Keeps every batch."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        BATCHES.append(batch)
        return super().loss(logits, batch)


class Once:
    """Checkpoints of a run that is never stopped."""

    def load_state(self) -> Any:
        return None

    def state_due(self) -> bool:
        return False

    def save_state(self, state: Any) -> None:
        raise AssertionError("no state is due")

    def progress(self, done: int, total: int) -> None:
        pass


def random(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


def numbered(count: int, height: int = 1, width: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    """Input ``i`` is ``i`` everywhere, so that each place of a mixed one says where it is from."""
    return torch.arange(count).to(dtype).view(-1, 1, 1, 1).expand(count, 2, height, width).contiguous()


def signals(count: int = 50, dtype: torch.dtype = torch.float64) -> Split:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 1, 1, 40, generator=generator, dtype=torch.float64).to(dtype)
    return Split(inputs, torch.randint(10, (count,), generator=generator))


# -------------------------------------------------------------------------------------------------------- the inputs


def test_mixup_is_the_weighted_sum_of_each_input_and_its_partner() -> None:
    x = signals(30).inputs
    kept = x.clone()
    mixed = mixup(x, 0.5, random())
    assert torch.equal(x, kept)
    assert sorted(mixed.partners.tolist()) == list(range(30))
    assert mixed.partners.tolist() != list(range(30))
    assert 0 < mixed.share < 1
    expected = mixed.share * x + (1 - mixed.share) * x[mixed.partners]
    torch.testing.assert_close(mixed.inputs, expected, rtol=0, atol=1e-15)


def test_mixup_of_images_is_on_their_scale_and_rounded() -> None:
    images = torch.randint(0, 256, (20, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mixed = mixup(images, 0.5, random())
    assert mixed.inputs.dtype == torch.uint8
    expected = mixed.share * images.double() + (1 - mixed.share) * images[mixed.partners].double()
    assert (mixed.inputs.double() - expected).abs().max() <= 0.5 + 1e-4
    assert (mixed.inputs.double() - expected).abs().max() > 0.4, "nothing was between two numbers"


@pytest.mark.parametrize("strength", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(strength: float) -> None:
    source, x = random(), torch.zeros(2, 1, 1, 4)
    shares = np.array([mixup(x, strength, source).share for _ in range(4000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); the bounds are over five standard errors.
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / (4 * (2 * strength + 1)), rel=0.12)


@pytest.mark.parametrize(("height", "width"), [(1, 40), (8, 8), (6, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_cutmix_replaces_one_box_and_the_share_is_what_is_left(height: int, width: int, dtype: torch.dtype) -> None:
    x, source = numbered(9, height, width, dtype), random()
    shares = []
    for _ in range(50):
        kept = x.clone()
        mixed = cutmix(x, 1.0, source)
        assert torch.equal(x, kept)
        assert mixed.inputs.dtype == dtype
        own = mixed.inputs == x
        theirs = mixed.inputs == x[mixed.partners]
        assert (own | theirs).all()
        moved = mixed.partners != torch.arange(9)
        inside = ~own[moved]
        assert (inside == inside[:1, :1]).all(), "not one box for the whole batch"
        box = inside[0, 0]
        assert mixed.share == pytest.approx(1 - box.double().mean().item(), abs=1e-12)
        if box.any():
            top, left = box.any(1).nonzero(), box.any(0).nonzero()
            assert box[int(top[0]) : int(top[-1]) + 1, int(left[0]) : int(left[-1]) + 1].all()
        shares.append(mixed.share)
    assert min(shares) < 0.6
    assert max(shares) > 0.9


def test_a_box_away_from_the_border_has_the_drawn_share_and_the_inputs_aspect() -> None:
    x = numbered(2, 100, 200)
    found = []
    for seed in range(200):
        share = random(seed).beta(1.0, 1.0)
        mixed = cutmix(x, 1.0, random(seed))
        box = mixed.inputs[0, 0] == 1  # of the second input, which is the first one's partner every other time
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        if len(rows) and min(rows[0], columns[0]) > 0 and rows[-1] < 99 and columns[-1] < 199:
            assert mixed.share == pytest.approx(share, abs=0.03)
            assert len(columns) == pytest.approx(2 * len(rows), abs=4)
            found.append(seed)
    assert len(found) > 10


def test_mixing_is_the_same_in_every_version() -> None:
    """Frozen: a change here changes what recorded runs were trained on."""
    source = random(1)
    assert (mixup(numbered(4), 0.4, source).share, mixup(numbered(4), 0.4, source).partners.tolist()) == FROZEN_MIXUP
    mixed = cutmix(numbered(4), 0.4, source)
    assert (mixed.share, mixed.partners.tolist()) == FROZEN_CUTMIX


FROZEN_MIXUP = (0.20320096736622903, [3, 1, 2, 0])
FROZEN_CUTMIX = (0.7, [3, 1, 0, 2])


# ------------------------------------------------------------------------------------------------------- the batches


def batches(recipe: Recipe, epoch: int = 1, teacher: Any = None) -> list[Batch]:
    return list(loop._batches(signals(), recipe, teacher, 7, epoch))


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_batches_are_mixed_after_augmentation_by_a_stream_of_their_own(mixing: Mixing) -> None:
    recipe = msgspec.structs.replace(SHORT, mixing=mixing, augmentation="crop-flip")
    plain = batches(msgspec.structs.replace(recipe, mixing=None))
    seed = derive_seed(7, "mix", 1)
    source = np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF])
    for found, unmixed in zip(batches(recipe), plain, strict=True):
        expected = (mixup if mixing.kind == "mixup" else cutmix)(unmixed.inputs, 0.8, source)
        assert torch.equal(found.indices, unmixed.indices)
        assert torch.equal(found.inputs, expected.inputs)
        assert torch.equal(found.labels, unmixed.labels)
        assert found.other_labels is not None
        assert torch.equal(found.other_labels, unmixed.labels[expected.partners])
        assert (found.share, found.seed) == (expected.share, unmixed.seed)
        assert (unmixed.other_labels, unmixed.share) == (None, 1.0)


def test_epochs_are_mixed_differently_and_repeated_ones_alike() -> None:
    shares = [[batch.share for batch in batches(SHORT, epoch)] for epoch in (0, 0, 1)]
    assert shares[0] == shares[1]
    assert not set(shares[0]) & set(shares[2])
    assert len(set(shares[0])) == 3


def test_shift_crops_and_does_not_flip() -> None:
    recipe = msgspec.structs.replace(SHORT, mixing=None, augmentation="shift")
    (first, *_), data = batches(recipe), signals()
    generator = torch.Generator().manual_seed(derive_seed(7, "augment", 1))
    assert torch.equal(first.inputs, random_crop(data.inputs[first.indices], 4, generator))
    assert not torch.equal(first.inputs, data.inputs[first.indices])
    generator = torch.Generator().manual_seed(derive_seed(7, "augment", 1))
    flipped = random_flip(random_crop(data.inputs[first.indices], 4, generator), generator)
    assert not torch.equal(first.inputs, flipped)


# ---------------------------------------------------------------------------------------------------------- the loss


def soft_target_loss(objective: Any, logits: Tensor, batch: Batch) -> Tensor:
    """The objective with the mixed labels written out as one vector, by hand."""
    classes = logits.shape[1]
    own, other = (functional.one_hot(labels, classes).double() for labels in (batch.labels, batch.other_labels))
    target = batch.share * own + (1 - batch.share) * other
    if hasattr(objective, "epsilon"):
        target = (1 - objective.epsilon) * target + objective.epsilon / classes
    label = -(target * functional.log_softmax(logits, 1)).sum(1).mean()
    if not hasattr(objective, "temperature"):
        return label
    soft = functional.softmax(batch.teacher_logits / objective.temperature, 1)
    log_q = functional.log_softmax(logits / objective.temperature, 1)
    divergence = (soft * (soft.log() - log_q)).sum(1).mean()
    return (1 - objective.alpha) * label + objective.alpha * objective.temperature**2 * divergence


OBJECTIVES = (
    CrossEntropy(),
    LabelSmoothing(epsilon=0.2, over="all"),
    Distillation(temperature=3.0, alpha=0.7),
    EnsembleDistillation(temperature=3.0, alpha=0.7, combine="losses"),
    SmoothedDistillation(temperature=3.0, alpha=0.7, epsilon=0.2, over="all"),
)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_the_weighed_loss_is_that_of_the_mixed_label(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 12, 10, generator=generator, dtype=torch.float64)
    labels, other = torch.randint(10, (2, 12), generator=generator)
    batch = Batch(torch.zeros(12, 1, 1, 4), labels, torch.arange(12), teacher, 0, 0, other, 0.3)
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    found = weighed(lambda each: {"loss": objective.loss(leaves[0], each)}, batch)["loss"]
    expected = soft_target_loss(objective, leaves[1], batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip((found, expected), leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("objective", [OBJECTIVES[0], OBJECTIVES[2]], ids=["labels", "teacher"])
def test_training_is_on_the_mixed_labels(mixing: Mixing, objective: Objective) -> None:
    """The whole loop, in float64, against one that writes the mixed labels out."""
    recipe = msgspec.structs.replace(SHORT, mixing=mixing)
    weight = torch.randn(40, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def teacher(inputs: Tensor, indices: Tensor) -> Tensor:
        return inputs.flatten(1) @ weight

    def fresh() -> Normalised:
        torch.manual_seed(0)
        return Normalised(STUDENT.build((1, 1, 40), 10), [0.0], [1.0]).double().train()

    net, hand = fresh(), fresh()
    history = fit(net, signals(), recipe, objective, seed=7, checkpoints=Once(), teacher=teacher)
    sgd = torch.optim.SGD(hand.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for epoch in range(recipe.epochs):
        total = 0.0
        for batch in batches(recipe, epoch, teacher):
            assert torch.equal(batch.teacher_logits, batch.inputs.flatten(1) @ weight)
            loss = soft_target_loss(objective, hand(batch.inputs), batch)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item() * len(batch.labels)
        losses.append(total / 50)
    assert history.curves["loss"] == pytest.approx(losses, rel=1e-9)
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-8, atol=1e-10)


class Telling(CrossEntropy, frozen=True):
    """Observes the mean label, which depends on the label as the loss does."""

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"label": batch.labels.double().mean()}


def test_what_is_observed_is_weighed_alike() -> None:
    torch.manual_seed(0)
    net = Normalised(STUDENT.build((1, 1, 40), 10), [0.0], [1.0]).double()
    history = fit(net, signals(), SHORT, Telling(), seed=7, checkpoints=Once())
    for epoch, value in enumerate(history.curves["objective.label"]):
        sums = [
            batch.share * batch.labels.double().sum() + (1 - batch.share) * batch.other_labels.double().sum()
            for batch in batches(SHORT, epoch)
            if batch.other_labels is not None
        ]
        assert value == pytest.approx(sum(each.item() for each in sums) / 50, rel=1e-12)


# -------------------------------------------------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_a_teacher_sees_the_mixed_inputs(bench: Bench) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=1, mixing=CUTMIX)
    network = bench.lab.train(TEACHER, seed=0, recipe=RECIPE)
    teacher = bench.run(bench.lab.teacher(network, recipe))
    assert set(teacher.record.files) == {WEIGHTS}, "its logits cannot be known beforehand"
    BATCHES.clear()
    objective = Spy(temperature=4.0, alpha=0.5)
    student = bench.lab.distil(STUDENT, network, seed=0, recipe=recipe, objective=objective)
    work = work_of(bench.run(student))
    net = work.input("teacher").model(work)
    assert len(BATCHES) == 2 * 29  # both labels of every batch
    for batch in BATCHES:
        with torch.no_grad():
            assert torch.equal(batch.teacher_logits, net(batch.inputs))
    plain = work.data()["train"].inputs
    rows = {tuple(row) for row in plain.flatten(1).tolist()}
    mixed = [tuple(row) in rows for batch in BATCHES for row in batch.inputs.flatten(1).tolist()]
    assert sum(mixed) < len(mixed) / 2


def test_logits_that_were_cached_are_refused(bench: Bench) -> None:
    network = bench.lab.train(TEACHER, seed=0, recipe=RECIPE)
    cached = bench.lab.teacher(network, RECIPE)
    assert LOGITS in bench.run(cached).record.files
    recipe = msgspec.structs.replace(RECIPE, mixing=MIXUP)
    stage = Train(network=STUDENT, recipe=recipe, objective=OBJECTIVE)
    node = bench.lab.stage(stage, seed=0, label="s", inputs={"teacher": cached}, network=STUDENT)
    with pytest.raises(StageError, match=r"the teacher's logits are of inputs as they are, and mixup changes them"):
        bench.run(node)


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_a_killed_run_resumes_to_the_same_bits(bench: Bench, tmp_path: Path, mixing: Mixing) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=3, batch_size=400, mixing=mixing, augmentation="shift")

    def student(where: Bench) -> Any:
        teacher = where.lab.train(TEACHER, seed=0, recipe=RECIPE)
        return where.lab.distil(STUDENT, teacher, seed=0, recipe=recipe, objective=OBJECTIVE)

    whole, other = bench.run(student(bench)), Bench(tmp_path / "killed")
    again = other.killed_and_resumed(student(other), epoch=2)
    assert again.record.files[WEIGHTS] == whole.record.files[WEIGHTS]
    assert (again.record.metrics, again.record.curves) == (whole.record.metrics, whole.record.curves)


def test_mixing_has_a_price_and_is_in_the_hash() -> None:
    lab, data = toy_lab(), toy_data()
    recipes = [msgspec.structs.replace(RECIPE, mixing=mixing) for mixing in (None, MIXUP, CUTMIX)]
    assert [unpack(pack(recipe)) for recipe in recipes] == recipes
    assert len({lab.train(STUDENT, seed=0, recipe=recipe).spec.hash for recipe in recipes}) == 3
    student, teacher = (network.cost(data.input_shape, data.num_classes).macs for network in (STUDENT, TEACHER))
    for recipe in recipes:
        found = Train(network=STUDENT, recipe=recipe).effort(data, {"teacher": TEACHER}).macs
        assert found == pytest.approx(7200 * (3 * student + (recipe.mixing is not None) * teacher))
        stage = unpack(lab.teacher(lab.train(TEACHER, seed=0, recipe=RECIPE), recipe).spec.stage)
        assert isinstance(stage, TeacherStage)
        assert stage.cache == (recipe.mixing is None)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_must_be_positive(strength: float) -> None:
    with pytest.raises(KdbenchError, match=r"cutmix has a strength of .*Beta\(a, a\)"):
        Mixing(kind="cutmix", strength=strength)

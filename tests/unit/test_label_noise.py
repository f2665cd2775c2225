"""Label noise: which labels are replaced, by what, and which splits never hear of it."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_paper import OBJECTIVE, RECIPE, STUDENT, toy_lab

from kdbench.component import unpack
from kdbench.data.noise import symmetric_noise
from kdbench.errors import KdbenchError
from kdbench.stage import WEIGHTS, Finished, Work, execute, read_spec
from kdbench.stages import Teacher as TeacherStage
from kdbench.stages.splits import NOISE_SEED, splits_of
from kdbench.store import Store
from kdbench.study import Node
from kdbench.training.evaluate import metrics_of, predict

NOISY = msgspec.structs.replace(RECIPE, label_noise=0.4)


def labels_of(count: int, classes: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(classes, (count,), generator=generator).to(dtype)


# ---------------------------------------------------------------------------------------------------------- the labels


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 300),
    classes=st.integers(2, 120),
    rate=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_so_many_labels_are_wrong_and_no_other(count: int, classes: int, rate: float, seed: int) -> None:
    labels = labels_of(count, classes)
    before = labels.clone()
    noisy = symmetric_noise(labels, rate, classes, seed)
    assert torch.equal(labels, before)
    # Exactly so many: a replaced label never falls on its own class.
    assert int((noisy != labels).sum()) == round(rate * count)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < classes
    assert noisy.data_ptr() != labels.data_ptr(), "the caller could change the data's own labels through it"


def test_every_other_class_is_as_likely_whatever_the_label() -> None:
    classes, count = 7, 70_000
    labels = torch.arange(count) % classes
    noisy = symmetric_noise(labels, 0.5, classes, seed=3)
    wrong = noisy != labels
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (labels[wrong].numpy(), noisy[wrong].numpy()), 1)
    assert table.trace() == 0
    others = table[~np.eye(classes, dtype=bool)]
    assert others.sum() == count // 2
    assert scipy.stats.chisquare(others).pvalue > 1e-3  # which labels, and by which class: all 42 pairs alike
    # The order of the data has no part in it.
    halves = [int(part.sum()) for part in wrong.chunk(2)]
    assert scipy.stats.chisquare(halves).pvalue > 1e-3


def test_a_label_that_is_wrong_at_one_rate_is_as_wrong_at_every_higher_one() -> None:
    labels = labels_of(1000, 10)
    rates = (0.05, 0.2, 0.4, 0.99)
    noisy = [symmetric_noise(labels, rate, 10, seed=0) for rate in rates]
    for low, high in pairwise(noisy):
        wrong = low != labels
        assert torch.equal(high[wrong], low[wrong])
        assert int((high != labels).sum()) > int(wrong.sum())


def test_the_seed_alone_decides() -> None:
    labels = labels_of(1000, 10)
    first = symmetric_noise(labels, 0.4, 10, seed=0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    torch.manual_seed(99)
    np.random.seed(99)
    moved = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert torch.equal(symmetric_noise(labels, 0.4, 10, seed=0), first)
    assert np.random.get_state()[1].tolist() == moved[0]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), moved[1])
    assert random.getstate() == states[0]
    other = symmetric_noise(labels, 0.4, 10, seed=1)
    assert not torch.equal(other, first)
    both = ((first != labels) & (other != labels)).double().mean().item()
    assert both == pytest.approx(0.16, abs=0.05), "two seeds choose independently"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_keep_their_type_whatever_it_holds(dtype: torch.dtype) -> None:
    """The largest number of classes that the type has room for: a label and a step together do not fit in it."""
    classes = min(torch.iinfo(dtype).max + 1, 1000)
    labels = labels_of(5000, classes, dtype)
    noisy = symmetric_noise(labels, 0.5, classes, seed=0)
    assert noisy.dtype == dtype
    assert torch.equal(noisy.long(), symmetric_noise(labels.long(), 0.5, classes, seed=0))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(KdbenchError, match=r"label noise of .* is no share of the labels.*from 0 to below 1"):
        symmetric_noise(labels_of(10, 3), rate, 3, seed=0)


def test_one_class_has_no_wrong_label() -> None:
    zeros = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(KdbenchError, match="two classes at least"):
        symmetric_noise(zeros, 0.2, 1, seed=0)
    assert torch.equal(symmetric_noise(zeros, 0.0, 1, seed=0), zeros)


# ---------------------------------------------------------------------------------------------------------- the stages


class Bench:
    """A store shared by the tests below: each network is trained once, in this process."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)
        self.lab = toy_lab()
        self.noisy = self.lab.train(STUDENT, seed=0, recipe=NOISY)

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def work(bench: Bench) -> Work:
    finished = bench.run(bench.noisy)
    return Work(finished.folder, read_spec(finished.folder))


@pytest.mark.parametrize("holdout", [0.0, 0.1])
def test_noise_reaches_training_labels_alone(work: Work, holdout: float) -> None:
    clean, noisy = splits_of(work, holdout), splits_of(work, holdout, 0.4)
    assert clean.keys() == noisy.keys() == {"train", "test"} | ({"validation"} if holdout else set())
    for name, split in noisy.items():
        assert torch.equal(split.inputs, clean[name].inputs)
        if name != "train":
            assert torch.equal(split.labels, clean[name].labels)
    wrong = noisy["train"].labels != clean["train"].labels
    assert int(wrong.sum()) == round(0.4 * len(wrong))
    again = splits_of(work, holdout)["train"].labels
    assert torch.equal(again, clean["train"].labels), "the data that this process keeps were changed"


def test_noise_is_the_same_for_every_seed_of_a_study(bench: Bench, work: Work) -> None:
    other = bench.lab.train(STUDENT, seed=1, recipe=NOISY)
    folder = bench.store.prepare(other.spec)
    theirs = splits_of(Work(folder, read_spec(folder)), 0.1, 0.4)["train"].labels
    mine = splits_of(work, 0.1, 0.4)["train"].labels
    assert torch.equal(mine, theirs)
    assert torch.equal(mine, symmetric_noise(splits_of(work, 0.1)["train"].labels, 0.4, 10, NOISE_SEED))


def test_a_network_is_trained_on_the_noise_and_scored_without(bench: Bench, work: Work) -> None:
    clean = bench.run(bench.lab.train(STUDENT, seed=0, recipe=RECIPE))
    noisy = bench.run(bench.noisy)
    assert bench.noisy.spec.hash != clean.record.hash
    ours, theirs = noisy.tensors(WEIGHTS), clean.tensors(WEIGHTS)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    # Four in ten labels are wrong, so no loss on them can be as low.
    assert noisy.record.curves["loss"][-1] > clean.record.curves["loss"][-1]
    splits = splits_of(work, 0.1)
    for name in ("validation", "test"):
        found = metrics_of(predict(noisy.model(work), splits[name].inputs), splits[name].labels)
        assert noisy.record.metrics[f"{name}.accuracy"] == found["accuracy"]


def test_a_teacher_is_measured_on_the_labels_that_its_student_gets(bench: Bench, work: Work) -> None:
    student = bench.lab.distil(STUDENT, bench.noisy, seed=0, recipe=NOISY, objective=OBJECTIVE)
    stage = unpack(student.inputs["teacher"].spec.stage)
    assert isinstance(stage, TeacherStage)
    assert stage.label_noise == 0.4
    metrics = bench.run(student.inputs["teacher"]).record.metrics
    model = bench.run(bench.noisy).model(work)
    found = {}
    for noise in (0.0, 0.4):
        train = splits_of(work, 0.1, noise)["train"]
        found[noise] = metrics_of(predict(model, train.inputs), train.labels)
    assert found[0.4]["accuracy"] != found[0.0]["accuracy"]
    assert {name: metrics[f"train.{name}"] for name in found[0.4]} == found[0.4]


def test_a_plan_without_noise_is_the_plan_that_says_so() -> None:
    lab = toy_lab()
    said = msgspec.structs.replace(RECIPE, label_noise=0.0)
    hashes = {lab.train(STUDENT, seed=0, recipe=recipe).spec.hash for recipe in (RECIPE, said)}
    assert len(hashes) == 1

"""Label smoothing: its value by hand, its limits, its gradient against torch's, and what kdbench knows of it."""

import math

import pytest
import torch
from kdbench.component import load_object, pack
from kdbench.errors import KdbenchError
from kdbench.testing import assert_loss_parity
from kdbench.training import CrossEntropy, ObjectiveInfo
from kdbench.training.batch import Batch
from torch.nn import functional

from kdbench_hinton import kdbench_objectives
from kdbench_hinton.objectives import LabelSmoothing


def batch(labels):
    """A batch as an objective sees it; label smoothing reads the labels alone."""
    return Batch(inputs=None, labels=labels, indices=torch.arange(len(labels)), teacher_logits=None, epoch=0)


@pytest.fixture
def logits():
    return torch.randn(32, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.arange(32) % 10


def test_two_classes_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # probabilities 3/4 and 1/4
    loss = LabelSmoothing(strength=0.2).loss(logits, batch(torch.tensor([0])))
    assert loss.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))


def test_value_and_gradient_are_those_of_torch():
    def ours(student, teacher, labels, *, temperature):
        return LabelSmoothing(strength=0.1).loss(student, batch(labels))

    def torchs(student, teacher, labels, *, temperature):
        return functional.cross_entropy(student, labels, label_smoothing=0.1)

    assert_loss_parity(ours, torchs, temperatures=(1.0,))


def test_without_strength_it_is_cross_entropy(logits, labels):
    smoothed = LabelSmoothing(strength=0.0).loss(logits, batch(labels))
    torch.testing.assert_close(smoothed, CrossEntropy().loss(logits, batch(labels)))


def test_at_full_strength_no_label_matters(logits, labels):
    objective = LabelSmoothing(strength=1.0)
    torch.testing.assert_close(objective.loss(logits, batch(labels)), objective.loss(logits, batch(labels.flip(0))))


def test_it_is_least_at_the_smoothed_labels_and_not_at_certainty(labels):
    strength, classes = 0.1, 10
    target = functional.one_hot(labels, classes) * (1 - strength) + strength / classes
    objective = LabelSmoothing(strength=strength)
    certain = 50.0 * functional.one_hot(labels, classes).double()
    assert objective.loss(target.log().double(), batch(labels)) < objective.loss(certain, batch(labels))
    at_target = target.log().double().requires_grad_()
    objective.loss(at_target, batch(labels)).backward()
    assert at_target.grad.abs().max() < 1e-6


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_that_is_no_share_is_refused(strength):
    with pytest.raises(KdbenchError, match=r"between 0 and 1"):
        LabelSmoothing(strength=strength)


def test_the_hook_publishes_it_and_its_strength_is_in_the_hash():
    (info,) = kdbench_objectives()
    assert isinstance(info, ObjectiveInfo)
    assert load_object(info.create) is LabelSmoothing
    assert load_object(info.create)(**info.example) == LabelSmoothing(strength=0.1)
    assert pack(LabelSmoothing(strength=0.1)) != pack(LabelSmoothing(strength=0.2))

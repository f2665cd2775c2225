"""Differentiation: gradient checks, scaling, retained graphs, and what must not be shared."""

from __future__ import annotations

import pytest
import torch
from loss_oracle import batch

from kdbench.errors import KdbenchError
from kdbench.losses import cross_entropy, distillation_loss, kl
from kdbench.ops import native as native_kernels
from kdbench.ops import reference


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_gradcheck(implementation, reduction, temperature):
    student, teacher, labels = batch(3, 5, dtype=torch.float64)
    labels[1] = -100
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: distillation_loss(s, teacher, labels, temperature=temperature, alpha=0.6, reduction=reduction),
        student,
    )
    assert torch.autograd.gradcheck(lambda s: kl(s, teacher, temperature=temperature, reduction=reduction), student)
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, labels, reduction=reduction), student)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_upstream_gradient_scales(implementation, reduction):
    student, teacher, _ = batch(4, 6)
    weight = torch.tensor([1.0, -2.0, 0.0, 3.0]) if reduction == "none" else torch.tensor(-2.5)
    leaf = student.requires_grad_()
    loss = kl(leaf, teacher, temperature=2.0, reduction=reduction)
    (unit,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad((loss * weight).sum(), leaf)
    torch.testing.assert_close(scaled, unit * (weight[:, None] if reduction == "none" else weight))


def test_retained_graph_gives_the_same_gradient_again(implementation):
    student, teacher, labels = batch(4, 6)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    kept = first.clone()
    first.zero_()  # what the caller does with its gradient must not reach the graph
    (second,) = torch.autograd.grad(loss, student, retain_graph=True)
    assert torch.equal(second, kept)
    second.zero_()
    (third,) = torch.autograd.grad(loss, student)
    assert torch.equal(third, kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_accumulate_over_a_shared_student(implementation):
    student, teacher, labels = batch(4, 6)
    student.requires_grad_()

    def loss():
        return distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5)

    (single,) = torch.autograd.grad(loss(), student)
    loss().backward()
    loss().backward()
    (loss() + loss()).backward()
    torch.testing.assert_close(student.grad, 4 * single)


def test_the_teacher_gets_no_gradient(implementation):
    student, teacher, _ = batch(4, 6)
    teacher.requires_grad_()
    assert not kl(student, teacher, temperature=2.0).requires_grad
    student.requires_grad_()
    kl(student, teacher, temperature=2.0).backward()
    assert teacher.grad is None
    assert student.grad.any()


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_second_derivatives_are_refused(implementation, reduction):
    student, teacher, _ = batch(4, 6)
    student.requires_grad_()
    loss = kl(student, teacher, temperature=2.0, reduction=reduction).sum()
    (once,) = torch.autograd.grad(loss, student, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.equal(gradient, once)
    with pytest.raises(KdbenchError, match="differentiable once only"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("wants", [True, False])
def test_a_gradient_is_computed_only_where_it_is_wanted(implementation, monkeypatch, wants):
    module = native_kernels if implementation == "cpu" else reference
    asked = []
    original = module.loss_and_gradient

    def spy(*args, want_gradient):
        asked.append(want_gradient)
        return original(*args, want_gradient=want_gradient)

    monkeypatch.setattr(module, "loss_and_gradient", spy)
    student, teacher, _ = batch(4, 6)
    student.requires_grad_()
    with torch.set_grad_enabled(wants):
        loss = kl(student, teacher, temperature=2.0)
    assert asked == [wants]
    assert loss.requires_grad == wants


def test_it_trains(implementation):
    student, teacher, _ = batch(16, 5)
    student.requires_grad_()
    before = kl(student, teacher, temperature=2.0).item()
    optimiser = torch.optim.SGD([student], lr=4.0)
    for _ in range(20):
        optimiser.zero_grad()
        kl(student, teacher, temperature=2.0, reduction="sum").backward()
        optimiser.step()
    assert kl(student, teacher, temperature=2.0).item() < 0.1 * before

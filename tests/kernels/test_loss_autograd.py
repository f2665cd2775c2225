"""Differentiation: gradient checks, scaling, retained graphs, overwritten logits, and what must not be shared."""

from __future__ import annotations

import pytest
import torch
from loss_oracle import batch, exact, peak

from kdbench.errors import KdbenchError
from kdbench.losses import (
    cross_entropy,
    distillation_loss,
    ensemble_distillation_loss,
    kl,
    soft_label_cross_entropy,
    teacher_log_sum_exp,
    topk_distillation_loss,
)

ROWS, CLASSES = 4, 6
OPERATORS = ["distillation", "per row", "kl", "cross-entropy", "soft labels", "ensemble", "top-k"]


def operator(name: str, *, dtype: torch.dtype = torch.float32):
    """One loss as a function of the student logits and its keywords, and the logits to give it."""
    student, teacher, labels = batch(ROWS, CLASSES, dtype=dtype)
    labels[1] = -100
    both = {"temperature": 2.0, "alpha": 0.6}
    if name == "per row":
        both = {"temperature": torch.tensor([0.7, 1.0, 4.0, 2.0]), "alpha": torch.tensor([0.0, 0.3, 0.6, 1.0])}
    listed, indices = teacher.topk(3, dim=1)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    losses = {
        "distillation": lambda s, **o: distillation_loss(s, teacher, labels, **both, **o),
        "per row": lambda s, **o: distillation_loss(s, teacher, labels, **both, **o),
        "kl": lambda s, **o: kl(s, teacher, temperature=2.0, **o),
        "cross-entropy": lambda s, **o: cross_entropy(s, labels, **o),
        "soft labels": lambda s, **o: soft_label_cross_entropy(s, labels, 0.7, **o),
        "ensemble": lambda s, **o: ensemble_distillation_loss(
            s, [teacher, teacher.flip(1)], labels, **both, combine="losses", **o
        ),
        "top-k": lambda s, **o: topk_distillation_loss(
            s, listed, indices, labels, **both, tail="bucket", teacher_lse=lse, **o
        ),
    }
    return losses[name], student


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


@pytest.mark.parametrize("classes", [17, 50])
def test_gradcheck_of_longer_rows(implementation, classes):
    student, teacher, labels = batch(2, classes, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: distillation_loss(s, teacher, labels, temperature=3.0, alpha=0.6),
        student.requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck_of_each_operator(implementation, name):
    loss, student = operator(name, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, reduction="none"), student.requires_grad_())


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_upstream_gradient_scales(implementation, name, reduction):
    loss_of, leaf = operator(name)
    weight = torch.tensor([1.0, -2.0, 0.0, 3.0]) if reduction == "none" else torch.tensor(-2.5)
    loss = loss_of(leaf.requires_grad_(), reduction=reduction)
    (unit,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad((loss * weight).sum(), leaf)
    torch.testing.assert_close(scaled, unit * (weight[:, None] if reduction == "none" else weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upstream_gradient_scales_half_precision(implementation, dtype):
    loss_of, leaf = operator("distillation", dtype=dtype)
    loss = loss_of(leaf.requires_grad_())
    (unit,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 3, leaf)
    assert scaled.dtype == dtype
    torch.testing.assert_close(scaled.float(), 3 * unit.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_loss_scale_saves_float16(implementation):
    """One class's share of a mean over rows is below float16's range until the loss scale lifts it."""
    student, teacher, labels = batch(4096, 200, dtype=torch.float16)
    leaf = student.requires_grad_()
    (distillation_loss(leaf, teacher, labels, temperature=4.0, alpha=0.9) * 2.0**14).backward()
    want = exact(student, teacher, labels, temperature=4.0, alpha=0.9).gradient * 2.0**14
    torch.testing.assert_close(leaf.grad.double(), want, rtol=2e-3, atol=1e-4 * peak(want))


@pytest.mark.parametrize("name", OPERATORS)
def test_retained_graph_gives_the_same_gradient_again(implementation, name):
    loss_of, student = operator(name)
    student.requires_grad_()
    loss = loss_of(student)
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


def test_a_scaled_gradient_leaves_a_retained_graph_alone(implementation):
    loss_of, student = operator("distillation")
    student.requires_grad_()
    loss = loss_of(student)
    gradients = [torch.autograd.grad(loss * factor, student, retain_graph=True)[0] for factor in (2.0, 1.0, 2.0)]
    torch.testing.assert_close(gradients[0], 2 * gradients[1])
    assert torch.equal(gradients[0], gradients[2])


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


def test_gradients_of_two_steps_do_not_share_memory(implementation):
    student, teacher, labels = batch(64, 100)
    leaf = student.requires_grad_()
    options = {"temperature": 2.0, "alpha": 0.5}
    (first,) = torch.autograd.grad(distillation_loss(leaf, teacher, labels, **options), leaf)
    kept = first.clone()
    (second,) = torch.autograd.grad(distillation_loss(leaf, -teacher, labels, **options), leaf)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_the_teacher_gets_no_gradient(implementation):
    student, teacher, _ = batch(4, 6)
    teacher.requires_grad_()
    assert not kl(student, teacher, temperature=2.0).requires_grad
    student.requires_grad_()
    kl(student, teacher, temperature=2.0).backward()
    assert teacher.grad is None
    assert student.grad.any()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_second_derivatives_are_refused(implementation, name, reduction):
    loss_of, student = operator(name)
    student.requires_grad_()
    loss = loss_of(student, reduction=reduction).sum()
    (once,) = torch.autograd.grad(loss, student, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.equal(gradient, once)
    with pytest.raises(KdbenchError, match="differentiable once only"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_inplace_gives_the_same_numbers_in_the_logits_memory(implementation, name, reduction):
    loss_of, student = operator(name)
    leaf = student.requires_grad_()
    loss = loss_of(leaf, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    logits = leaf * 1.0
    address = logits.data_ptr()
    inplace_loss = loss_of(logits, reduction=reduction, inplace=True)
    assert torch.equal(inplace_loss, loss)
    assert logits.data_ptr() == address
    assert torch.equal(logits.detach(), gradient)
    (inplace_gradient,) = torch.autograd.grad(inplace_loss.sum(), leaf)
    assert torch.equal(inplace_gradient, gradient)


@pytest.mark.parametrize("layout", ["padded", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inplace_in_any_layout(implementation, layout, dtype):
    student, teacher, labels = batch(5, 6, dtype=dtype)
    leaf = torch.zeros(5, 9, dtype=dtype)
    leaf[:, :6] = student
    leaf.requires_grad_()
    options = {"temperature": 2.0, "alpha": 0.5}
    (want,) = torch.autograd.grad(distillation_loss(leaf[:, :6], teacher, labels, **options), leaf)
    wide = leaf * 1.0
    logits = wide[:, :6] if layout == "padded" else (leaf.T * 1.0)[:6].T
    loss = distillation_loss(logits, teacher, labels, **options, inplace=True)
    (got,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(got, want)
    if layout == "padded":
        assert torch.equal(wide[:, 6:], leaf[:, 6:])  # the neighbours


def test_inplace_survives_a_retained_graph(implementation):
    loss_of, student = operator("distillation")
    leaf = student.requires_grad_()
    (want,) = torch.autograd.grad(loss_of(leaf), leaf)
    loss = loss_of(leaf * 1.0, inplace=True)
    for factor in (1.0, 3.0, 1.0):
        (got,) = torch.autograd.grad(loss * factor, leaf, retain_graph=True)
        torch.testing.assert_close(got, factor * want)
        got.zero_()


def test_inplace_is_noticed_by_whoever_saved_the_logits(implementation):
    loss_of, student = operator("distillation")
    logits = student.requires_grad_() * 1.0
    penalty = logits.square().sum()
    loss = loss_of(logits, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + penalty).backward()


@pytest.mark.parametrize("wants", [True, False])
def test_a_gradient_is_differentiable_only_where_it_is_wanted(implementation, wants):
    student, teacher, _ = batch(4, 6)
    student.requires_grad_()
    with torch.set_grad_enabled(wants):
        loss = kl(student, teacher, temperature=2.0)
    assert loss.requires_grad == wants
    with torch.inference_mode():
        assert kl(student, teacher, temperature=2.0).item() == loss.item()


@pytest.mark.parametrize("name", OPERATORS)
def test_inputs_are_left_alone(implementation, name):
    loss_of, student = operator(name)
    kept = student.clone()
    loss_of(student.requires_grad_()).backward()
    assert torch.equal(student, kept)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_compiled_without_graph_breaks(implementation, name, reduction):
    loss_of, student = operator(name)
    leaf = student.requires_grad_()
    want = loss_of(leaf, reduction=reduction)
    (gradient,) = torch.autograd.grad(want.sum(), leaf)
    torch._dynamo.reset()
    got = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(leaf, reduction=reduction)
    assert torch.equal(got, want)
    assert torch.equal(torch.autograd.grad(got.sum(), leaf)[0], gradient)


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

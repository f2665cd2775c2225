"""The conformance kit's parity check: it passes what is right, and names each planted fault."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses import distillation_loss, kl
from kdbench.ops import forced
from kdbench.testing import assert_loss_parity
from kdbench.testing.parity import Disparity

HALF = (torch.bfloat16, torch.float16)


def fused(s: Tensor, t: Tensor, y: Tensor, *, temperature: float, **more) -> Tensor:
    return distillation_loss(s, t, y, temperature=temperature, alpha=0.6, **more)


def divergence(s: Tensor, t: Tensor, *, temperature: float, reduction: str = "batchmean") -> Tensor:
    log_q, log_p = (F.log_softmax(logits / temperature, dim=1) for logits in (s, t.detach()))
    return F.kl_div(log_q, log_p, log_target=True, reduction=reduction)


def plain(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    return 0.4 * F.cross_entropy(s, y) + 0.6 * temperature**2 * divergence(s, t, temperature=temperature)


def soft(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the divergence alone."""
    return temperature**2 * divergence(s, t, temperature=temperature)


def in_float32(loss):
    """A plain loss that computes half precision as it should be computed."""
    return lambda s, t, y, *, temperature: loss(
        *(x.float() if x.dtype in HALF else x for x in (s, t)), y, temperature=temperature
    )


@pytest.mark.parametrize("which", ["native", "reference"])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_our_own_losses_pass(which, reduction):
    def by_row(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        rows = divergence(s, t, temperature=temperature, reduction="none").sum(dim=1)
        return 0.4 * F.cross_entropy(s, y, reduction="none") + 0.6 * temperature**2 * rows

    with forced(which):
        assert_loss_parity(
            lambda *tensors, temperature: fused(*tensors, temperature=temperature, reduction=reduction),
            plain if reduction == "batchmean" else by_row,
        )
        assert_loss_parity(
            lambda s, t, y, *, temperature: kl(s, t, temperature=temperature),
            lambda s, t, y, **o: divergence(s, t, **o),
        )


def test_a_plain_loss_passes_in_the_precision_that_it_has():
    assert_loss_parity(in_float32(plain), plain)


def test_its_choices_are_heeded():
    seen = set()

    def spy(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        seen.add((tuple(s.shape), s.dtype, temperature))
        return plain(s, t, y, temperature=temperature)

    assert_loss_parity(spy, plain, shapes=[(2, 3)], dtypes=[torch.float64], temperatures=[1.5])
    assert seen == {((2, 3), torch.float64, 1.5)}
    batches = []
    for seed in (0, 0, 1):
        assert_loss_parity(
            lambda s, t, y, **o: batches.append(s.detach().clone()) or plain(s, t, y, **o),
            plain,
            shapes=[(2, 3)],
            dtypes=[torch.float32],
            temperatures=[1.0],
            seed=seed,
        )
    first, second, third = batches[0], batches[len(batches) // 3], batches[-1]
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


class _Leaky(torch.autograd.Function):
    """Ignores the gradient that comes in."""

    @staticmethod
    def forward(ctx, s, gradient, value):
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0], None, None


def ignores_the_incoming_gradient(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    leaf = s.detach().requires_grad_()
    value = plain(leaf, t, y, temperature=temperature)
    return _Leaky.apply(s, torch.autograd.grad(value, leaf)[0], value.detach())


def wrong_gradient(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    value = plain(s, t, y, temperature=temperature)
    extra = 1e-3 * s[0, 1]
    return value + extra - extra.detach()


def modifies(which: str):
    def loss(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        value = plain(s, t, y, temperature=temperature)
        with torch.no_grad():
            {"student": s, "teacher": t, "labels": y}[which].data[-1] += 1
        return value

    return loss


def noisy(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    value = plain(s, t, y, temperature=temperature)
    return value * (1 + 1e-7 * torch.randint(1, 50, ()))


def noisy_gradient(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    extra = 1e-8 * torch.rand(()) * s.sum()
    return plain(s, t, y, temperature=temperature) + extra - extra.detach()


# What is wrong, its reference, and what the message must say.
FAULTS = {
    "T^2 missing": (
        lambda s, t, y, **o: divergence(s, t, **o),
        soft,
        r"T = 4: the value .* 1/16 of it: is the factor T\^2",
    ),
    "T^2 missing in a sum of two": (
        lambda s, t, y, **o: 0.4 * F.cross_entropy(s, y) + 0.6 * divergence(s, t, **o),
        plain,
        r"T = 4: the value .* At T = 1 it is right: look at the powers of T",
    ),
    "mean": (
        lambda s, t, y, *, temperature: kl(s, t, temperature=temperature, reduction="mean") * temperature**2,
        soft,
        r"4 x 10 float32.* 1/10 of it: is it divided by the classes \('mean' of torch's KLDivLoss\)",
    ),
    "sum": (
        lambda s, t, y, *, temperature: kl(s, t, temperature=temperature, reduction="sum") * temperature**2,
        soft,
        r"4 times it: is it a sum over the rows",
    ),
    "no reduction": (
        lambda *tensors, **o: fused(*tensors, **o, reduction="none"),
        plain,
        r"the loss has shape \[4\], its reference \[\]: another reduction",
    ),
    "teacher": (
        lambda s, t, y, *, temperature: (
            0.4 * F.cross_entropy(s, y)
            + 0.6
            * temperature**2
            * F.kl_div(*((x / temperature).log_softmax(1) for x in (s, t)), None, None, "batchmean", log_target=True)
        ),
        plain,
        r"a gradient reaches the teacher, the largest of it in row \d, class \d",
    ),
    "in place": (modifies("student"), plain, r"the student logits were modified, first in row 3, class 0"),
    "teacher in place": (modifies("teacher"), plain, r"the teacher logits were modified, first in row 3, class 0"),
    "labels in place": (modifies("labels"), plain, r"the labels were modified, first in row 3"),
    "wrong label": (
        lambda s, t, y, **o: plain(s, t, torch.where(y == y[0], (y + 1) % s.shape[1], y), **o),
        plain,
        r"4 x 10 float32 logits, T = 1: the value is [\d.]+, its reference [\d.]+: off by",
    ),
    "wrong gradient": (
        wrong_gradient,
        plain,
        r"the gradient in row 0, class 1 \(the label is \d\) is \S+, its reference's \S+: off by 0.001, allowed",
    ),
    "noise": (noisy, plain, r"not deterministic: the value of a second call .* first in it"),
    "noise in the gradient": (
        noisy_gradient,
        plain,
        r"not deterministic: the gradient of a second call .* first in row",
    ),
    "incoming gradient": (ignores_the_incoming_gradient, plain, r"does not scale with the gradient that comes in"),
    "detached": (
        lambda s, t, y, **o: plain(s.detach(), t, y, **o),
        plain,
        r"the loss is not differentiable in the student logits",
    ),
    "number": (lambda s, t, y, **o: plain(s, t, y, **o).item(), plain, r"the loss is a float, not a tensor"),
    "NaN": (lambda s, t, y, **o: plain(s, t, y, **o) * float("nan"), plain, r"the value is nan"),
    "reference": (plain, lambda s, t, y, **o: plain(s.detach(), t, y, **o), r"the reference is not differentiable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault):
    torch.manual_seed(0)
    loss, reference, message = FAULTS[fault]
    with pytest.raises(AssertionError) as caught:
        assert_loss_parity(loss, reference)
    assert re.search(message, str(caught.value)), caught.value


def test_a_fault_in_one_row_is_found_in_a_loss_by_row():
    def loss(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        rows = F.cross_entropy(s, y, reduction="none")
        return rows + torch.where(torch.arange(len(y)) == 2, 1e-3, 0.0)

    with pytest.raises(AssertionError, match=r"the value in row 2 is"):
        assert_loss_parity(loss, lambda s, t, y, **o: F.cross_entropy(s, y, reduction="none"))


def test_a_gradient_of_another_precision_is_a_fault():
    class Wide(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s):
            return s.double().sum()

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output.expand(4, 11).clone()

    with pytest.raises((AssertionError, RuntimeError), match="shape"):
        assert_loss_parity(lambda s, t, y, **o: Wide.apply(s), lambda s, t, y, **o: s.sum(), shapes=[(4, 10)])


def test_half_precision_that_sums_in_half_precision_is_a_fault():
    with pytest.raises(AssertionError, match="bfloat16"):
        assert_loss_parity(plain, plain, dtypes=[torch.bfloat16])


def undefined(loss, where: str):
    """A loss by row that is not a number in the second row of every batch, nor is its gradient there."""

    def by_row(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        rows = F.cross_entropy(s, y, reduction="none") * 1.0
        return torch.cat([rows[:1], rows[1:2] * float(where), rows[2:] * (1 + (loss == "off"))])

    return by_row


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_undefined_in_both_is_no_difference(value):
    settings = {"shapes": [(4, 10)], "dtypes": [torch.float32], "temperatures": [1.0]}
    assert_loss_parity(undefined("right", value), undefined("right", value), **settings)
    with pytest.raises(Disparity, match=rf"the value in row 1 is {value}, its reference"):
        assert_loss_parity(undefined("right", value), undefined("right", "1"), **settings)
    with pytest.raises(Disparity, match=r"the value in row 1 is .*, its reference " + value):
        assert_loss_parity(undefined("right", "1"), undefined("right", value), **settings)
    with pytest.raises(Disparity, match=r"the value in row [23] is"):
        assert_loss_parity(undefined("off", value), undefined("right", value), **settings)


def test_what_a_loss_itself_asserts_is_no_disparity():
    def asserting(s: Tensor, t: Tensor, y: Tensor, *, temperature: float) -> Tensor:
        raise AssertionError("40 inputs only")

    with pytest.raises(AssertionError, match=r"^40 inputs only$") as caught:
        assert_loss_parity(asserting, plain)
    assert not isinstance(caught.value, Disparity)


def test_it_needs_no_pytest():
    import subprocess
    import sys

    program = (
        "import sys; sys.modules['pytest'] = None;"
        "from kdbench.testing import assert_loss_parity; import torch;"
        "f = lambda s, t, y, *, temperature: torch.nn.functional.cross_entropy(s, y);"
        "assert_loss_parity(f, f, dtypes=[torch.float32])"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

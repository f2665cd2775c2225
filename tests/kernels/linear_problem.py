"""Two output layers to distil between, and the loss of their logits without chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from loss_oracle import peak

from kdbench.losses import distillation_loss

NAMES = ("hidden_s", "weight_s", "bias_s", "hidden_t", "weight_t", "bias_t")


def problem(rows, classes, *, width_s=6, width_t=4, dtype=torch.float64, bias=True, seed=0):
    """Hidden states, weights and biases of two output layers by their names, and labels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {
        "hidden_s": normal(rows, width_s),
        "weight_s": normal(classes, width_s),
        "bias_s": normal(classes) if bias else None,
        "hidden_t": normal(rows, width_t),
        "weight_t": normal(classes, width_t),
        "bias_t": normal(classes) if bias else None,
    }
    return tensors, torch.randint(0, classes, (rows,), generator=generator)


def unchunked(hidden_s, weight_s, hidden_t, weight_t, labels=None, *, bias_s=None, bias_t=None, **options):
    logits = F.linear(hidden_s, weight_s, bias_s)
    return distillation_loss(logits, F.linear(hidden_t, weight_t, bias_t), labels, **options)


def run(loss, tensors, labels, wanted=("hidden_s", "weight_s", "bias_s"), **options):
    """The loss, and its gradients by name."""
    leaves = {
        name: None if t is None else t.detach().clone().requires_grad_(name in wanted) for name, t in tensors.items()
    }
    value = loss(labels=labels, **leaves, **options)
    if wanted:
        value.backward()
    return value.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}


def assert_same(got, want, rtol):
    assert got[0].dtype == want[0].dtype
    torch.testing.assert_close(got[0], want[0], rtol=rtol, atol=0)
    for name, gradient in want[1].items():
        if gradient is None:
            assert got[1][name] is None, name
            continue
        assert got[1][name].dtype == gradient.dtype
        torch.testing.assert_close(got[1][name], gradient, rtol=0, atol=rtol * peak(gradient), msg=name)

"""What the tests of the objectives share: random states, masks and batches, float64 unless they say otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench_vidlankd.objectives import Material

__all__ = ["Outcome", "gradients", "make_material", "padded", "random_states", "same"]

Outcome = tuple[Tensor, tuple[Tensor, ...]]
"""A value, and its gradients."""


def random_states(
    blocks: int, length: int, hidden: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """``[B, L, H]`` normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(blocks, length, hidden, generator=generator, dtype=torch.float64)).to(dtype)


def padded(blocks: int, length: int) -> Tensor:
    """A mask ``[B, L]`` whose blocks have L, L - 1, ... real tokens, at least 2 and at most L; then L again."""
    real = torch.tensor([max(length - place % max(length - 1, 1), min(length, 2)) for place in range(blocks)])
    return torch.arange(length)[None] < real[:, None]


def make_material(
    blocks: int = 4,
    length: int = 5,
    hidden: int = 6,
    *,
    seed: int = 0,
    draw: int = 11,
    words: int = 9,
    padding: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Material:
    """A batch of the training blocks 3, 4, ...; logits are a fixed projection of the states."""
    mask = padded(blocks, length) if padding else torch.ones(blocks, length, dtype=torch.bool)
    student = random_states(blocks, length, hidden, seed=seed, dtype=dtype).requires_grad_()
    teacher = random_states(blocks, length, hidden, seed=seed + 100, dtype=dtype)
    vocabulary = random_states(1, hidden, words, seed=seed + 200, dtype=dtype)[0]
    return Material(
        student=student,
        teacher=teacher,
        indices=torch.arange(3, 3 + blocks),
        seed=draw,
        attention=mask,
        student_logits=lambda: student[mask] @ vocabulary,
        teacher_logits=lambda: teacher[mask] @ vocabulary,
    )


def gradients(loss: Callable[..., Tensor], *leaves: Tensor) -> Outcome:
    """``loss()`` and its gradients in ``leaves``."""
    value = loss()
    return value.detach(), torch.autograd.grad(value, leaves)


def same(found: Outcome, expected: Outcome, *, rtol: float = 1e-11) -> None:
    """Value within ``rtol``, gradients within ``rtol`` of their largest entries."""
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=rtol, atol=rtol)
    for one, other in zip(found[1], expected[1], strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=rtol * max(largest, 1e-3))

"""The distillation loss, forward and backward, against torch eager: ``pytest --benchmark-only tests/benchmarks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdbench.losses import distillation_loss
from kdbench.ops import implementation

TEMPERATURE, ALPHA = 4.0, 0.9


def fused(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return distillation_loss(student, teacher, labels, temperature=TEMPERATURE, alpha=ALPHA)


def eager(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    kl = functional.kl_div(
        functional.log_softmax(student / TEMPERATURE, 1),
        functional.log_softmax(teacher / TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - ALPHA) * functional.cross_entropy(student, labels) + ALPHA * TEMPERATURE**2 * kl


@pytest.mark.parametrize("shape", [(128, 10), (128, 100), (128, 1000), (1024, 1000)], ids=str)
@pytest.mark.parametrize("loss", [fused, eager], ids=["fused", "eager"])
def test_forward_and_backward(
    benchmark: Any, loss: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int]
) -> None:
    if loss is fused and implementation() != "cpu":
        pytest.skip("the native kernels are not built; kdbench doctor says why")
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(shape, generator=generator, requires_grad=True)
    teacher = torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], shape[:1], generator=generator)

    def step() -> None:
        student.grad = None
        loss(student, teacher, labels).backward()

    benchmark.group = f"{shape[0]} x {shape[1]} fp32, {torch.get_num_threads()} threads"
    benchmark.pedantic(step, rounds=200, warmup_rounds=20)
    assert student.grad is not None

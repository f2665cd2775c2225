"""The contenders that kdbench brings. Imports torch; loaded only when one of them is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdbench.bench.contender import Case

__all__ = [
    "Loss",
    "compiled_log_target",
    "compiled_textbook",
    "kdbench_inplace",
    "kdbench_loss",
    "liger_jsd",
    "liger_kl",
    "log_target",
    "textbook",
    "why_no_liger",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]


def _with_labels(case: Case, divergence: Divergence) -> Loss:
    """Hinton's loss around a contender's own KL of the tempered logits; the hard term is torch's."""
    alpha, soft_weight = case.alpha, case.alpha * case.temperature**2

    def soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return soft_weight * divergence(student, teacher)

    def both(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return (1 - alpha) * functional.cross_entropy(student, labels) + soft_weight * divergence(student, teacher)

    return soft if alpha == 1 else both


def textbook(case: Case) -> Loss:
    """As most code that is published writes it."""
    temperature = case.temperature

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return functional.kl_div(
            functional.log_softmax(student / temperature, dim=1),
            functional.softmax(teacher / temperature, dim=1),
            reduction="batchmean",
        )

    return _with_labels(case, divergence)


def log_target(case: Case) -> Loss:
    """The same with the teacher's log-probabilities, which saves a logarithm an element."""
    temperature = case.temperature

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return functional.kl_div(
            functional.log_softmax(student / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )

    return _with_labels(case, divergence)


def compiled_textbook(case: Case) -> Loss:
    """Static shapes and no graph break, so that the compiler knows all there is to know."""
    return torch.compile(textbook(case), dynamic=False, fullgraph=True)


def compiled_log_target(case: Case) -> Loss:
    """As :func:`compiled_textbook`."""
    return torch.compile(log_target(case), dynamic=False, fullgraph=True)


def why_no_liger(case: Case) -> str | None:
    """Liger-Kernel's kernels are Triton's: they need a GPU, and the package."""
    if case.device != "cuda":
        return "its kernels run on a GPU only"
    try:
        _liger()
    except ImportError as error:
        return f"liger_kernel cannot be imported: {error}"
    return None


def _liger() -> Any:
    return importlib.import_module("liger_kernel.transformers")


def liger_kl(case: Case) -> Loss:
    """Liger's KL takes log-probabilities: both softmaxes stay torch's."""
    temperature, kl = case.temperature, _liger().LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = functional.log_softmax(student / temperature, dim=1)
        divergence: Tensor = kl(log_q, functional.log_softmax(teacher / temperature, dim=1))
        return divergence

    return _with_labels(case, divergence)


def liger_jsd(case: Case) -> Loss:
    """Liger's generalised JSD at beta 0 is the same KL by another path: loss and gradient in one kernel."""
    temperature, jsd = case.temperature, _liger().LigerJSD(beta=0.0)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = functional.log_softmax(student / temperature, dim=1)
        divergence: Tensor = jsd(log_q, functional.log_softmax(teacher / temperature, dim=1))
        return divergence

    return _with_labels(case, divergence)


def kdbench_loss(case: Case) -> Loss:
    """What users of kdbench call."""
    from kdbench.losses import distillation_loss

    return _kdbench(case, distillation_loss)


def kdbench_inplace(case: Case) -> Loss:
    """The same without memory for a gradient."""
    from kdbench.losses import distillation_loss

    return _kdbench(case, partial(distillation_loss, inplace=True))


def _kdbench(case: Case, distillation_loss: Callable[..., Tensor]) -> Loss:
    temperature, alpha = case.temperature, case.alpha

    def soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return distillation_loss(student, teacher, temperature=temperature)

    def both(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha)

    return soft if alpha == 1 else both

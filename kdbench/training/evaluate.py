"""Evaluation: logits of a split, and the plain metrics on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.data.base import Split

__all__ = ["agreement", "evaluate", "metrics_of", "predict"]


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Logits ``[N, C]`` (float32) of ``inputs`` in eval mode; the mode the model was in is restored."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(block) for block in torch.split(inputs, batch_size)]).float()
    finally:
        model.train(training)


def metrics_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy`` (top-1, percent), ``nll`` and mean predictive ``entropy`` (nats), accumulated in float64."""
    log_p = functional.log_softmax(logits.double(), dim=1)
    return {
        "accuracy": 100.0 * (logits.argmax(1) == labels).double().mean().item(),
        "nll": functional.nll_loss(log_p, labels).item(),
        "entropy": -(log_p.exp() * log_p).sum(1).mean().item(),
    }


def evaluate(model: nn.Module, split: Split) -> dict[str, float]:
    """:func:`metrics_of` the model's logits on ``split``."""
    return metrics_of(predict(model, split.inputs), split.labels)


def agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How well a student mimics a teacher, from logits ``[N, C]``.

    ``agreement``: share of equal top-1 predictions, percent. ``kl``: mean KL(teacher || student), temperature 1, nats.
    """
    log_s = functional.log_softmax(student.double(), dim=1)
    log_t = functional.log_softmax(teacher.double(), dim=1)
    return {
        "agreement": 100.0 * (student.argmax(1) == teacher.argmax(1)).double().mean().item(),
        "kl": functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item(),
    }

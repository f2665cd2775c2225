"""Label smoothing in both conventions, against torch's own and against the bridge between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_paper import toy_lab

from kdbench.errors import KdbenchError
from kdbench.plugins import registry
from kdbench.testing import assert_loss_parity
from kdbench.training import LabelSmoothing, Objective
from kdbench.training.batch import Batch

SHAPES = [(5, 2), (7, 10), (1, 3), (4, 100)]


def batch_of(labels: Tensor) -> Batch:
    rows = len(labels)
    return Batch(torch.zeros(rows, 1, 1, 8), labels, torch.arange(rows), torch.empty(0), 0)


def logits_of(rows: int, classes: int) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(rows * classes)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), batch_of(torch.randint(classes, (rows,), generator=generator))


def with_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_over_all_it_is_torchs(rows: int, classes: int, epsilon: float) -> None:
    logits, batch = logits_of(rows, classes)
    mine = LabelSmoothing(epsilon=epsilon, over="all").loss(logits, batch)
    torchs = functional.cross_entropy(logits, batch.labels, label_smoothing=epsilon)
    agree(with_gradient(mine, logits), with_gradient(torchs, logits))


@pytest.mark.parametrize("epsilon", [0.0, 0.15, 1.0])
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_over_others_it_is_the_written_out_target(rows: int, classes: int, epsilon: float) -> None:
    logits, batch = logits_of(rows, classes)
    target = torch.full((rows, classes), epsilon / (classes - 1), dtype=torch.float64)
    target[torch.arange(rows), batch.labels] = 1 - epsilon
    assert torch.equal(target.sum(1).round(decimals=12), torch.ones(rows, dtype=torch.float64))
    mine = LabelSmoothing(epsilon=epsilon, over="others").loss(logits, batch)
    agree(with_gradient(mine, logits), with_gradient(functional.cross_entropy(logits, target), logits))


@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_the_bridge_between_the_conventions(rows: int, classes: int) -> None:
    """eps over all C classes is eps (C - 1) / C over the others."""
    logits, batch = logits_of(rows, classes)
    every = LabelSmoothing(epsilon=0.3, over="all")
    others = LabelSmoothing(epsilon=0.3 * (classes - 1) / classes, over="others")
    agree(with_gradient(every.loss(logits, batch), logits), with_gradient(others.loss(logits, batch), logits))
    assert every.label_share(classes) == pytest.approx(others.label_share(classes), rel=1e-15)
    unbridged = LabelSmoothing(epsilon=0.3, over="others").loss(logits, batch)
    assert abs(unbridged.item() - every.loss(logits, batch).item()) > 1e-4


@pytest.mark.parametrize("over", ["all", "others"])
def test_the_fused_loss_is_the_reference(over: str) -> None:
    objective = LabelSmoothing(epsilon=0.2, over=over)  # type: ignore[arg-type]

    def loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        return objective.loss(student_logits, batch_of(labels))

    def reference(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        return objective.reference(student_logits, batch_of(labels))

    assert_loss_parity(loss, reference, temperatures=(1.0,))


@pytest.mark.parametrize(("over", "share"), [("all", 1 - 0.2 * 3 / 4), ("others", 0.8)])
def test_it_tells_the_share_of_the_label(over: str, share: float) -> None:
    objective = LabelSmoothing(epsilon=0.2, over=over)  # type: ignore[arg-type]
    found = objective.observe(torch.zeros(5, 4), batch_of(torch.zeros(5, dtype=torch.int64)))
    assert {name: float(value) for name, value in found.items()} == {"target": pytest.approx(share, rel=1e-6)}
    assert objective.label_share(4) == pytest.approx(share)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_what_is_no_share_is_refused(epsilon: float) -> None:
    logits, batch = logits_of(4, 3)
    with pytest.raises(KdbenchError, match="label_share"):
        LabelSmoothing(epsilon=epsilon, over="others").loss(logits, batch)


def test_it_is_published() -> None:
    made: Objective = toy_lab(objectives=registry().objectives).objective("label-smoothing", epsilon=0.1, over="all")
    assert made == LabelSmoothing(epsilon=0.1, over="all")
    assert registry().owner("objectives", "label-smoothing").distribution == "kdbench"
    assert LabelSmoothing(epsilon=0.1, over="all").label != LabelSmoothing(epsilon=0.1, over="others").label

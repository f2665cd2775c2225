"""The benchmark's judge: it lets rounding pass and finds every wrong formula, also where one part hides the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdbench.bench import Case, reference as module  # isort: skip
from kdbench.bench.reference import Reference, reference
from kdbench.bench.rivals import log_target, textbook
from kdbench.bench.subjects import Inputs, LossSubject, Tensors


def case(rows: int = 12, classes: int = 10, dtype: str = "float32", alpha: float = 0.9) -> Case:
    return Case(rows=rows, classes=classes, dtype=dtype, device="cpu", temperature=4.0, alpha=alpha)


def truth(case: Case) -> tuple[Tensors, Reference]:
    tensors = Tensors.of(case)
    return tensors, reference(case, tensors.student, tensors.teacher, tensors.labels)


def closed_form(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Loss and gradient written out, without autograd."""
    a, temperature = case.alpha, case.temperature
    s, t = tensors.student.detach().double(), tensors.teacher.double()
    onehot = torch.zeros_like(s).scatter_(1, tensors.labels[:, None], 1.0)
    q, hot_q, hot_p = s.softmax(1), (s / temperature).softmax(1), (t / temperature).softmax(1)
    loss = -(1 - a) * (onehot * q.log()).sum() + a * temperature**2 * (hot_p * (hot_p.log() - hot_q.log())).sum()
    gradient = (1 - a) * (q - onehot) + a * temperature * (hot_q - hot_p)
    return loss / case.rows, gradient / case.rows


@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_it_is_the_formula_in_whatever_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    tensors, found = truth(case())
    loss, gradient = closed_form(case(), tensors)
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert {0, 11} <= set(found.rows.tolist())
    assert len(found.rows) == min(12, max(2, block // 10))
    torch.testing.assert_close(found.gradient, gradient[found.rows], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (8, 10), (16, 5000)])
def test_rounding_passes(rows: int, classes: int, dtype: str, alpha: float) -> None:
    here = case(rows, classes, dtype, alpha)
    tensors, found = truth(here)
    for make in (textbook, log_target):
        errors = found.judge(*LossSubject(make(here), tensors).value_and_gradient())
        assert errors.problem == ""
        assert errors.gradient < module.TOLERANCES[dtype][1]


def wrongs(here: Case, tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """What contenders might get wrong, at any number of classes."""
    loss, gradient = closed_form(here, tensors)
    hard_only = case(here.rows, here.classes, alpha=0.0)
    _, hard = closed_form(hard_only, tensors)
    tenth = (1 - here.alpha) * hard
    last = gradient.clone()
    last[-1] = 0
    labels = tensors.labels[:, None]
    return {
        "loss": (loss * 1.001, gradient),
        "loss is nan": (loss * math.nan, gradient),
        "no soft gradient": (loss, tenth),
        "soft gradient without T": (loss, tenth + (gradient - tenth) / here.temperature),
        "no gradient at the labels": (loss, gradient.scatter(1, labels, 0.0)),
        "no gradient in the last row": (loss, last),
        "one nan": (loss, gradient.index_fill(1, torch.tensor([0]), math.nan)),
        "mean over classes": (loss, gradient / here.classes),
        "row losses": (loss.expand(here.rows), gradient),
        "half the gradient": (loss, gradient[: here.rows // 2]),
    }


@pytest.mark.parametrize("classes", [10, 20_000])
def test_every_wrong_formula_is_found(classes: int) -> None:
    here = case(classes=classes)
    tensors, found = truth(here)
    assert found.judge(*closed_form(here, tensors)).problem == ""
    for name, (loss, gradient) in wrongs(here, tensors).items():
        assert found.judge(loss, gradient).problem, name


def test_inputs_that_were_written_over_are_named_and_mended() -> None:
    tensors = Tensors.of(case())
    inputs = Inputs(case(), tensors, torch.tensor([0, 11]))
    assert inputs.put_right() == ""
    before = tensors.teacher.clone()
    for name in ("student", "teacher", "labels"):
        getattr(tensors, name).detach().zero_()
        assert inputs.put_right() == name
    assert tensors.teacher.equal(before)
    assert tensors.student.requires_grad

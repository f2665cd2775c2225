"""One small case with contenders of every kind: the right are timed, the others named with their reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.bench import CONTENDERS, FLOOR, Case, Contender
from kdbench.bench import measure as module
from kdbench.bench.measure import check_device, measure
from kdbench.bench.outcome import CaseResult, Entry
from kdbench.bench.rivals import Loss, textbook
from kdbench.errors import KdbenchError

CASE = Case(rows=8, classes=10, dtype="float32", device="cpu", temperature=4.0, alpha=0.9)
BUILT_IN = {contender.id: contender for contender in CONTENDERS}


def mine(function: Callable[..., Any], **fields: Any) -> Contender:
    name = function.__name__.replace("_", "-")
    return Contender(id=name, title="", make=f"{__name__}:{function.__name__}", **fields)


def doubled(case: Case) -> Loss:
    return lambda *tensors: 2 * textbook(case)(*tensors)


def raising(case: Case) -> Loss:
    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        teacher.zero_()
        raise RuntimeError("no luck\nand more of it")

    return loss


def detached(case: Case) -> Loss:
    return lambda student, *others: textbook(case)(student.detach().clone().requires_grad_(), *others)


def meddling(case: Case) -> Loss:
    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        found = textbook(case)(student, teacher, labels)
        teacher.zero_()
        return found

    return loss


class _WritesOver(torch.autograd.Function):
    """Leaves the gradient where the student logits were, and gives that memory to autograd."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor, case: Case) -> Tensor:
        with torch.enable_grad():
            copy = student.detach().clone().requires_grad_()
            loss = textbook(case)(copy, teacher, labels)
        (gradient,) = torch.autograd.grad(loss, copy)
        ctx.gradient = student.detach().copy_(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient, None, None, None


def overwriting(case: Case) -> Loss:
    return lambda student, teacher, labels: _WritesOver.apply(student, teacher, labels, case)


def nowhere(case: Case) -> str | None:
    return f"not on a {case.device}"


def everywhere(case: Case) -> str | None:
    return None


def run(*contenders: Contender, case: Case = CASE) -> CaseResult:
    return measure(case, contenders, 0.01, lambda doing, share: None)


def by_name(result: CaseResult) -> dict[str, Entry]:
    return {entry.id: entry for entry in result.entries}


def test_right_contenders_are_timed_and_compared_with_the_floor() -> None:
    result = run(BUILT_IN["eager"], BUILT_IN["eager-log"], mine(textbook_again, requires=f"{__name__}:everywhere"))
    assert [entry.id for entry in result.entries] == ["eager", "eager-log", "textbook-again", FLOOR]
    for entry in result.entries:
        assert entry.status == "measured"
        assert entry.time is not None
        assert entry.time.n >= 5
        assert 0 < entry.time.minimum <= entry.time.q1 <= entry.time.median <= entry.time.q3
        assert entry.gb_per_s == pytest.approx(3 * 320 / entry.time.median / 1e9)
        assert (entry.wall, entry.peak_bytes) == (None, None)
        if entry.id != FLOOR:
            assert entry.gradient_error is not None
            assert entry.gradient_error < 1e-5


def textbook_again(case: Case) -> Loss:
    return textbook(case)


def test_who_is_wrong_is_named_and_not_timed() -> None:
    found = by_name(run(mine(doubled), mine(detached), mine(meddling), BUILT_IN["eager"]))
    assert {name: entry.status for name, entry in found.items()} == {
        "doubled": "wrong",
        "detached": "wrong",
        "meddling": "wrong",
        "eager": "measured",  # though the one before it had spoilt the teacher
        FLOOR: "measured",
    }
    assert found["doubled"].reason.startswith("its loss is ")
    assert found["detached"].reason == "its gradient is off by 1 of the reference's size"
    assert found["meddling"].reason == "it writes over the teacher it is given"
    for name in ("doubled", "detached", "meddling"):
        assert (found[name].time, found[name].gb_per_s) == (None, None)


def test_who_fails_or_cannot_run_is_named_with_the_reason() -> None:
    absent = Contender(id="absent", title="", make="nobodys:loss")
    found = by_name(run(mine(raising), absent, mine(doubled, requires=f"{__name__}:nowhere"), BUILT_IN["eager"]))
    assert (found["raising"].status, found["raising"].reason) == ("failed", "RuntimeError: no luck")
    assert found["absent"].status == "failed"
    assert found["absent"].reason.startswith("cannot load 'nobodys:loss'")
    assert (found["doubled"].status, found["doubled"].reason) == ("not available", "not on a cpu")
    assert found["eager"].status == "measured"


def test_a_loss_that_overwrites_its_student_must_say_so() -> None:
    found = by_name(run(mine(overwriting), BUILT_IN["eager"]))
    assert found["overwriting"].status == "failed" or found["overwriting"].reason.startswith(
        "it writes over the student"
    )
    assert found["eager"].status == "measured"
    found = by_name(run(mine(overwriting, overwrites_student=True), BUILT_IN["eager"]))
    assert found["overwriting"].status == "measured"
    assert found["overwriting"].time is not None
    assert found["overwriting"].gradient_error is not None
    assert found["overwriting"].gradient_error < 1e-5


@pytest.mark.parametrize("name", ["kdbench", "kdbench-inplace"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kdbench_is_right(name: str, dtype: str) -> None:
    case = Case(rows=8, classes=33, dtype=dtype, device="cpu", temperature=4.0, alpha=0.9)
    entry = by_name(run(BUILT_IN[name], case=case))[name]
    assert (entry.status, entry.reason) == ("measured", "")


def test_a_case_that_does_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_bytes", lambda device: 1 << 10)
    result = run(BUILT_IN["eager"])
    assert result.entries == []
    assert result.problem.startswith("not measured: it needs about ")


def test_unknown_and_missing_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device("auto") == "cpu"
    assert check_device("cpu") == "cpu"
    with pytest.raises(KdbenchError, match="torch finds no GPU"):
        check_device("cuda")
    with pytest.raises(KdbenchError, match="did you mean 'cuda'"):
        check_device("cudaa")

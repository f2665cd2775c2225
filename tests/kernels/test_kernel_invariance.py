"""What must not change a result: number of threads, instruction set, neighbours of a row, the way that a row goes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loss_oracle import Exact, assert_close, batch, exact, exact_ensemble, exact_topk, value_and_gradient
from torch import Tensor

from kdbench.losses import (
    cross_entropy,
    distillation_loss,
    ensemble_distillation_loss,
    kl,
    soft_label_cross_entropy,
    teacher_log_sum_exp,
    topk_distillation_loss,
)

OPERATORS = ["distillation", "per row", "lse", "kl", "cross-entropy", "soft labels", "mixture", "losses", "top-k"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF_AND_SINGLE = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_right(got: tuple[Tensor, Tensor], want: Exact, instruction_set: str) -> None:
    """``assert_close``, with room for another 1e-6 (2e-6) where sums have half (a quarter) as many lanes."""
    more = {"avx512": 0.0, "avx2": 1e-6, "generic": 2e-6}[instruction_set] / 2e-9
    if got[1].dtype != torch.float64:
        want = want._replace(
            loss_slack=want.loss_slack + more * want.loss.abs(),
            gradient_slack=want.gradient_slack + more * float(want.gradient.abs().max()),
        )
    assert_close(got, want, "cpu")


def operator(name: str, teacher: Tensor, labels: Tensor) -> Callable[[Tensor, slice, str], Tensor]:
    """One loss of some rows of a batch, as a function of the student's rows and the reduction."""
    rows = teacher.shape[0]
    temperature, alpha = torch.linspace(0.7, 5, rows), torch.linspace(0.2, 0.8, rows)
    listed, indices = teacher.topk(min(5, teacher.shape[1]), dim=1)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    both = {"temperature": 2.0, "alpha": 0.6}
    calls = {
        "distillation": lambda s, r, o: distillation_loss(s, teacher[r], labels[r], **both, reduction=o),
        "per row": lambda s, r, o: distillation_loss(
            s, teacher[r], labels[r], temperature=temperature[r], alpha=alpha[r], reduction=o
        ),
        "lse": lambda s, r, o: distillation_loss(s, teacher[r], labels[r], **both, teacher_lse=lse[r], reduction=o),
        "kl": lambda s, r, o: kl(s, teacher[r], temperature=3.0, reduction=o),
        "cross-entropy": lambda s, r, o: cross_entropy(s, labels[r], reduction=o),
        "soft labels": lambda s, r, o: soft_label_cross_entropy(s, labels[r], alpha[r], reduction=o),
        "mixture": lambda s, r, o: ensemble_distillation_loss(
            s, [teacher[r], teacher[r].flip(1)], labels[r], **both, combine="probabilities", reduction=o
        ),
        "losses": lambda s, r, o: ensemble_distillation_loss(
            s, [teacher[r], teacher[r].flip(1)], labels[r], **both, combine="losses", reduction=o
        ),
        "top-k": lambda s, r, o: topk_distillation_loss(
            s, listed[r], indices[r], labels[r], **both, tail="bucket", teacher_lse=lse[r], reduction=o
        ),
    }
    return calls[name]


def problem(name: str, rows: int, classes: int, dtype: torch.dtype) -> tuple[Callable[..., Tensor], Tensor]:
    student, teacher, labels = batch(rows, classes, dtype=dtype)
    teacher[1::3] = student[1::3] + 0.05 * teacher[1::3]  # close rows go another way than others
    teacher[2, ::2] = -torch.inf
    labels[3::4] = -100
    return operator(name, teacher, labels), student


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_any_number_of_threads_gives_the_same_bits(instruction_set, threads, name, dtype):
    loss_of, student = problem(name, 41, 1025, dtype)
    for reduction in ("none", "batchmean"):
        results = []
        for count in (1, 2, 3, 3):
            threads(count)
            results.append(value_and_gradient(lambda s: loss_of(s, slice(None), reduction), student))  # noqa: B023
        for loss, gradient in results[1:]:
            assert torch.equal(loss, results[0][0])
            assert torch.equal(gradient, results[0][1])
        assert bool(results[0][1].isfinite().all())


@pytest.mark.parametrize("classes", [1, 2, 10, 16, 17, 100])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_does_not_depend_on_its_neighbours(instruction_set, name, classes):
    for dtype in DTYPES:
        loss_of, student = problem(name, 21, classes, dtype)
        loss, gradient = value_and_gradient(lambda s: loss_of(s, slice(None), "none"), student)  # noqa: B023
        for rows in [slice(0, 1), slice(5, 6), slice(3, 16), slice(20, 21)]:
            alone = value_and_gradient(lambda s: loss_of(s, rows, "none"), student[rows])  # noqa: B023
            assert torch.equal(alone[0], loss[rows])
            assert torch.equal(alone[1], gradient[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 1), (9, 2), (40, 10), (7, 16), (6, 17), (4, 100), (16, 1000), (3, 4097)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 5.5])
def test_each_instruction_set_is_right(instruction_set, dtype, shape, temperature):
    student, teacher, labels = batch(*shape, spread=2.0, dtype=dtype)
    labels[-1] = -100
    for alpha in (0.0, 0.7, 1.0):
        options = {"temperature": temperature, "alpha": alpha}
        got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)  # noqa: B023
        assert_right(got, exact(student, teacher, labels, **options), instruction_set)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 1), (9, 10), (4, 100), (3, 1025)])
def test_each_instruction_set_is_right_in_other_operators(instruction_set, dtype, shape):
    student, teacher, labels = batch(*shape, dtype=dtype)
    share = torch.linspace(0.1, 1, shape[0])
    got = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, share), student)
    assert_close(got, exact(student, None, labels, label_share=share), "cpu", subtracts=True)

    teachers, options = [teacher, teacher.flip(1)], {"temperature": 2.0, "alpha": 0.6, "teacher_weights": [0.3, 0.7]}
    for combine in ("probabilities", "losses"):
        more = {**options, "combine": combine}
        got = value_and_gradient(lambda s: ensemble_distillation_loss(s, teachers, labels, **more), student)  # noqa: B023
        assert_close(got, exact_ensemble(student, teachers, labels, **more), "cpu", subtracts=True)

    listed, indices = teacher.topk(min(7, shape[1]), dim=1)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    torch.testing.assert_close(lse, (teacher.double() / 2).logsumexp(dim=1), rtol=1e-6, atol=1e-6)
    for tail in ("renormalise", "unnormalised", "bucket"):
        more = {"temperature": 2.0, "alpha": 0.6, "tail": tail, "teacher_lse": None if tail == "renormalise" else lse}
        got = value_and_gradient(lambda s: topk_distillation_loss(s, listed, indices, labels, **more), student)  # noqa: B023
        assert_close(got, exact_topk(student, listed, indices, labels, **more), "cpu", subtracts=True)


# ---- long rows, whose origin moves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [5.0, 60.0, 1000.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 2.5])
@pytest.mark.parametrize("teacher_rises", [True, False])
def test_the_largest_logits_may_come_last(instruction_set, dtype, reach, temperature, teacher_rises):
    rise = reach * torch.linspace(-1, 1, 5001)
    student, teacher, labels = batch(3, 5001, dtype=torch.float64)
    student = (student + rise).to(dtype)
    teacher = (teacher + (rise if teacher_rises else rise.flip(0))).to(dtype)
    labels[0] = 5000
    options = {"temperature": temperature, "alpha": 0.5}
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert_close(got, exact(student, teacher, labels, **options), "cpu")


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("away", [0.0, 1e-3, 0.03, 0.1])
@pytest.mark.parametrize("reach", [0.0, 60.0])
def test_a_close_teacher_in_long_rows(instruction_set, dtype, away, reach):
    noise, other, _ = batch(3, 5001)
    student = (noise + reach * torch.linspace(-1, 1, 5001)).to(dtype)
    teacher = (student.float() + away * other).to(dtype)
    got = value_and_gradient(lambda s: kl(s, teacher, temperature=2.0), student)
    want = exact(student, teacher, None, temperature=2.0, squared=False)
    if away == 0:
        assert got[0].item() == 0
        assert not got[1].any()
    assert_close(got, want, "cpu")


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("depth", [100.0, 3000.0, 30000.0])
def test_a_teacher_may_all_but_exclude_the_first_classes(instruction_set, dtype, depth):
    """Both are sure of a late class, so the divergence is tiny; early classes differ by more than float32 spans."""
    student, teacher, _ = batch(3, 2100, dtype=dtype)
    teacher[:, :1024] -= depth
    student[:, 2050] = teacher[:, 2050] = 25.0
    got = value_and_gradient(lambda s: kl(s, teacher, temperature=1.0), student)
    assert_close(got, exact(student, teacher, None, temperature=1.0, squared=False), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4, 4.0])
def test_a_mask_of_the_lowest_number_is_as_good_as_infinity(instruction_set, dtype, temperature):
    student, teacher, labels = batch(3, 40, dtype=dtype)
    options = {"temperature": temperature, "alpha": 0.5}
    teacher[:, 30:] = -torch.inf
    want = exact(student, teacher, labels, **options)
    teacher[:, 30:] = torch.finfo(dtype).min
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert_close(got, want, "cpu")


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("threshold", [0.03, 0.24])
def test_the_ways_meet_where_one_takes_over_from_the_other(instruction_set, classes, peaked, threshold):
    """Just below and just above the divergence at which a row goes the careful way, its gradient is the same."""
    student, other, _ = batch(1, classes, seed=3)
    if peaked:
        student[0, 0] = 6.0 + math.log(classes)

    def teacher_at(far: float) -> Tensor:
        return student + far * other

    def divergence(far: float) -> float:
        return float(exact(student, teacher_at(far), None, squared=False).loss)

    low, high = 0.0, 64.0
    for _ in range(60):
        low, high = ((low + high) / 2, high) if divergence((low + high) / 2) < threshold else (low, (low + high) / 2)
    for far in (low * 0.995, low * 0.9999, low * 1.0001, low * 1.005):
        teacher = teacher_at(far)
        loss, gradient = value_and_gradient(lambda s: kl(s, teacher, temperature=1.0), student)  # noqa: B023
        want = exact(student, teacher, None, squared=False)
        # What the quick way's sums in single precision leave just above its threshold; far from it they do better.
        torch.testing.assert_close(loss.double(), want.loss, rtol=3e-5, atol=0)
        off, largest = (float(each.abs().max()) for each in (gradient.double() - want.gradient, want.gradient))
        assert off <= 3e-5 * largest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_logits_of_ten_thousand(instruction_set, dtype, classes):
    student, teacher, labels = batch(6, classes, dtype=torch.float64)
    student, teacher = (logits.mul(3e3).clamp(-1e4, 1e4).to(dtype) for logits in (student, teacher))
    teacher[0], teacher[1] = student[0], -student[1]
    for temperature in (1.0, 4.0):
        options = {"temperature": temperature, "alpha": 0.5}
        got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)  # noqa: B023
        assert_close(got, exact(student, teacher, labels, **options), "cpu")


# ---- large gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rows"), [(torch.float32, 2100), (torch.float64, 1050), (torch.bfloat16, 4200), (torch.float16, 4200)]
)
def test_a_gradient_written_past_the_caches_is_the_same(instruction_set, dtype, rows):
    """More than 24 MiB are streamed, in rows that begin anywhere; half as much is not."""
    student, teacher, labels = batch(rows, 3001, dtype=dtype)
    teacher[1::3] = student[1::3] + 0.05 * teacher[1::3]
    options = {"temperature": 2.0, "alpha": 0.6, "reduction": "none"}

    def part(chosen: slice) -> tuple[Tensor, Tensor]:
        return value_and_gradient(
            lambda s: distillation_loss(s, teacher[chosen], labels[chosen], **options), student[chosen]
        )

    loss, gradient = part(slice(None))
    for half in (slice(0, rows // 2), slice(rows // 2, rows)):
        small_loss, small_gradient = part(half)
        assert torch.equal(small_loss, loss[half])
        assert torch.equal(small_gradient, gradient[half])


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("KDBENCH_BIG_MEMORY"), reason="needs 9 GB: KDBENCH_BIG_MEMORY=1 runs it")
def test_more_than_two_to_the_31_elements(native):
    """Student and gradient of 4.3 GB each, in bfloat16; the teacher is one row, expanded."""
    rows, classes = 70_000, 30_720
    assert rows * classes > 2**31
    generator = torch.Generator().manual_seed(0)
    student = torch.zeros(rows, classes, dtype=torch.bfloat16)
    teacher = torch.randn(1, classes, generator=generator).bfloat16()
    ends = [0, rows // 2, rows - 1]
    student[ends] = torch.randn(3, classes, generator=generator).bfloat16()
    everyone = teacher.expand(rows, classes)
    loss = kl(student, everyone, temperature=2.0, reduction="none")
    leaf = student.requires_grad_()
    (gradient,) = torch.autograd.grad(kl(leaf, everyone, temperature=2.0, reduction="sum"), leaf)
    few = student.detach()[ends]
    small_loss, small_gradient = value_and_gradient(
        lambda s: kl(s, teacher.expand(3, classes), temperature=2.0, reduction="none"), few
    )
    assert torch.equal(loss[ends], small_loss)
    assert torch.equal(gradient[ends], small_gradient)


# ---- the choice of an instruction set -------------------------------------------------------------------------------


def begins_with(wish: str) -> str:
    """The instruction set that a process with this wish reports."""
    program = (
        "import torch; from kdbench.ops import build_info, native; from kdbench.losses import kl;"
        "kl(torch.zeros(2, 3), torch.ones(2, 3), temperature=1.0);"
        "assert build_info()['built'];"
        "print(native.instruction_set())"
    )
    package = Path(sys.modules["kdbench"].__file__ or "").parents[1]
    environment = {**os.environ, "KDBENCH_ISA": wish, "PYTHONPATH": str(package)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def test_the_environment_chooses_the_instruction_set(instruction_set):
    assert begins_with(instruction_set) == instruction_set


def test_an_instruction_set_that_is_not_there_is_not_obeyed(native):
    from kdbench.ops import native as kernels

    assert begins_with("mmx") == kernels.instruction_set()
    with pytest.raises(ValueError, match="'mmx' is not in this build"):
        kernels.module().force_isa("mmx")


def test_forcing_ends_with_its_block(native):
    from kdbench.errors import KdbenchError
    from kdbench.ops import forced
    from kdbench.ops import native as kernels

    before = kernels.instruction_set()
    with forced("native", isa="generic"):
        assert kernels.instruction_set() == "generic"
    assert kernels.instruction_set() == before
    with pytest.raises(KdbenchError, match="'sse9'"), forced("native", isa="sse9"):
        pass
    assert kernels.instruction_set() == before

"""What may be given per row: temperature, alpha, weight; and a teacher's log-sum-exp, kept from earlier."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_oracle import assert_close, batch, exact, value_and_gradient

from kdbench.errors import KdbenchError
from kdbench.losses import cross_entropy, distillation_loss, kl, teacher_log_sum_exp

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REDUCTIONS = ["batchmean", "mean", "sum", "none"]
seeds = st.integers(0, 1000)


def per_row(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Temperatures from 1e-2 to 1e2, alphas with 0 and 1 among them, weights with 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    temperature = 10 ** torch.empty(rows).uniform_(-2, 2, generator=generator)
    alpha = torch.empty(rows).uniform_(-0.3, 1.3, generator=generator).clamp(0, 1)
    weight = torch.empty(rows).uniform_(-0.5, 3, generator=generator).clamp(min=0)
    return temperature.to(dtype), alpha.to(dtype), weight.to(dtype)


@quick
@given(
    rows=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 9, 33, 100]),
    given_per_row=st.sets(st.sampled_from(["temperature", "alpha", "row_weight"]), min_size=1),
    reduction=st.sampled_from(REDUCTIONS),
    kl_rows=st.sampled_from(["all", "valid"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=seeds,
)
def test_any_of_them_per_row(implementation, rows, classes, given_per_row, reduction, kl_rows, dtype, seed):
    student, teacher, labels = batch(rows, classes, seed=seed, dtype=dtype)
    labels[seed % rows] = -100
    temperature, alpha, weight = per_row(rows, seed, torch.float32 if seed % 2 else torch.float64)
    options = {
        "temperature": temperature if "temperature" in given_per_row else 3.0,
        "alpha": alpha if "alpha" in given_per_row else 0.7,
        "row_weight": weight if "row_weight" in given_per_row else None,
        "reduction": reduction,
        "kl_rows": kl_rows,
    }
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert_close(got, exact(student, teacher, labels, **options), implementation)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_values_per_row_are_one_number(implementation, reduction):
    student, teacher, labels = batch(7, 20)
    number = {"temperature": 3.0, "alpha": 0.7, "reduction": reduction}
    rows = {"temperature": torch.full((7,), 3.0), "alpha": torch.full((7,), 0.7).double(), "reduction": reduction}
    rows["alpha"][:] = 0.7
    want = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **number), student)
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **rows), student)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_each_row_is_softened_and_squared_by_its_own_temperature(implementation):
    student, teacher, labels = batch(5, 11)
    temperature, alpha, weight = per_row(5, 3)
    together = distillation_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha, row_weight=weight, reduction="none"
    )
    for row in range(5):
        alone = distillation_loss(
            student[row : row + 1],
            teacher[row : row + 1],
            labels[row : row + 1],
            temperature=temperature[row].item(),
            alpha=alpha[row].item(),
        )
        assert together[row].item() == pytest.approx(alone.item() * weight[row].item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kl_per_row_has_no_square(implementation, reduction):
    student, teacher, _ = batch(6, 8)
    temperature, _, weight = per_row(6, 1)
    options = {"temperature": temperature, "row_weight": weight, "reduction": reduction}
    got = value_and_gradient(lambda s: kl(s, teacher, **options), student)
    assert_close(got, exact(student, teacher, None, squared=False, **options), implementation)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_the_cross_entropy_leave_its_divisor(implementation, reduction):
    student, _, labels = batch(6, 8)
    labels[4] = -100
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 9.0, -1.0])
    options = {"row_weight": weight, "reduction": reduction}
    got = value_and_gradient(lambda s: cross_entropy(s, labels, **options), student)
    assert_close(got, exact(student, None, labels, **options), implementation)


def test_a_row_of_weight_zero_is_not_computed(implementation):
    student, teacher, labels = batch(3, 5)
    student[1] = torch.nan
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(
            s, teacher, labels, temperature=2.0, alpha=0.5, row_weight=torch.tensor([1.0, 0.0, 1.0]), reduction="none"
        ),
        student,
    )
    assert loss[1].item() == 0
    assert not gradient[1].any()
    teacher[2] = torch.nan
    alpha = torch.tensor([0.5, 1.0, 0.0])
    losses = distillation_loss(student, teacher, labels, temperature=2.0, alpha=alpha, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]


def test_values_per_row_may_lie_anyhow(implementation):
    student, teacher, labels = batch(4, 6)
    temperature = torch.tensor([1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0, 9.0])[::2]
    alpha = torch._neg_view(torch.full((4,), -0.25, dtype=torch.float64))
    assert alpha.is_neg()
    got = distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
    want = distillation_loss(
        student, teacher, labels, temperature=temperature.clone(), alpha=torch.full((4,), 0.25, dtype=torch.float64)
    )
    assert torch.equal(got, want)


def test_no_rows_per_row(implementation):
    student, teacher, labels = batch(0, 5)
    empty = torch.empty(0)
    options = {"temperature": empty, "alpha": empty, "row_weight": empty}
    assert distillation_loss(student, teacher, labels, **options).item() == 0


@quick
@given(
    rows=st.integers(0, 9),
    classes=st.sampled_from([1, 2, 9, 33, 1000]),
    temperature=st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    rowwise=st.booleans(),
    seed=seeds,
)
def test_log_sum_exp(implementation, rows, classes, temperature, dtype, rowwise, seed):
    _, teacher, _ = batch(rows, classes, seed=seed, spread=5.0, dtype=dtype)
    if classes > 2:
        teacher[:, 1] = -torch.inf
    degrees = temperature * per_row(rows, seed)[0] if rowwise else temperature
    lse = teacher_log_sum_exp(teacher.requires_grad_(), temperature=degrees)
    assert lse.dtype == torch.float64
    assert not lse.requires_grad
    want = torch.logsumexp(teacher.detach().double() / (degrees[:, None] if rowwise else degrees), dim=1)
    tolerance = 1e-13 if dtype == torch.float64 or implementation == "reference" else 3e-7
    torch.testing.assert_close(lse, want, rtol=tolerance, atol=tolerance)


def test_log_sum_exp_of_bad_rows(implementation):
    rows = torch.zeros(4, 3)
    rows[1], rows[2, 0], rows[3, 1] = -torch.inf, torch.nan, 2e4
    lse = teacher_log_sum_exp(rows, temperature=1.0)
    assert lse[0].item() == pytest.approx(1.0986122886681098, rel=1e-7)
    assert lse[1].isnan() or lse[1] == -torch.inf
    assert lse[2].isnan()
    assert lse[3].item() == pytest.approx(2e4, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rowwise", [False, True])
def test_a_kept_log_sum_exp_changes_nothing(implementation, dtype, reduction, rowwise):
    student, teacher, labels = batch(6, 40, dtype=dtype)
    teacher[:, 7] = -torch.inf
    temperature = per_row(6, 5)[0] if rowwise else 2.5
    lse = teacher_log_sum_exp(teacher, temperature=temperature)
    options = {"temperature": temperature, "alpha": 0.6, "reduction": reduction}
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, teacher_lse=lse, **options), student)
    assert_close(got, exact(student, teacher, labels, **options), implementation, subtracts=True)


def test_a_kept_log_sum_exp_is_used(implementation):
    student, teacher, _ = batch(6, 40)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    right = kl(student, teacher, temperature=2.0, teacher_lse=lse, reduction="none")
    halved = kl(student, teacher, temperature=2.0, teacher_lse=lse + 0.6931471805599453, reduction="none")
    assert (halved < right).all()  # probabilities that are half as large


@pytest.mark.parametrize(
    ("logits", "temperature", "message"),
    [
        (torch.zeros(3), 1.0, r"teacher logits have shape \[3\]"),
        (torch.zeros(3, 2), 0.0, "temperature is 0.0"),
        (torch.zeros(3, 2), torch.zeros(3), "temperature is 0.0 in row 0"),
        (torch.zeros(3, 2), None, "temperature is missing"),
    ],
)
def test_log_sum_exp_refuses(logits, temperature, message):
    with pytest.raises(KdbenchError, match=message):
        teacher_log_sum_exp(logits, temperature=temperature)

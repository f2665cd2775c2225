"""Several teachers: the mean of their probabilities, and the mean of their losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_oracle import assert_close, batch, exact, exact_ensemble, value_and_gradient

from kdbench.errors import KdbenchError
from kdbench.losses import distillation_loss, ensemble_distillation_loss

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COMBINE = ["probabilities", "losses"]
REDUCTIONS = ["batchmean", "mean", "sum", "none"]


def ensemble(rows, classes, count, *, seed=0, spread=1.0, dtype=torch.float32):
    """Student logits, teachers, labels and weights that sum to 1."""
    student, _, labels = batch(rows, classes, seed=seed, spread=spread, dtype=dtype)
    teachers = [batch(rows, classes, seed=seed + 1000 + k, spread=spread, dtype=dtype)[1] for k in range(count)]
    raw = torch.rand(count, generator=torch.Generator().manual_seed(seed)).double() + 0.05
    return student, teachers, labels, (raw / raw.sum()).tolist()


@quick
@given(
    rows=st.integers(1, 7),
    classes=st.sampled_from([1, 2, 8, 9, 33, 100, 1000]),
    count=st.sampled_from([1, 2, 3, 5, 16]),
    combine=st.sampled_from(COMBINE),
    temperature=st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
    alpha=st.sampled_from([0.0, 0.4, 1.0]),
    reduction=st.sampled_from(REDUCTIONS),
    kl_rows=st.sampled_from(["all", "valid"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 500),
)
def test_the_formula(
    implementation, rows, classes, count, combine, temperature, alpha, reduction, kl_rows, dtype, seed
):
    student, teachers, labels, weights = ensemble(rows, classes, count, seed=seed, dtype=dtype)
    labels[seed % rows] = -100
    options = {"temperature": temperature, "alpha": alpha, "reduction": reduction, "kl_rows": kl_rows}
    options |= {"combine": combine, "teacher_weights": weights}
    got = value_and_gradient(lambda s: ensemble_distillation_loss(s, teachers, labels, **options), student)
    assert_close(got, exact_ensemble(student, teachers, labels, **options), implementation, subtracts=True)


@pytest.mark.parametrize("combine", COMBINE)
def test_what_is_given_per_row(implementation, combine):
    student, teachers, labels, weights = ensemble(5, 20, 3)
    options = {
        "temperature": torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0]),
        "alpha": torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0]),
        "row_weight": torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0]),
        "combine": combine,
        "teacher_weights": weights,
    }
    got = value_and_gradient(lambda s: ensemble_distillation_loss(s, teachers, labels, **options), student)
    assert_close(got, exact_ensemble(student, teachers, labels, **options), implementation, subtracts=True)


def test_without_weights_teachers_count_alike(implementation):
    student, teachers, labels, _ = ensemble(5, 20, 4)
    options = {"temperature": 3.0, "alpha": 0.5, "combine": "losses"}
    got = ensemble_distillation_loss(student, teachers, labels, **options)
    each = [distillation_loss(student, teacher, labels, temperature=3.0, alpha=0.5) for teacher in teachers]
    torch.testing.assert_close(got, torch.stack(each).mean())


def test_weights_nearly_sum_to_one(implementation):
    student, teachers, _, _ = ensemble(5, 20, 2, dtype=torch.float64)
    options = {"temperature": 3.0, "combine": "losses"}
    off = ensemble_distillation_loss(student, teachers, teacher_weights=[0.3, 0.7 + 9e-7], **options)
    each = [distillation_loss(student, teacher, temperature=3.0).item() for teacher in teachers]
    share = 0.3 / (1 + 9e-7)
    assert off.item() == pytest.approx(share * each[0] + (1 - share) * each[1], rel=1e-13)


@pytest.mark.parametrize("combine", COMBINE)
def test_one_teacher_is_plain_distillation(implementation, combine):
    student, teachers, labels, _ = ensemble(5, 20, 1)
    options = {"temperature": 3.0, "alpha": 0.5}
    got = value_and_gradient(
        lambda s: ensemble_distillation_loss(s, teachers, labels, combine=combine, **options), student
    )
    want = value_and_gradient(lambda s: distillation_loss(s, teachers[0], labels, **options), student)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_both_ways_have_one_gradient_and_differ_by_the_disagreement(implementation):
    student, teachers, _, weights = ensemble(6, 15, 3, dtype=torch.float64)
    options = {"temperature": 2.0, "teacher_weights": weights, "reduction": "none"}
    by_probability, by_loss = (
        value_and_gradient(lambda s, c=combine: ensemble_distillation_loss(s, teachers, combine=c, **options), student)
        for combine in COMBINE
    )
    torch.testing.assert_close(by_probability[1], by_loss[1], rtol=0, atol=1e-13)
    assert (by_loss[0] > by_probability[0] + 1e-3).all()  # Jensen: the divergence is convex
    elsewhere = [
        ensemble_distillation_loss(student.flip(1), teachers, combine=combine, **options) for combine in COMBINE
    ]
    torch.testing.assert_close(elsewhere[1] - elsewhere[0], by_loss[0] - by_probability[0], rtol=1e-11, atol=0)


@pytest.mark.parametrize("combine", COMBINE)
def test_teachers_that_exclude_different_classes(implementation, combine):
    student, teachers, labels, weights = ensemble(4, 9, 3, dtype=torch.float64)
    for k, teacher in enumerate(teachers):
        teacher[:, k] = teacher[:, 7] = -math.inf
    student[:, 7] = -math.inf
    labels[:] = 3
    options = {"temperature": 2.0, "alpha": 0.5, "combine": combine, "teacher_weights": weights}
    got = value_and_gradient(lambda s: ensemble_distillation_loss(s, teachers, labels, **options), student)
    assert_close(got, exact_ensemble(student, teachers, labels, **options), implementation, subtracts=True)
    assert got[1].isfinite().all()
    student[1, 2] = -math.inf  # teachers 0 and 1 do not exclude it
    loss, gradient = value_and_gradient(
        lambda s: ensemble_distillation_loss(s, teachers, labels, **options, reduction="none"), student
    )
    assert loss.isfinite().tolist() == [True, False, True, True]
    assert loss[1] == math.inf
    assert gradient.isfinite().all()


@pytest.mark.parametrize("combine", COMBINE)
def test_one_bad_teacher_spoils_its_row(implementation, combine):
    student, teachers, labels, _ = ensemble(3, 6, 2)
    teachers[1][2, 4] = math.nan
    loss, gradient = value_and_gradient(
        lambda s: ensemble_distillation_loss(
            s, teachers, labels, temperature=2.0, alpha=0.5, combine=combine, reduction="none"
        ),
        student,
    )
    assert loss.isnan().tolist() == [False, False, True]
    assert gradient[2].isnan().all()
    assert gradient[:2].isfinite().all()


def test_equal_teachers_that_equal_the_student(implementation):
    student, _, _, _ = ensemble(3, 50, 1)
    loss, gradient = value_and_gradient(
        lambda s: ensemble_distillation_loss(s, [student] * 3, temperature=1.0, combine="losses"), student
    )
    assert abs(loss.item()) < 1e-6
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("combine", COMBINE)
def test_gradcheck(implementation, combine):
    student, teachers, labels, weights = ensemble(3, 5, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: ensemble_distillation_loss(
            s, teachers, labels, temperature=2.0, alpha=0.6, combine=combine, teacher_weights=weights
        ),
        student.requires_grad_(),
    )


def test_layouts_may_differ(implementation):
    student, teachers, labels, weights = ensemble(4, 6, 3)
    odd = [teachers[0].T.contiguous().T, torch.cat([teachers[1]] * 2, dim=1)[:, :6], teachers[2][:1].expand(4, 6)]
    plain = [teacher.contiguous() for teacher in odd]
    options = {"temperature": 2.0, "alpha": 0.5, "combine": "probabilities", "teacher_weights": weights}
    assert torch.equal(
        ensemble_distillation_loss(student, odd, labels, **options),
        ensemble_distillation_loss(student, plain, labels, **options),
    )


S, T, Y = batch(4, 5)
GIVEN = {
    "student_logits": S,
    "teachers": [T, T + 1],
    "labels": Y,
    "temperature": 2.0,
    "alpha": 0.5,
    "combine": "losses",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combine": None}, "combine is missing"),
        ({"combine": "logits"}, "unknown value of combine 'logits'"),
        ({"teachers": []}, "0 teachers were given"),
        ({"teachers": [T] * 17}, "17 teachers were given"),
        ({"teachers": torch.stack([T, T])}, "teachers are one tensor"),
        ({"teachers": [T, T[:, :4]]}, r"teacher logits have shape \[4, 4\]"),
        ({"teachers": [T, T.double()]}, "teacher logits are torch.float64"),
        ({"teacher_weights": [0.5]}, "1 teacher_weights for 2 teachers"),
        ({"teacher_weights": [0.5, 0.4]}, "sum to 0.9"),
        ({"teacher_weights": [1.0, 0.0]}, r"teacher_weights\[1\] is 0.0"),
        ({"teacher_weights": [1.5, -0.5]}, r"teacher_weights\[1\] is -0.5"),
        ({"teacher_weights": [math.nan, 0.5]}, r"teacher_weights\[0\] is nan"),
        ({"temperature": None}, "temperature is missing"),
        ({"alpha": None}, "alpha is missing"),
        ({"labels": None}, "alpha means nothing without labels"),
        ({"labels": Y[:2]}, "labels have shape"),
    ],
)
def test_refusals_name_the_fault(change, message):
    with pytest.raises(KdbenchError, match=message):
        ensemble_distillation_loss(**{**GIVEN, **change})


def test_autocast_widens_each_to_the_widest(implementation):
    student, teachers, labels, _ = ensemble(4, 9, 2, dtype=torch.bfloat16)
    teachers[1] = teachers[1].float() + 1e-4
    options = {"temperature": 2.0, "alpha": 0.5}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ensemble_distillation_loss(student, teachers, labels, combine="losses", **options)
    each = [exact(student, teacher, labels, **options).loss for teacher in teachers]
    assert got.item() == pytest.approx(sum(each).item() / 2, rel=1e-5)

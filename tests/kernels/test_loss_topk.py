"""A teacher that is known in K classes a row, and what is assumed of the others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_oracle import assert_close, batch, exact_topk, value_and_gradient

from kdbench.errors import KdbenchError
from kdbench.losses import distillation_loss, teacher_log_sum_exp, topk_distillation_loss

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TAILS = ["renormalise", "unnormalised", "bucket"]
REDUCTIONS = ["batchmean", "mean", "sum", "none"]


def sparse(rows, classes, listed, *, tail, temperature, seed=0, spread=1.0, dtype=torch.float32):
    """Student logits, K logits of a teacher with their classes in random order, labels, and the tail's keywords."""
    student, teacher, labels = batch(rows, classes, seed=seed, spread=spread, dtype=dtype)
    order = torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    indices = order[:, :listed]
    lse = None if tail == "renormalise" else teacher_log_sum_exp(teacher, temperature=temperature)
    return student, teacher.gather(1, indices), indices, labels, {"tail": tail, "teacher_lse": lse}


@quick
@given(
    rows=st.integers(1, 7),
    classes=st.sampled_from([1, 2, 8, 9, 33, 100, 1000]),
    share=st.floats(0, 1),
    tail=st.sampled_from(TAILS),
    temperature=st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
    alpha=st.sampled_from([0.0, 0.4, 1.0]),
    reduction=st.sampled_from(REDUCTIONS),
    kl_rows=st.sampled_from(["all", "valid"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    indices_of=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 500),
)
def test_the_formula(
    implementation, rows, classes, share, tail, temperature, alpha, reduction, kl_rows, dtype, indices_of, seed
):
    listed = max(1, round(share * classes))
    student, teacher, indices, labels, options = sparse(
        rows, classes, listed, tail=tail, temperature=temperature, seed=seed, dtype=dtype
    )
    labels[seed % rows] = -100
    options |= {"temperature": temperature, "alpha": alpha, "reduction": reduction, "kl_rows": kl_rows}
    got = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher, indices.to(indices_of), labels, **options), student
    )
    want = exact_topk(student, teacher, indices, labels, **options)
    assert_close(got, want, implementation, subtracts=True)


@pytest.mark.parametrize("tail", TAILS)
def test_what_is_given_per_row(implementation, tail):
    temperature = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    student, teacher, indices, labels, options = sparse(5, 20, 6, tail=tail, temperature=temperature)
    options |= {
        "temperature": temperature,
        "alpha": torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0]),
        "row_weight": torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0]),
    }
    got = value_and_gradient(lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student)
    assert_close(got, exact_topk(student, teacher, indices, labels, **options), implementation, subtracts=True)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_with_every_class_listed_it_is_the_full_loss(implementation, tail, temperature):
    student, teacher, indices, labels, options = sparse(6, 30, 30, tail=tail, temperature=temperature)
    full = torch.empty_like(student).scatter_(1, indices, teacher)
    options |= {"temperature": temperature, "alpha": 0.7}
    got = value_and_gradient(lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student)
    want = value_and_gradient(lambda s: distillation_loss(s, full, labels, temperature=temperature, alpha=0.7), student)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_bucket_bounds_the_full_loss_from_below(implementation):
    student, teacher, _ = batch(200, 12)
    full = distillation_loss(student, teacher, temperature=1.0, reduction="none")
    lse = teacher_log_sum_exp(teacher, temperature=1.0)
    before = torch.zeros(200)
    for listed in (1, 3, 6, 11):
        values, indices = teacher.topk(listed, dim=1)
        loss = topk_distillation_loss(
            student, values, indices, temperature=1.0, tail="bucket", teacher_lse=lse, reduction="none"
        )
        assert (loss > before - 1e-5).all()  # each class that is told apart adds to it
        assert (loss < full + 1e-5).all()
        before = loss


def test_the_bucket_of_one_class_is_that_class(implementation):
    student, teacher, indices, _, options = sparse(6, 9, 8, tail="bucket", temperature=2.0, dtype=torch.float64)
    rest = torch.expm1(-torch.zeros(6)).double() + 1 - (teacher / 2 - options["teacher_lse"][:, None]).exp().sum(1)
    full = torch.full_like(student, 0).scatter(1, indices, teacher)
    missing = torch.ones_like(student, dtype=torch.bool).scatter(1, indices, False)
    full[missing] = 2 * (rest.log() + options["teacher_lse"])
    got = value_and_gradient(lambda s: topk_distillation_loss(s, teacher, indices, temperature=2.0, **options), student)
    want = value_and_gradient(lambda s: distillation_loss(s, full, temperature=2.0), student)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_tails_differ(implementation):
    student, teacher, _ = batch(6, 20)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    values, indices = teacher.topk(4, dim=1)
    results = [
        value_and_gradient(
            lambda s, t=tail: topk_distillation_loss(
                s, values, indices, temperature=2.0, tail=t, teacher_lse=None if t == "renormalise" else lse
            ),
            student,
        )
        for tail in TAILS
    ]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert abs(results[first][0].item() - results[second][0].item()) > 0.05
        assert (results[first][1] - results[second][1]).abs().max() > 1e-3


@pytest.mark.parametrize("tail", TAILS)
def test_one_class_carries_no_information(implementation, tail):
    student, teacher, indices, labels, options = sparse(3, 1, 1, tail=tail, temperature=2.0, spread=100.0)
    options |= {"temperature": 2.0, "alpha": 0.5}
    loss, gradient = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student
    )
    assert loss.item() == 0
    assert not gradient.any()


def test_an_unnormalised_teacher_has_no_divergence(implementation):
    student, teacher = torch.tensor([[3.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    lse = teacher_log_sum_exp(teacher, temperature=1.0)
    loss = topk_distillation_loss(
        student, teacher[:, :1], torch.tensor([[0]]), temperature=1.0, tail="unnormalised", teacher_lse=lse
    )
    q = math.exp(3) / (math.exp(3) + 3)
    assert loss.item() == pytest.approx(0.25 * math.log(0.25 / q), rel=1e-6)  # negative


@pytest.mark.parametrize("tail", TAILS)
def test_gradcheck(implementation, tail):
    student, teacher, indices, labels, options = sparse(3, 6, 3, tail=tail, temperature=2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: topk_distillation_loss(s, teacher, indices, labels, temperature=2.0, alpha=0.6, **options),
        student.requires_grad_(),
    )


@pytest.mark.parametrize("tail", TAILS)
def test_the_order_of_the_list_means_nothing(implementation, tail):
    student, teacher, indices, labels, options = sparse(6, 40, 13, tail=tail, temperature=2.0, dtype=torch.float64)
    options |= {"temperature": 2.0, "alpha": 0.5}
    order = torch.randperm(13)
    got = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher[:, order], indices[:, order], labels, **options), student
    )
    want = value_and_gradient(lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tail", TAILS)
def test_classes_that_a_mask_excludes(implementation, tail):
    student, teacher, indices, labels, options = sparse(3, 8, 4, tail=tail, temperature=2.0, dtype=torch.float64)
    options |= {"temperature": 2.0, "alpha": 1.0, "reduction": "none"}
    teacher[0, 1] = -math.inf  # listed, and without probability
    outside = next(c for c in range(8) if c not in indices[1])
    student[1, outside] = -math.inf  # not listed
    labels[:] = -100
    got = value_and_gradient(lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student)
    assert_close(got, exact_topk(student, teacher, indices, labels, **options), implementation, subtracts=True)
    student[2, indices[2, 0]] = -math.inf  # listed, and the teacher gives it probability
    loss, gradient = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher, indices, labels, **options), student
    )
    assert loss.isfinite().tolist() == [True, True, False]
    assert loss[2] == math.inf
    assert gradient.isfinite().all()


def test_a_student_that_excludes_the_whole_bucket(implementation):
    student, teacher, indices, _, options = sparse(2, 8, 4, tail="bucket", temperature=2.0)
    student[1] = student[1].masked_fill(torch.ones(8, dtype=torch.bool).scatter(0, indices[1], False), -math.inf)
    loss, gradient = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher, indices, temperature=2.0, reduction="none", **options), student
    )
    assert loss[0].isfinite()
    assert loss[1] == math.inf
    assert gradient.isfinite().all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_bad_row_is_nan_and_harms_no_other(implementation, tail, who):
    student, teacher, indices, _, options = sparse(3, 8, 4, tail=tail, temperature=2.0)
    (student if who == "student" else teacher)[1, 2] = math.nan
    loss, gradient = value_and_gradient(
        lambda s: topk_distillation_loss(s, teacher, indices, temperature=2.0, reduction="none", **options), student
    )
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("index", [8, -1, 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_index_out_of_range_is_named(implementation, index, dtype):
    student, teacher, indices, _, options = sparse(3, 8, 4, tail="bucket", temperature=2.0)
    indices = indices.to(dtype)
    indices[1, 2] = index
    with pytest.raises(KdbenchError, match=rf"teacher index {index} in row 1 is outside \[0, 8\)"):
        topk_distillation_loss(student, teacher, indices, temperature=2.0, **options)


@pytest.mark.parametrize("listed", [2, 8])
def test_an_index_that_occurs_twice_is_named(implementation, listed):
    student, teacher, indices, _, options = sparse(4, 8, listed, tail="renormalise", temperature=2.0)
    indices[2, -1] = indices[2, 0]
    with pytest.raises(KdbenchError, match=rf"teacher index {indices[2, 0]} is listed twice in row 2"):
        topk_distillation_loss(student, teacher, indices, temperature=2.0, **options)


def test_layouts_may_differ(implementation):
    student, teacher, indices, labels, options = sparse(4, 8, 3, tail="bucket", temperature=2.0)
    want = topk_distillation_loss(student, teacher, indices, labels, temperature=2.0, alpha=0.5, **options)
    got = topk_distillation_loss(
        student.T.contiguous().T,
        torch.cat([teacher] * 2, dim=1)[:, :3],
        indices.T.contiguous().T,
        labels.int(),
        temperature=2.0,
        alpha=0.5,
        **options,
    )
    assert torch.equal(got, want)


S, T, Y = batch(4, 5)
PLACES = torch.arange(3).expand(4, 3)
LSE = torch.full((4,), 3.0, dtype=torch.float64)
GIVEN = {
    "student_logits": S,
    "teacher_logits": T[:, :3],
    "teacher_indices": PLACES,
    "temperature": 2.0,
    "tail": "bucket",
}
GIVEN |= {"teacher_lse": LSE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail": None}, "tail is missing"),
        ({"tail": "drop"}, "unknown value of tail 'drop'"),
        ({"teacher_lse": None}, "teacher_lse is missing, which tail='bucket' needs"),
        ({"teacher_lse": None, "tail": "unnormalised"}, "teacher_lse is missing, which tail='unnormalised' needs"),
        ({"tail": "renormalise"}, "teacher_lse means nothing with tail='renormalise'"),
        ({"teacher_lse": LSE.float()}, "keep it in float64"),
        ({"teacher_logits": T[:, :2]}, r"teacher_indices have shape \[4, 3\], teacher logits \[4, 2\]"),
        ({"teacher_logits": T[:3, :3]}, r"teacher logits have shape \[3, 3\]"),
        ({"teacher_logits": torch.zeros(4, 6)}, "at most as many classes"),
        ({"teacher_logits": T[:, :0]}, "with C > 0"),
        ({"teacher_logits": T[:, :3].double()}, "teacher_logits.to"),
        ({"teacher_indices": PLACES.float()}, "teacher_indices are torch.float32"),
        ({"teacher_indices": [[1]]}, "teacher_indices are list"),
        ({"teacher_indices": PLACES.to("meta")}, "teacher_indices are on meta"),
        ({"alpha": 0.5}, "alpha means nothing without labels"),
        ({"temperature": None}, "temperature is missing"),
    ],
)
def test_refusals_name_the_fault(change, message):
    with pytest.raises(KdbenchError, match=message):
        topk_distillation_loss(**{**GIVEN, **change})

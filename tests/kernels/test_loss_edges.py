"""Masks, infinities, NaN, empty batches, ignored rows, odd strides, and every refusal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from loss_oracle import assert_close, batch, exact, value_and_gradient

from kdbench.errors import KdbenchError
from kdbench.losses import cross_entropy, distillation_loss, kl

INF = float("inf")


def soft(student, teacher, reduction="none"):
    return value_and_gradient(lambda s: kl(s, teacher, temperature=2.0, reduction=reduction), student)


def test_a_class_masked_by_the_teacher_contributes_nothing(implementation):
    student, teacher, _ = batch(3, 5, dtype=torch.float64)
    teacher[:, 2] = -INF
    loss, gradient = soft(student, teacher)
    p = torch.softmax(teacher / 2, dim=1)
    log_q = torch.log_softmax(student / 2, dim=1)
    keep = [0, 1, 3, 4]
    torch.testing.assert_close(loss, (p * (p.log() - log_q))[:, keep].sum(dim=1))
    torch.testing.assert_close(gradient, (log_q.exp() - p) / 2)


def test_a_class_masked_by_both_might_as_well_not_exist(implementation):
    student, teacher, _ = batch(3, 5)
    student[:, 2] = teacher[:, 2] = -INF
    keep = [0, 1, 3, 4]
    loss, gradient = soft(student, teacher)
    short_loss, short_gradient = soft(student[:, keep], teacher[:, keep])
    torch.testing.assert_close(loss, short_loss)
    torch.testing.assert_close(gradient[:, keep], short_gradient)
    assert not gradient[:, 2].any()


def test_a_masked_teacher_equal_to_its_student_gives_exactly_nothing(implementation):
    student, _, _ = batch(2, 9)
    student[:, 4] = -INF
    loss, gradient = soft(student, student.clone())
    assert not loss.any()
    assert not gradient.any()


@pytest.mark.parametrize("teachers_logit", [0.0, -1e5])  # the second one's probability underflows to 0
def test_a_class_masked_only_by_the_student_is_infinitely_wrong(implementation, teachers_logit):
    student, teacher, _ = batch(2, 4)
    student[1, 3] = -INF
    teacher[1, 3] = teachers_logit
    loss, gradient = soft(student, teacher)
    assert math.isfinite(loss[0])
    assert loss[1] == INF
    assert gradient.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("bad", [math.nan, INF, "all -inf"])
def test_a_bad_row_is_nan_and_harms_no_other(implementation, who, bad):
    student, teacher, labels = batch(3, 6)
    culprit = student if who == "student" else teacher
    if bad == "all -inf":
        culprit[1] = -INF
    else:
        culprit[1, 2] = bad
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=2.0, alpha=0.5, reduction="none"), student
    )
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


def test_a_weight_of_zero_switches_its_term_off(implementation):
    student, teacher, labels = batch(3, 4)
    teacher[:] = math.nan
    torch.testing.assert_close(
        distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.0), F.cross_entropy(student, labels)
    )


def test_huge_logits_stay_finite(implementation):
    student, teacher, labels = batch(4, 11, spread=1e4, dtype=torch.float64)
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, temperature=4.0, alpha=0.5), student)
    assert_close(got, exact(student, teacher, labels, temperature=4.0, alpha=0.5), implementation)


@pytest.mark.parametrize("temperature", [1e-18, 1e-3, 1e3, 1e8, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_temperature_stays_finite(implementation, temperature, dtype):
    student, teacher, labels = batch(4, 11, spread=1e4, dtype=dtype)
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=temperature, alpha=0.5), student
    )
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_denormal_logits_are_as_good_as_zero(implementation):
    student = torch.full((2, 5), 1e-41)
    teacher = torch.tensor([[0.0, 1e-41, -1e-41, 0.0, 2e-41]]).expand(2, 5)
    loss, gradient = value_and_gradient(lambda s: kl(s, teacher, temperature=2.0), student)
    assert loss.item() == 0
    assert gradient.abs().max() < 1e-30


def test_a_confident_student_loses_no_digits(native):
    student, _, labels = batch(4, 11)
    student[torch.arange(4), labels] += 12.0
    got = value_and_gradient(lambda s: cross_entropy(s, labels), student)
    want = value_and_gradient(lambda s: F.cross_entropy(s, labels), student.double())
    torch.testing.assert_close(got[0].double(), want[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(got[1].double(), want[1], rtol=2e-6, atol=0)


def test_one_class_carries_no_information(implementation):
    student, teacher, labels = batch(5, 1, spread=100.0)
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=3.0, alpha=0.5), student
    )
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_no_rows_no_loss(implementation, reduction):
    student, teacher, labels = batch(0, 5)
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=3.0, alpha=0.5, reduction=reduction), student
    )
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert loss.sum().item() == 0
    assert gradient.shape == (0, 5)


@pytest.mark.parametrize("ignore_index", [-100, -1, 2])
def test_ignored_rows_keep_their_kl_and_lose_their_cross_entropy(implementation, ignore_index):
    student, teacher, labels = batch(6, 5, dtype=torch.float64)
    labels[:] = torch.tensor([0, 1, ignore_index, 3, ignore_index, 4])
    options = {"ignore_index": ignore_index}
    got = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=2.0, alpha=0.3, **options), student
    )
    want = value_and_gradient(
        lambda s: 0.7 * F.cross_entropy(s, labels, **options) + 0.3 * 4 * kl(s, teacher, temperature=2.0), student
    )
    torch.testing.assert_close(got, want)


def test_all_rows_ignored_leaves_the_kl(implementation):
    student, teacher, labels = batch(3, 5)
    labels[:] = -100
    loss = distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.25)
    torch.testing.assert_close(loss, kl(student, teacher, temperature=2.0))
    assert cross_entropy(student, labels).item() == 0


def test_with_kl_rows_valid_ignored_rows_might_as_well_not_exist(implementation):
    student, teacher, labels = batch(6, 5)
    labels[[1, 4]] = -100
    keep = labels != -100
    options = {"temperature": 2.0, "alpha": 0.3, "kl_rows": "valid"}
    for reduction in ("batchmean", "mean", "sum"):
        loss, gradient = value_and_gradient(
            lambda s, r=reduction: distillation_loss(s, teacher, labels, **options, reduction=r), student
        )
        short_loss, short_gradient = value_and_gradient(
            lambda s, r=reduction: distillation_loss(s, teacher[keep], labels[keep], **options, reduction=r),
            student[keep],
        )
        torch.testing.assert_close(loss, short_loss)
        torch.testing.assert_close(gradient[keep], short_gradient)
        assert not gradient[~keep].any()


def test_with_kl_rows_valid_a_bad_ignored_row_does_no_harm(implementation):
    student, teacher, labels = batch(3, 5)
    student[1], labels[1] = math.nan, -100
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=2.0, alpha=0.3, kl_rows="valid"), student
    )
    assert loss.isfinite()
    assert not gradient[1].any()
    all_ignored = torch.full_like(labels, -100)
    assert distillation_loss(student, teacher, all_ignored, temperature=2.0, alpha=0.3, kl_rows="valid").item() == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("label", [5, -1, 2**31 - 1, -(2**31)])
def test_a_label_out_of_range_is_named(implementation, dtype, label):
    student, _, labels = batch(4, 5)
    labels = labels.to(dtype)
    labels[2] = label
    with pytest.raises(KdbenchError, match=rf"label {label} in row 2 is outside \[0, 5\)"):
        cross_entropy(student, labels)


def test_labels_are_checked_even_where_they_weigh_nothing(implementation):
    student, teacher, labels = batch(4, 5)
    labels[3] = 9
    with pytest.raises(KdbenchError, match="label 9 in row 3"):
        distillation_loss(student, teacher, labels, temperature=2.0, alpha=1.0)


def test_an_ignore_index_beyond_int32_ignores_nothing(implementation):
    student, _, labels = batch(4, 5)
    labels = labels.int()
    labels[0] = 0
    # 2^32 and 0 share their lower half
    assert torch.equal(cross_entropy(student, labels, ignore_index=2**32), cross_entropy(student, labels))


def test_int32_labels(implementation):
    student, _, labels = batch(4, 5)
    assert torch.equal(cross_entropy(student, labels.int()), cross_entropy(student, labels))


def layouts():
    wide = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    return {
        "transposed": wide[:6].T[:5],
        "sliced columns": wide[:5, 3:9],
        "every other row": wide[::2][:4, :6],
        "every other column": wide[:5, ::2],
        "one row repeated": wide[:1, :6].expand(5, 6),
        "one column repeated": wide[:5, :1].expand(5, 6),
        "negated lazily": torch.complex(wide, wide).conj().imag[:5, :6],
    }


@pytest.mark.parametrize("student_layout", layouts())
@pytest.mark.parametrize("teacher_layout", ["contiguous", *layouts()])
def test_any_strides_give_the_same_numbers(implementation, student_layout, teacher_layout):
    student = layouts()[student_layout]
    plain = torch.linspace(-1, 1, student.numel()).reshape(student.shape)
    teacher = plain if teacher_layout == "contiguous" else layouts()[teacher_layout][: len(student)]
    if teacher.shape != student.shape:
        teacher = teacher[:1].expand_as(student)
    labels = torch.arange(2 * len(student))[::2] % student.shape[1]
    leaf = student.detach().requires_grad_()
    loss = distillation_loss(leaf, teacher, labels, temperature=3.0, alpha=0.6)
    loss.backward()
    want = value_and_gradient(
        lambda s: distillation_loss(s, teacher.contiguous(), labels.clone(), temperature=3.0, alpha=0.6),
        student.resolve_neg().contiguous(),
    )
    assert torch.equal(loss.detach(), want[0])
    assert torch.equal(leaf.grad, want[1])


def test_inputs_are_left_alone(implementation):
    student, teacher, labels = batch(5, 6)
    kept = student.clone(), teacher.clone(), labels.clone()
    value_and_gradient(lambda s: distillation_loss(s, teacher, labels, temperature=2.0, alpha=0.5), student)
    assert all(torch.equal(now, then) for now, then in zip((student, teacher, labels), kept, strict=True))


def test_autocast_widens_the_narrower_of_two_dtypes(implementation):
    student, teacher, labels = batch(4, 9, dtype=torch.bfloat16)
    wide = teacher.float() + 1e-4
    options = {"temperature": 2.0, "alpha": 0.5}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = value_and_gradient(lambda s: distillation_loss(s, wide, labels, **options), student)
    want = value_and_gradient(lambda s: distillation_loss(s, wide, labels, **options), student.float())
    assert torch.equal(loss, want[0])
    assert torch.equal(gradient, want[1].bfloat16())
    with pytest.raises(KdbenchError, match="convert one: teacher_logits"):
        distillation_loss(student, wide, labels, **options)


def test_autocast_changes_nothing_else(implementation):
    student, teacher, labels = batch(4, 9)
    options = {"temperature": 2.0, "alpha": 0.5}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    want = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


S, T, Y = batch(4, 5)
GIVEN = {"student_logits": S, "teacher_logits": T, "labels": Y, "temperature": 2.0, "alpha": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": None}, "temperature is missing"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1e-40}, "between 1e-18 and 1e"),
        ({"temperature": torch.tensor(2.0)}, r"temperature has shape \[\], not \[4\]"),
        ({"temperature": torch.tensor([1.0, 2.0, 0.0, 1.0])}, "temperature is 0.0 in row 2"),
        ({"temperature": torch.ones(4, dtype=torch.int64)}, r"temperature.double\(\)"),
        ({"temperature": torch.ones(4, requires_grad=True)}, "temperature requires a gradient"),
        ({"temperature": torch.ones(4, device="meta")}, "values of temperature are on meta"),
        ({"alpha": torch.tensor([0.0, 0.5, 1.0, 1.5])}, "alpha is 1.5 in row 3"),
        ({"alpha": torch.tensor([0.0, math.nan, 1.0, 0.5])}, "alpha is nan in row 1"),
        ({"alpha": torch.full((4,), 0.5, requires_grad=True)}, r"pass alpha.detach\(\)"),
        ({"labels": None, "alpha": torch.full((4,), 0.5)}, "alpha means nothing without labels"),
        ({"labels": None, "alpha": None, "kl_rows": "valid"}, "kl_rows='valid' means nothing without labels"),
        ({"kl_rows": "some"}, "unknown value of kl_rows 'some'"),
        ({"row_weight": torch.ones(3)}, r"row_weight has shape \[3\], not \[4\]"),
        ({"row_weight": torch.ones(4, requires_grad=True)}, "row_weight requires a gradient"),
        ({"row_weight": [1.0] * 4}, "row_weight is a list"),
        ({"teacher_lse": torch.ones(4)}, "keep it in float64"),
        ({"teacher_lse": torch.ones(5, dtype=torch.float64)}, r"teacher_lse has shape \[5\]"),
        (
            {"teacher_logits": None, "temperature": None, "alpha": None, "kl_rows": "valid"},
            "teacher_lse and kl_rows mean",
        ),
        ({"student_logits": [[1.0]]}, "student logits are a list"),
        ({"teacher_logits": [[1.0]]}, "teacher logits are a list"),
        ({"labels": [1, 2, 3, 4]}, "labels are a list"),
        ({"temperature": -1.0}, "must be positive"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": INF}, "temperature is inf"),
        ({"alpha": None}, "alpha is missing"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"labels": None}, "alpha means nothing without labels"),
        ({"teacher_logits": None}, "mean nothing without teacher"),
        ({"teacher_logits": None, "labels": None}, "neither teacher logits nor labels"),
        ({"reduction": "batch_mean"}, "did you mean 'batchmean'"),
        ({"teacher_logits": T[:3]}, r"shape \[3, 5\], student logits \[4, 5\]"),
        ({"teacher_logits": T.double()}, "teacher_logits.to"),
        ({"teacher_logits": T.to("meta")}, "teacher logits are on meta"),
        ({"student_logits": S[0]}, r"not \[N, C\]"),
        ({"student_logits": S[:, :0]}, "with C > 0"),
        ({"student_logits": S.long()}, "student logits are torch.int64"),
        ({"labels": Y[:3]}, r"labels have shape \[3\], not \[4\]"),
        ({"labels": Y.float()}, r"labels.long\(\)"),
        ({"labels": Y.to("meta")}, "labels are on meta"),
    ],
)
def test_refusals_name_the_fault(change, message):
    with pytest.raises(KdbenchError, match=message):
        distillation_loss(**{**GIVEN, **change})


def leaf():
    return torch.randn(4, 5, requires_grad=True)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (leaf, T, "would overwrite a leaf that requires"),
        (lambda: leaf()[:4], T, "would overwrite a view of a leaf"),
        (lambda: leaf()[0].expand(4, 5), T, "would overwrite a view of a leaf"),
        (lambda: (leaf() * 2)[:1].expand(4, 5), T, "elements of the student logits share memory"),
        (lambda: (leaf() * 2).view(20).as_strided((4, 5), (3, 1)), T, "elements of the student logits share memory"),
        (lambda: T, T, "another argument lies in the student logits' memory"),
    ],
)
def test_inplace_refuses_memory_that_somebody_needs(student, teacher, message):
    with pytest.raises(KdbenchError, match=message):
        kl(student(), teacher, temperature=2.0, inplace=True)


def test_inplace_without_a_gradient_overwrites_nothing(implementation):
    student, teacher, labels = batch(4, 5)
    kept = student.clone()
    loss = distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5, inplace=True)
    assert torch.equal(student, kept)
    assert torch.equal(loss, distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5))

"""Cross-entropy against a target that is b on the label and (1 - b) / (C - 1) elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_oracle import assert_close, batch, exact, value_and_gradient

from kdbench.errors import KdbenchError
from kdbench.losses import cross_entropy, soft_label_cross_entropy

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REDUCTIONS = ["batchmean", "mean", "sum", "none"]


@quick
@given(
    rows=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 8, 9, 33, 100, 1000]),
    share=st.floats(0, 1) | st.sampled_from([0.0, 1.0]) | st.none(),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_formula(implementation, rows, classes, share, reduction, dtype, weighted, seed):
    student, _, labels = batch(rows, classes, seed=seed, spread=3.0, dtype=dtype)
    labels[seed % rows] = -100
    generator = torch.Generator().manual_seed(seed)
    if share is None:  # per row, 0 and 1 among them
        share = torch.empty(rows).uniform_(-0.3, 1.3, generator=generator).clamp(0, 1)
    options = {"reduction": reduction, "row_weight": torch.rand(rows, generator=generator) if weighted else None}
    got = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, share, **options), student)
    assert_close(got, exact(student, None, labels, label_share=share, **options), implementation, subtracts=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_label_smoothing_is_a_special_case(implementation, smoothing, reduction):
    student, _, labels = batch(7, 10)
    labels[3] = -100
    share = 1 - smoothing + smoothing / 10
    got = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, share, reduction=reduction), student)
    torchs = reduction.removeprefix("batch")
    want = value_and_gradient(
        lambda s: F.cross_entropy(s, labels, label_smoothing=smoothing, reduction=torchs), student
    )
    torch.testing.assert_close(got, want)


def test_a_share_of_one_is_plain_cross_entropy(implementation):
    student, _, labels = batch(7, 10)
    student[torch.arange(7), (labels + 1) % 10] = -math.inf  # excluded, and without weight in the target
    want = value_and_gradient(lambda s: cross_entropy(s, labels), student)
    for share in (1.0, torch.ones(7)):
        got = value_and_gradient(lambda s, b=share: soft_label_cross_entropy(s, labels, b), student)
        torch.testing.assert_close(got, want)
        assert got[0].isfinite()


def test_an_excluded_class_of_some_weight_is_infinitely_wrong(implementation):
    student, _, labels = batch(4, 6)
    student[2, (labels[2] + 1) % 6] = -math.inf
    loss, gradient = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, 0.8, reduction="none"), student)
    assert loss.isfinite().tolist() == [True, True, False, True]
    assert loss[2] == math.inf
    assert gradient.isfinite().all()


def test_a_share_of_zero_does_not_read_the_label(implementation):
    student, _, labels = batch(4, 6)
    student[torch.arange(4), labels] = -math.inf
    loss, gradient = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, 0.0), student)
    kept = torch.ones(4, 6, dtype=torch.bool).scatter(1, labels[:, None], False)
    short = student[kept].view(4, 5)
    want = -F.log_softmax(short, dim=1).mean(dim=1).mean()
    torch.testing.assert_close(loss, want)
    assert gradient.isfinite().all()
    assert not gradient[~kept].any()


@pytest.mark.parametrize("share", [0.3, torch.tensor([0.0, 0.3, 1.0])])
def test_one_class_carries_no_information(implementation, share):
    student, _, labels = batch(3, 1, spread=100.0)
    loss, gradient = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, share), student)
    assert loss.item() == 0
    assert not gradient.any()


def test_gradient_rows_sum_to_zero(implementation):
    student, _, labels = batch(5, 12, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda s: soft_label_cross_entropy(s, labels, 0.3), student)
    assert gradient.sum(dim=1).abs().max() < 1e-15


def test_gradcheck(implementation):
    student, _, labels = batch(3, 5, dtype=torch.float64)
    labels[1] = -100
    share = torch.tensor([0.2, 0.5, 0.9])
    assert torch.autograd.gradcheck(lambda s: soft_label_cross_entropy(s, labels, share), student.requires_grad_())


S, _, Y = batch(4, 5)


@pytest.mark.parametrize(
    ("share", "change", "message"),
    [
        (1.1, {}, "label_share is 1.1"),
        (math.nan, {}, "label_share is nan"),
        (None, {}, "label_share is missing"),
        (torch.tensor([0.0, 0.5, -0.1, 1.0]), {}, r"label_share is -0.1\d* in row 2"),
        (torch.ones(3), {}, r"label_share has shape \[3\], not \[4\]"),
        (torch.ones(4, requires_grad=True), {}, "label_share requires a gradient"),
        (0.5, {"reduction": "avg"}, "unknown reduction 'avg'"),
        (0.5, {"labels": None}, "labels are a NoneType"),
        (0.5, {"labels": Y + 5}, "is outside"),
        (0.5, {"student_logits": S[0]}, r"not \[N, C\]"),
    ],
)
def test_refusals_name_the_fault(share, change, message):
    with pytest.raises(KdbenchError, match=message):
        soft_label_cross_entropy(**{"student_logits": S, "labels": Y, "label_share": share, **change})

"""Loss and gradient of one teacher against the textbook in float64, and the facts that released code hinges on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loss_oracle import assert_close, batch, exact, peak, value_and_gradient

from kdbench.losses import cross_entropy, distillation_loss, kl
from kdbench.ops import implementation as current_implementation

# the fixture chooses an implementation once and keeps no state between examples
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = {"rows": st.integers(1, 9), "classes": st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 65, 100, 1000])}
temperatures = st.floats(-3, 3).map(lambda exponent: 10.0**exponent) | st.sampled_from([1.0, 2.0, 3.0, 4.0])
seeds = st.integers(0, 1000)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
REDUCTIONS = ["batchmean", "mean", "sum", "none"]


@quick
@given(
    **sizes,
    temperature=temperatures,
    alpha=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    dtype=dtypes,
    reduction=st.sampled_from(REDUCTIONS),
    seed=seeds,
)
@example(rows=3, classes=4097, temperature=4.0, alpha=0.9, dtype=torch.float32, reduction="batchmean", seed=0)
@example(rows=3, classes=4096, temperature=2.5, alpha=0.5, dtype=torch.bfloat16, reduction="batchmean", seed=0)
@example(rows=2, classes=1023, temperature=1000.0, alpha=1.0, dtype=torch.float32, reduction="sum", seed=1)
@example(rows=2, classes=1025, temperature=1e-3, alpha=1.0, dtype=torch.float16, reduction="none", seed=1)
def test_loss_and_gradient_match_the_formula(implementation, rows, classes, temperature, alpha, dtype, reduction, seed):
    student, teacher, labels = batch(rows, classes, seed=seed, dtype=dtype)
    options = {"temperature": temperature, "alpha": alpha, "reduction": reduction}
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert_close(got, exact(student, teacher, labels, **options), implementation)


@quick
@given(
    **sizes,
    temperature=temperatures,
    reduction=st.sampled_from(REDUCTIONS),
    kl_rows=st.sampled_from(["all", "valid"]),
    mask_seed=seeds,
)
def test_masks_and_ignored_rows(implementation, rows, classes, temperature, reduction, kl_rows, mask_seed):
    student, teacher, labels = batch(rows, classes, seed=mask_seed, spread=3.0)
    generator = torch.Generator().manual_seed(mask_seed)
    labels[torch.rand(rows, generator=generator) < 0.4] = -100
    masked = torch.rand(rows, classes, generator=generator) < 0.3
    masked[torch.arange(rows), torch.randint(0, classes, (rows,), generator=generator)] = False
    teacher = teacher.masked_fill(masked, -torch.inf)
    options = {"temperature": temperature, "alpha": 0.6, "reduction": reduction, "kl_rows": kl_rows}
    got = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    assert_close(got, exact(student, teacher, labels, **options), implementation)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_a_teacher_close_to_its_student_loses_no_digits(native, temperature):
    student, noise, labels = batch(4, 50)
    teacher = student + 1e-3 * noise + 5.0
    got = value_and_gradient(lambda s: kl(s, teacher, temperature=temperature), student)
    want = exact(student, teacher, labels, temperature=temperature, alpha=1.0)
    # float64's own cancellation limits the yardstick's loss to about 1e-16 / KL
    torch.testing.assert_close(got[0].double(), want.loss / temperature**2, rtol=2e-6, atol=1e-14)
    torch.testing.assert_close(got[1].double() * temperature**2, want.gradient, rtol=0, atol=1e-6 * peak(want.gradient))


def test_bfloat16_does_not_round_the_kl_away(native):
    """Plain torch in bfloat16 returns many times the true KL of near-equal logits."""
    student, noise, _ = batch(64, 1000, dtype=torch.bfloat16)
    teacher = student + (0.01 * noise).to(torch.bfloat16)
    want = exact(student, teacher, None, temperature=1.0).loss.item()
    assert kl(student, teacher, temperature=1.0).item() == pytest.approx(want, rel=2e-6)
    eager = F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")
    assert abs(eager.item() - want) > want


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reductions_are_torchs_own(implementation, reduction, dtype):
    student, teacher, labels = batch(6, 13, dtype=dtype)
    labels[2] = -100

    def textbook(s):
        log_q, p = F.log_softmax(s / 3, 1), F.softmax(teacher.double() / 3, 1)
        if reduction == "none":
            soft, hard = F.kl_div(log_q, p, reduction="none").sum(1), F.cross_entropy(s, labels, reduction="none")
        else:
            soft = F.kl_div(log_q, p, reduction="sum") / {"batchmean": 6, "mean": 6 * 13, "sum": 1}[reduction]
            hard = F.cross_entropy(s, labels, reduction=reduction.removeprefix("batch"))
        return 0.6 * hard + 0.4 * 9 * soft

    got = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=3.0, alpha=0.4, reduction=reduction), student
    )
    want = value_and_gradient(textbook, student.double())
    tolerance = 4e-6 if dtype == torch.float32 else 4e-13
    torch.testing.assert_close(got[0].double(), want[0], rtol=tolerance, atol=0)
    torch.testing.assert_close(got[1].double(), want[1], rtol=0, atol=tolerance * peak(want[1]))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # torch says so itself, and this is the point
@pytest.mark.parametrize("classes", [10, 100])
def test_mean_makes_the_kl_smaller_by_the_number_of_classes(implementation, classes):
    student, teacher, _ = batch(128, classes, dtype=torch.float64)
    true_kl = kl(student, teacher, temperature=4.0, reduction="batchmean")
    as_released = kl(student, teacher, temperature=4.0, reduction="mean")
    assert (true_kl / as_released).item() == pytest.approx(classes, rel=1e-14)
    textbook = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="mean")
    assert as_released.item() == pytest.approx(textbook.item(), rel=1e-12)


@pytest.mark.parametrize(("reduction", "weight"), [("mean", 0.125), ("batchmean", 12.5)])
def test_effective_weight_of_the_kl(implementation, reduction, weight):
    student, teacher, labels = batch(64, 100, dtype=torch.float64)
    whole = distillation_loss(student, teacher, labels, temperature=5.0, alpha=0.5, reduction=reduction)
    soft = whole - 0.5 * cross_entropy(student, labels)
    assert (soft / kl(student, teacher, temperature=5.0)).item() == pytest.approx(weight, rel=1e-12)


def test_without_labels_the_result_is_t_squared_kl(implementation):
    student, teacher, _ = batch(5, 7)
    soft = distillation_loss(student, teacher, temperature=3.0)
    torch.testing.assert_close(soft, 9.0 * kl(student, teacher, temperature=3.0))


def test_without_a_teacher_the_result_is_cross_entropy(implementation):
    student, _, labels = batch(5, 7)
    torch.testing.assert_close(distillation_loss(student, None, labels), F.cross_entropy(student, labels))


@quick
@given(**sizes, temperature=temperatures, seed=seeds)
def test_alpha_zero_is_torchs_cross_entropy(implementation, rows, classes, temperature, seed):
    student, teacher, labels = batch(rows, classes, seed=seed, spread=5.0)
    labels[0] = -100
    got = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=temperature, alpha=0.0), student
    )
    if rows == 1:  # every row is ignored: torch gives 0 / 0
        assert got[0].item() == 0
        assert not got[1].any()
        return
    want = value_and_gradient(lambda s: F.cross_entropy(s, labels), student)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)


@quick
@given(**sizes, temperature=temperatures, dtype=dtypes, seed=seeds)
def test_equal_logits_give_exactly_nothing(implementation, rows, classes, temperature, dtype, seed):
    student, _, _ = batch(rows, classes, seed=seed, spread=10.0, dtype=dtype)
    loss, gradient = value_and_gradient(lambda s: kl(s, student, temperature=temperature), student)
    assert loss.item() == 0
    assert not gradient.any()


@quick
@given(**sizes, temperature=temperatures, alpha=st.floats(0, 1), seed=seeds)
def test_gradient_rows_sum_to_zero_and_kl_is_not_negative(implementation, rows, classes, temperature, alpha, seed):
    student, teacher, labels = batch(rows, classes, seed=seed, dtype=torch.float64)
    _, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=temperature, alpha=alpha), student
    )
    torch.testing.assert_close(
        gradient.sum(dim=1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-13 * max(temperature, 1.0)
    )
    assert kl(student, teacher, temperature=temperature).item() >= -1e-13


@quick
@given(**sizes, temperature=temperatures, seed=seeds, shift=st.sampled_from([-1e4, -64.0, 0.5, 1024.0]))
def test_adding_a_constant_to_a_row_changes_nothing(implementation, rows, classes, temperature, seed, shift):
    student, teacher, labels = batch(rows, classes, seed=seed)
    student, teacher = student.round(decimals=2).double(), teacher.round(decimals=2).double()

    def loss_of(by, temperature=temperature):
        return distillation_loss(student + by, teacher - by, labels, temperature=temperature, alpha=0.5)

    # rounding of the shifted logits enters divided by T and leaves multiplied by T^2
    slack = 1e-11 * max(temperature, 1 / temperature)
    assert loss_of(shift).item() == pytest.approx(loss_of(0.0).item(), rel=1e-9, abs=slack)


@quick
@given(**sizes, temperature=temperatures, seed=seeds)
def test_the_order_of_classes_means_nothing(implementation, rows, classes, temperature, seed):
    student, teacher, labels = batch(rows, classes, seed=seed, dtype=torch.float64)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    options = {"temperature": temperature, "alpha": 0.5}
    loss, gradient = value_and_gradient(lambda s: distillation_loss(s, teacher, labels, **options), student)
    other_loss, other_gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher[:, order], place[labels], **options), student[:, order]
    )
    slack = 1e-12 * max(temperature, 1.0)
    torch.testing.assert_close(other_loss, loss, rtol=1e-11, atol=slack * max(temperature, 1.0))
    torch.testing.assert_close(other_gradient[:, place], gradient, rtol=0, atol=slack)


@pytest.mark.parametrize("classes", [10, 1001])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_threads_do_not_change_a_bit(native, classes, reduction):
    student, teacher, labels = batch(67, classes)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                value_and_gradient(
                    lambda s: distillation_loss(s, teacher, labels, temperature=4.0, alpha=0.9, reduction=reduction),
                    student,
                )
            )
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_float32_loss(implementation, dtype):
    student, teacher, labels = batch(8, 20, dtype=dtype)
    loss, gradient = value_and_gradient(
        lambda s: distillation_loss(s, teacher, labels, temperature=4.0, alpha=0.9), student
    )
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() != loss.to(dtype).item()  # it was never rounded


def test_the_fixture_chooses_the_implementation(implementation):
    assert current_implementation() == implementation

"""The identities of the fact sheet: what distillation is exactly, on the losses that train, and where that ends.

Labels as a mixture, teachers as an average, students as a linear smoother; the Brier score as a sum, and tables whose
gains are additive or multiplicative by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.losses import cross_entropy, distillation_loss, ensemble_distillation_loss, soft_label_cross_entropy
from kdbench.ops import build_info, forced
from kdbench_orthogonality.decomposition import decompose
from kdbench_orthogonality.interaction import (
    CONTROLS,
    Grade,
    accuracy_interaction,
    control_of,
    grade,
    log_error_interaction,
    log_error_ratio,
)

N, C, ALPHA = 12, 6, 0.3
EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture(params=["native", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every identity holds for the kernels and for plain torch."""
    if request.param == "native" and build_info()["reason"]:
        pytest.skip(f"no native kernels: {build_info()['reason']}")
    with forced(request.param):
        yield


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


Z, OTHER_Z, T1, T2, T3 = (logits(seed) for seed in range(5))
LABELS = torch.arange(N) % C
ONE_HOT = torch.eye(C, dtype=torch.float64)[LABELS]


def over_labels(z: Tensor, mixture: Tensor) -> Tensor:
    """The expected cross-entropy ``[N]`` when an example's label is drawn from its row of ``mixture``."""
    each = [cross_entropy(z, torch.full((N,), label), reduction="none") for label in range(C)]
    return (mixture * torch.stack(each, 1)).sum(1)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(1)


def gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


# ------------------------------------------------------------------------------------------ labels drawn from a mixture


@pytest.mark.usefixtures("implementation")
def test_cross_entropy_with_a_mixture_is_the_expectation_over_labels() -> None:
    """CE(z, (1 - a) y + a q), by its formula and as the expected loss over labels that are drawn from the mixture."""
    mixture = (1 - ALPHA) * ONE_HOT + ALPHA * T1.softmax(1)
    formula = -(mixture * Z.log_softmax(1)).sum(1)
    torch.testing.assert_close(over_labels(Z, mixture), formula, **EXACT)


@pytest.mark.usefixtures("implementation")
def test_distillation_at_temperature_1_is_training_on_drawn_labels() -> None:
    """Value up to the teacher's entropy, which no student can change, and the gradient as it is."""
    q = T1.softmax(1)
    mixture = (1 - ALPHA) * ONE_HOT + ALPHA * q

    def distilled(z: Tensor) -> Tensor:
        return distillation_loss(z, T1, LABELS, temperature=1.0, alpha=ALPHA, reduction="none")

    torch.testing.assert_close(distilled(Z) + ALPHA * entropy(q), over_labels(Z, mixture), **EXACT)
    expected = gradient(lambda z: over_labels(z, mixture), Z)
    torch.testing.assert_close(gradient(distilled, Z), expected, **EXACT)


@pytest.mark.usefixtures("implementation")
def test_soft_labels_are_an_expectation_too() -> None:
    share = 0.8
    mixture = share * ONE_HOT + (1 - share) / (C - 1) * (1 - ONE_HOT)
    found = soft_label_cross_entropy(Z, LABELS, share, reduction="none")
    torch.testing.assert_close(found, over_labels(Z, mixture), **EXACT)


def implied_target(z: Tensor, temperature: float) -> Tensor:
    """The labels' distribution whose expected cross-entropy has distillation's gradient at this student."""

    def distilled(leaf: Tensor) -> Tensor:
        return distillation_loss(leaf, T1, LABELS, temperature=temperature, alpha=ALPHA, reduction="none")

    return z.softmax(1) - gradient(distilled, z)


@pytest.mark.usefixtures("implementation")
def test_at_another_temperature_no_distribution_of_labels_does_it() -> None:
    """At 1 the distribution is the same for every student; at 4 another student would need another one."""
    mixture = (1 - ALPHA) * ONE_HOT + ALPHA * T1.softmax(1)
    for student in (Z, OTHER_Z):
        torch.testing.assert_close(implied_target(student, 1.0), mixture, **EXACT)
    gap = (implied_target(Z, 4.0) - implied_target(OTHER_Z, 4.0)).abs()
    assert gap.amax(1).min() > 1e-2, "every example must differ"
    softened = (1 - ALPHA) * ONE_HOT + ALPHA * (T1 / 4.0).softmax(1)
    for target in (mixture, softened):
        assert (implied_target(Z, 4.0) - target).abs().max() > 1e-2


# --------------------------------------------------------------------------------------------------- several teachers

TEACHERS = [T1, T2, T3]


def together(z: Tensor, combine: Any, temperature: float = 1.0) -> Tensor:
    return ensemble_distillation_loss(
        z, TEACHERS, LABELS, temperature=temperature, alpha=ALPHA, combine=combine, reduction="none"
    )


@pytest.mark.usefixtures("implementation")
def test_the_mean_of_the_teachers_is_one_teacher() -> None:
    """Distilling from mean probabilities is distilling from the teacher that gives them: labels of a teacher drawn."""
    mean = torch.stack([each.softmax(1) for each in TEACHERS]).mean(0)
    mixture = (1 - ALPHA) * ONE_HOT + ALPHA * mean
    found = together(Z, "probabilities") + ALPHA * entropy(mean)
    torch.testing.assert_close(found, over_labels(Z, mixture), **EXACT)
    one = distillation_loss(Z, mean.log(), LABELS, temperature=1.0, alpha=ALPHA, reduction="none")
    torch.testing.assert_close(together(Z, "probabilities"), one, **EXACT)


@pytest.mark.usefixtures("implementation")
def test_the_mean_of_the_losses_differs_by_the_disagreement_of_the_teachers() -> None:
    """H(mean p) - mean H(p), the same for every student; the gradients are equal."""
    each = [entropy(teacher.softmax(1)) for teacher in TEACHERS]
    mean = torch.stack([teacher.softmax(1) for teacher in TEACHERS]).mean(0)
    disagreement = ALPHA * (entropy(mean) - torch.stack(each).mean(0))
    assert disagreement.min() > 1e-2
    for student in (Z, OTHER_Z):
        losses = [
            distillation_loss(student, teacher, LABELS, temperature=1.0, alpha=ALPHA, reduction="none")
            for teacher in TEACHERS
        ]
        torch.testing.assert_close(together(student, "losses"), torch.stack(losses).mean(0), **EXACT)
        torch.testing.assert_close(
            together(student, "losses"), together(student, "probabilities") + disagreement, **EXACT
        )
    torch.testing.assert_close(
        gradient(lambda z: together(z, "losses"), Z), gradient(lambda z: together(z, "probabilities"), Z), **EXACT
    )


@pytest.mark.usefixtures("implementation")
def test_the_mean_teacher_is_that_of_the_softened_probabilities() -> None:
    """At T != 1 that is not the mean of the plain probabilities, softened: the order of the two matters."""
    mean = torch.stack([teacher.softmax(1) for teacher in TEACHERS]).mean(0)
    softened_after = distillation_loss(Z, mean.log(), LABELS, temperature=4.0, alpha=ALPHA, reduction="none")
    assert (together(Z, "probabilities", 4.0) - softened_after).abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------------ linear students


def regression() -> tuple[Any, Any, Any]:
    """Inputs, targets, and inputs that are asked about."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(60, 3))
    targets = np.sin(inputs).sum(1) + 0.5 * generator.normal(size=60)
    return inputs, targets, generator.normal(size=(20, 3))


def test_kernel_ridge_distils_the_mean_of_teachers_into_the_mean_of_students() -> None:
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge", reason="scikit-learn is not installed")
    trees = pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")
    inputs, targets, asked = regression()
    generator = np.random.default_rng(1)
    teachers = []
    for _ in range(5):
        drawn = generator.integers(len(targets), size=len(targets))  # a bootstrap resample
        teacher = kernel_ridge.KernelRidge(alpha=0.1, kernel="rbf").fit(inputs[drawn], targets[drawn])
        teachers.append(teacher.predict(inputs))

    def gap(student: Callable[[], Any]) -> float:
        distilled = [student().fit(inputs, (1 - ALPHA) * targets + ALPHA * each).predict(asked) for each in teachers]
        of_mean = student().fit(inputs, (1 - ALPHA) * targets + ALPHA * np.mean(teachers, 0)).predict(asked)
        return float(np.abs(np.mean(distilled, 0) - of_mean).max())

    assert np.std(teachers, 0).max() > 0.05, "teachers must differ"
    assert gap(lambda: kernel_ridge.KernelRidge(alpha=0.5, kernel="rbf")) < 1e-10
    # A tree chooses its splits by its targets, so it is not linear in them.
    assert gap(lambda: trees.DecisionTreeRegressor(max_depth=3, random_state=0)) > 1e-2


def smoothers() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Student S = K (K + 1/2)^-1, teacher S_T = K (K + 1/10)^-1, and the kernel K of the inputs."""
    inputs, _, _ = regression()
    distance = np.square(inputs[:, None] - inputs[None]).sum(2)
    kernel = np.exp(-distance / inputs.shape[1])  # scikit-learn's rbf: gamma is one over the number of features
    identity = np.eye(len(kernel))
    student, teacher = (kernel @ np.linalg.inv(kernel + ridge * identity) for ridge in (0.5, 0.1))
    return student, teacher, kernel


def test_a_distilled_linear_smoother_is_a_smoother() -> None:
    """S ((1 - a) I + a S_T) y is what kernel ridge students of a kernel ridge teacher predict."""
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge", reason="scikit-learn is not installed")
    inputs, targets, _ = regression()
    student, teacher, _ = smoothers()
    taught = kernel_ridge.KernelRidge(alpha=0.1, kernel="rbf").fit(inputs, targets).predict(inputs)
    mixed = (1 - ALPHA) * targets + ALPHA * taught
    found = kernel_ridge.KernelRidge(alpha=0.5, kernel="rbf").fit(inputs, mixed).predict(inputs)
    expected = student @ ((1 - ALPHA) * np.eye(len(targets)) + ALPHA * teacher) @ targets
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_distilled_linear_smoother_varies_less_and_is_more_biased() -> None:
    """Like a regulariser and unlike bagging: with noise of variance 1 and any truth f in the eigenbasis of K."""
    student, teacher, kernel = smoothers()
    identity = np.eye(len(kernel))
    distilled = student @ ((1 - ALPHA) * identity + ALPHA * teacher)
    variances = [np.trace(smoother @ smoother.T) for smoother in (student, distilled)]
    assert variances[1] < variances[0] - 0.1
    _, basis = np.linalg.eigh(kernel)
    biases = [np.square((identity - smoother) @ basis).sum(0) for smoother in (student, distilled)]
    assert (biases[1] > biases[0] - 1e-12).all()
    assert (biases[1] > biases[0] + 1e-3).sum() > len(kernel) / 2


# --------------------------------------------------------------------------------------------------- the Brier score


def test_the_brier_score_is_bias_and_variance_in_every_class() -> None:
    p = torch.stack([each.softmax(1) for each in TEACHERS]).numpy()
    y, mean = ONE_HOT.numpy(), p.mean(0)
    by_class = [np.square(p - y).mean((0, 1)), np.square(mean - y).mean(0), np.square(p - mean).mean((0, 1))]
    np.testing.assert_allclose(by_class[1] + by_class[2], by_class[0], rtol=0, atol=1e-15)
    found = decompose(p, LABELS.numpy())
    expected = [each.sum() for each in by_class]
    assert (found.total, found.plain_bias, found.plain_variance) == pytest.approx(expected, rel=1e-13)
    assert found.bias + found.variance == pytest.approx(found.total, rel=1e-13), "corrected for M as well"


# ------------------------------------------------------------------------------------------------------- 2x2 tables


@pytest.mark.parametrize(("start", "kd", "x"), [*product((60.0, 90.0), (1.5, -2.0, 0.0), (-5.0, 3.0))])
def test_additive_gains_do_not_interact(start: float, kd: float, x: float) -> None:
    table = start + kd + x, start + x, start + kd, start
    assert accuracy_interaction(*table) == pytest.approx(0, abs=1e-12)
    if kd:
        assert abs(log_error_interaction(*table)) > 1e-3, "they do on the other scale"


@pytest.mark.parametrize(("error", "kd", "x"), [*product((40.0, 5.0), (0.8, 1.1), (0.5, 1.7))])
def test_multiplicative_gains_have_equal_ratios_of_errors(error: float, kd: float, x: float) -> None:
    table = 100 - error * kd * x, 100 - error * x, 100 - error * kd, 100 - error
    assert log_error_ratio(*table[:2]) == pytest.approx(math.log(kd), abs=1e-12)
    assert log_error_interaction(*table) == pytest.approx(0, abs=1e-12)
    # Where X halves the errors, a gain of distillation that is proportional to them is half as many points.
    assert accuracy_interaction(*table) == pytest.approx(error * (1 - kd) * (x - 1), abs=1e-12)


def test_golden_grades() -> None:
    assert grade(-0.1, 0.1, 0.5, 0.2, 1.0) == Grade("orthogonal (weak)", "additive")
    assert grade(-2.0, 2.0, 0.5, -0.1, 1.0) == Grade("undecided", "undecided")


def test_controls_are_their_own_kind() -> None:
    assert CONTROLS == ("none", "none+ft")
    tuned = ("prune50", "structured33", "qat4", "int8-qat")
    assert {control_of(technique) for technique in tuned} == {"none+ft"}
    plain = ("separable", "mixup", "cutmix", "label-smoothing", "weight-decay", "dropout", "w1-d2", "int8-ptq")
    assert {control_of(technique) for technique in plain} == {"none"}

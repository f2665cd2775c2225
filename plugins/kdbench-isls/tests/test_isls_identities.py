"""H7: every identity of the method's reading as a prior, exact, on the losses that train, in float64 by autograd."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from isls_batches import batch_of, gradient_of, label_of, make, on_label, target_of, value_of
from torch import Tensor
from torch.nn import functional

from kdbench.data import dataset
from kdbench.training import CrossEntropy, LabelSmoothing, Objective
from kdbench.training.batch import Batch
from kdbench_isls import objectives
from kdbench_isls.objectives import BetaSmoothing, EntropyPenalty, FlatTarget, MatchedSmoothing, SelfDistillation
from kdbench_isls.ranking import draws
from kdbench_isls.recipes import ALPHA, ALPHA_BETA, A, method

EXACT = 1e-15


def smoothed(epsilon: float) -> LabelSmoothing:
    """In the released convention: eps / (K - 1) on each other class."""
    return LabelSmoothing(epsilon=epsilon, over="others")


def uniform(epsilon: float) -> LabelSmoothing:
    """As libraries do it: over all K classes."""
    return LabelSmoothing(epsilon=epsilon, over="all")


def posterior(logits: Tensor, batch: Batch, prior: Tensor) -> Tensor:
    """Mean of ``-log z_y - sum_c (A_c - 1) log z_c``, z the softmax: MAP with the Dirichlet prior A, ``[N, C]``."""
    log_z = logits.log_softmax(1)
    return (-on_label(log_z, batch) - ((prior - 1) * log_z).sum(1)).mean()


def map_gradient(logits: Tensor, batch: Batch, prior: Tensor, beta: float) -> Tensor:
    """Of the posterior by 1 + beta, which makes the weights of both terms add up to 1."""
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(posterior(leaf, batch, prior), leaf)[0] / (1 + beta)


# ------------------------------------------------------------------------------------------- Beta smoothing on average


def test_the_defaults_match_smoothing_by_015() -> None:
    assert (A, ALPHA_BETA) == (3.0, 0.6)
    data = dataset("mnist1d").expected()
    found = method(protocol="clean", tier="laptop", data=data, network="plain4", label_noise=0.2)
    assert found.smoothing().epsilon == pytest.approx(ALPHA_BETA / (A + 1), rel=1e-15)
    assert found.smoothing().epsilon == pytest.approx(0.15, rel=1e-15)
    assert found.smoothing().over == "others"


@pytest.mark.parametrize(("a", "alpha"), [(3.0, 0.6), (1.0, 0.4), (6.0, 1.0)])
def test_unsorted_beta_is_label_smoothing_in_expectation(
    monkeypatch: pytest.MonkeyPatch, a: float, alpha: float
) -> None:
    """Exactly: a Gauss rule integrates the gradient over b, whose density is a b^(a-1)."""
    logits, batch = make()
    beta = BetaSmoothing(a=a, alpha=alpha, ranking="none")
    nodes, weights = np.polynomial.legendre.leggauss(8)
    nodes, weights = (nodes + 1) / 2, weights / 2
    total, loss = torch.zeros_like(logits), 0.0
    for b, weight in zip(nodes, weights * a * nodes ** (a - 1), strict=True):
        monkeypatch.setattr(objectives, "draws", lambda a, n, seed, b=b: np.full(n, b))
        total += weight * gradient_of(beta, logits, batch)
        loss += weight * value_of(beta, logits, batch)
    expected = smoothed(alpha / (a + 1))
    torch.testing.assert_close(total, gradient_of(expected, logits, batch), rtol=0, atol=EXACT)
    assert loss == pytest.approx(value_of(expected, logits, batch), rel=1e-14)


def test_unsorted_beta_draws_average_to_label_smoothing() -> None:
    """The same with real draws, to five standard errors; sorted ones do not."""
    classes, copies, rounds = 10, 20_000, 25
    one, batch = make(5, classes)
    logits, labels = one.repeat(copies, 1), batch.labels.repeat(copies)
    error = ALPHA_BETA * math.sqrt(0.0375 / (copies * rounds))
    assert error < 2e-4
    means = {}
    for ranking in ("none", "student"):
        total = torch.zeros(5, classes, dtype=torch.float64)
        beta = BetaSmoothing(a=A, alpha=ALPHA_BETA, ranking=ranking)  # type: ignore[arg-type]
        for step in range(rounds if ranking == "none" else 1):
            gradient = gradient_of(beta, logits, batch_of(labels, step=step)) * len(logits)
            total += gradient.view(copies, 5, classes).mean(0)
        means[ranking] = total / (step + 1)
    expected = 5 * gradient_of(smoothed(ALPHA_BETA / (A + 1)), one, batch)
    assert (means["none"] - expected).abs().max() < 5 * error
    assert (means["student"] - expected).abs().max() > 100 * error
    unmatched = 5 * gradient_of(smoothed(0.16), one, batch)
    assert (means["none"] - unmatched).abs().max() > 9e-3


# ------------------------------------------------------------------------------------------------ what b does in a loss


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("ranking", ["average", "student", "reversed", "none"])
def test_where_b_goes(ranking: str, alpha: float) -> None:
    """b on the label, (1 - b) / (K - 1) on each other class, the largest b to the highest key."""
    logits, batch = make(24, 10)
    beta = BetaSmoothing(a=A, alpha=alpha, ranking=ranking)  # type: ignore[arg-type]
    soft = (target_of(beta, logits, batch) - (1 - alpha) * label_of(batch, 10)) / alpha
    torch.testing.assert_close(soft.sum(1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-13)
    b = on_label(soft, batch)
    others = soft[label_of(batch, 10) == 0].view(24, 9)
    torch.testing.assert_close(others, ((1 - b) / 9)[:, None].expand(-1, 9), rtol=0, atol=1e-13)
    drawn = torch.from_numpy(draws(A, 24, batch.seed))
    torch.testing.assert_close(b.sort().values, drawn.sort().values, rtol=0, atol=1e-13)
    ranker = logits if ranking == "student" else batch.teacher_logits
    order = on_label(ranker.softmax(1), batch).argsort(descending=ranking == "reversed")
    if ranking == "none":
        torch.testing.assert_close(b, drawn, rtol=0, atol=1e-13)
    else:
        assert (b[order].diff() > 0).all()


def test_the_key_is_the_labelled_class_and_no_other_measure() -> None:
    """The row whose answer is surest, by maximum and by entropy, is sure of another class: it gets the smallest b."""
    teacher = torch.tensor([[9.0, 0, 0], [0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    batch = batch_of(torch.tensor([1, 0, 0]), teacher)
    b = on_label(target_of(BetaSmoothing(a=A, alpha=1.0), torch.zeros_like(teacher), batch), batch)
    assert b.argsort().tolist() == [0, 1, 2]


def test_labelled_target_at_the_defaults() -> None:
    """(1 - alpha) + alpha b: in [.4, 1], mean .85, sd .116."""
    rows = 100_000
    batch = batch_of(torch.zeros(rows, dtype=torch.int64))
    beta = BetaSmoothing(a=A, alpha=ALPHA_BETA, ranking="none")
    found = on_label(target_of(beta, torch.zeros(rows, 2, dtype=torch.float64), batch), batch)
    deviation = ALPHA_BETA * math.sqrt(0.0375)
    assert deviation == pytest.approx(0.116, abs=5e-4)
    assert 0.4 - 1e-12 <= found.min().item() < 0.43
    assert 1 - 1e-4 < found.max().item() <= 1 + 1e-12
    assert found.mean().item() == pytest.approx(0.85, abs=5 * deviation / math.sqrt(rows))
    assert found.std().item() == pytest.approx(deviation, rel=0.02)
    observed = beta.observe(torch.zeros(rows, 2, dtype=torch.float64), batch)["target"]
    assert observed.item() == pytest.approx(found.mean().item(), abs=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        BetaSmoothing(a=A, alpha=0.0),
        SelfDistillation(temperature=4.0, alpha=0.0),
        FlatTarget(temperature=4.0, alpha=0.0),
        MatchedSmoothing(temperature=4.0, alpha=0.0),
        EntropyPenalty(weight=0.0),
        smoothed(0.0),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_without_a_prior_every_arm_is_cross_entropy(objective: Objective) -> None:
    logits, batch = make()
    torch.testing.assert_close(
        gradient_of(objective, logits, batch), gradient_of(CrossEntropy(), logits, batch), rtol=0, atol=EXACT
    )
    assert value_of(objective, logits, batch) == pytest.approx(value_of(CrossEntropy(), logits, batch), rel=1e-13)


@pytest.mark.parametrize("ranking", ["average", "none"])
def test_as_a_grows_beta_smoothing_becomes_cross_entropy(ranking: str) -> None:
    logits, batch = make()
    expected = gradient_of(CrossEntropy(), logits, batch)
    gaps = []
    for a in (1e2, 1e4, 1e6, 1e12):
        beta = BetaSmoothing(a=a, alpha=ALPHA_BETA, ranking=ranking)  # type: ignore[arg-type]
        gaps.append(float((gradient_of(beta, logits, batch) - expected).abs().max()))
    assert gaps[0] > 1e-4
    assert gaps[3] < 1e-12
    for one, other in pairwise(gaps[:3]):
        assert one / other == pytest.approx(100, rel=0.05)  # 1 - b is about -log(u) / a


# ------------------------------------------------------------------------------------------------------------- priors


@pytest.mark.parametrize("beta", [0.1, 1.5, 9.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_label_smoothing_is_map_with_one_prior_for_all(classes: int, beta: float) -> None:
    """A = 1 + beta / K gives uniform smoothing by beta / (1 + beta)."""
    logits, batch = make(classes=classes)
    prior = torch.full_like(logits, 1 + beta / classes)
    expected = uniform(beta / (1 + beta))
    torch.testing.assert_close(
        map_gradient(logits, batch, prior, beta), gradient_of(expected, logits, batch), rtol=0, atol=EXACT
    )
    loss = posterior(logits, batch, prior).item() / (1 + beta)
    assert loss == pytest.approx(value_of(expected, logits, batch), rel=1e-13)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_bridge_between_conventions_of_smoothing(classes: int) -> None:
    logits, batch = make(classes=classes)
    library = functional.cross_entropy(logits, batch.labels, label_smoothing=0.3).item()
    released = smoothed(0.3 * (classes - 1) / classes)
    assert value_of(released, logits, batch) == pytest.approx(library, rel=1e-13)
    torch.testing.assert_close(
        gradient_of(released, logits, batch), gradient_of(uniform(0.3), logits, batch), rtol=0, atol=EXACT
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("beta", [2 / 3, 1.5])
def test_self_distillation_is_map_with_the_teachers_prior(temperature: float, beta: float) -> None:
    """A = 1 + beta softmax(t / T) gives (1 - alpha) CE + alpha CE(teacher), alpha = beta / (1 + beta)."""
    logits, batch = make()
    q = (batch.teacher_logits / temperature).softmax(1)
    alpha = beta / (1 + beta)
    expected = SelfDistillation(temperature=temperature, alpha=alpha)
    torch.testing.assert_close(
        map_gradient(logits, batch, 1 + beta * q, beta), gradient_of(expected, logits, batch), rtol=0, atol=EXACT
    )
    # The value differs by the teacher's entropy, which is constant in the student.
    entropy = -(q * q.log()).sum(1).mean().item()
    loss = posterior(logits, batch, 1 + beta * q).item() / (1 + beta)
    assert loss - alpha * entropy == pytest.approx(value_of(expected, logits, batch), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(ALPHA_BETA, 1.5), (ALPHA["clean"], 1.5), (ALPHA["released"], 2 / 3)])
def test_the_weights_of_both_readings_as_strengths_of_a_prior(alpha: float, beta: float) -> None:
    assert alpha / (1 - alpha) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("ranking", ["average", "none"])
def test_beta_smoothing_is_map_with_its_soft_label_as_prior(ranking: str) -> None:
    """A = 1 + beta (soft label), beta = alpha / (1 - alpha): 1.5 at .6."""
    logits, batch = make()
    objective = BetaSmoothing(a=A, alpha=ALPHA_BETA, ranking=ranking)  # type: ignore[arg-type]
    beta = ALPHA_BETA / (1 - ALPHA_BETA)
    b = torch.from_numpy(draws(A, 16, batch.seed))
    if ranking == "average":
        ranks = on_label(batch.teacher_logits.softmax(1), batch).argsort().argsort()
        b = b.sort().values[ranks]
    soft = ((1 - b) / 9)[:, None].expand(16, 10).scatter(1, batch.labels[:, None], b[:, None])
    torch.testing.assert_close(
        map_gradient(logits, batch, 1 + beta * soft, beta), gradient_of(objective, logits, batch), rtol=0, atol=EXACT
    )


def test_an_unnormalised_prior_weighs_the_examples() -> None:
    """A = 1 + beta exp(t / T): a row counts sum_c exp(t_c / T) times; where that is constant, all rows alike."""
    logits, batch = make()
    beta, temperature = 0.7, 4.0
    raw = (batch.teacher_logits / temperature).exp()
    leaf = logits.clone().requires_grad_()
    found = torch.autograd.grad(posterior(leaf, batch, 1 + beta * raw), leaf)[0]
    for row, weight in enumerate(beta * raw.sum(1)):
        alone = batch_of(batch.labels[row : row + 1], batch.teacher_logits[row : row + 1])
        alpha = float(weight / (1 + weight))
        one = gradient_of(SelfDistillation(temperature=temperature, alpha=alpha), logits[row : row + 1], alone)
        torch.testing.assert_close(16 * found[row], (1 + weight) * one[0], rtol=0, atol=1e-13)
    constant = raw / raw.sum(1, keepdim=True)  # logits shifted by row, which no softmax sees
    plain = gradient_of(SelfDistillation(temperature=temperature, alpha=beta / (1 + beta)), logits, batch)
    torch.testing.assert_close(map_gradient(logits, batch, 1 + beta * constant, beta), plain, rtol=0, atol=EXACT)


# ---------------------------------------------------------------------------------------------------------- temperature


def test_self_distillation_falls_to_label_smoothing_like_one_over_t() -> None:
    logits, batch = make(scale=1.0)
    expected = gradient_of(uniform(0.6), logits, batch)
    gap = {}
    for temperature in (4.0, 20.0, 100.0, 1e4):
        found = gradient_of(SelfDistillation(temperature=temperature, alpha=0.6), logits, batch)
        gap[temperature] = float((found - expected).abs().max())
    # Instance-dependent; of the size that the fact sheet has for its own instance.
    for temperature, size in ((4.0, 2.2e-3), (20.0, 2.8e-4), (100.0, 5.0e-5), (1e4, 5e-7)):
        assert size / 4 < gap[temperature] < 4 * size, temperature
    assert gap[100.0] / gap[1e4] == pytest.approx(100, rel=0.02)
    assert gap[20.0] / gap[100.0] == pytest.approx(5, rel=0.1)
    assert 4 < gap[4.0] / gap[20.0] < 8.5


def test_at_a_temperature_of_ten_thousand_it_is_label_smoothing() -> None:
    logits, batch = make(scale=1.0)
    found = gradient_of(SelfDistillation(temperature=1e4, alpha=0.6), logits, batch)
    torch.testing.assert_close(found, gradient_of(uniform(0.6), logits, batch), rtol=0, atol=2e-6)
    limit = gradient_of(SelfDistillation(temperature=1e15, alpha=0.6), logits, batch)
    torch.testing.assert_close(limit, gradient_of(uniform(0.6), logits, batch), rtol=0, atol=EXACT)


def test_first_order_target_of_a_hot_teacher() -> None:
    """1 / K + (t_c - mean t) / (K T), what is left falls like 1 / T^2."""
    logits, batch = make()
    t = batch.teacher_logits
    left = []
    for temperature in (100.0, 1000.0):
        objective = SelfDistillation(temperature=temperature, alpha=0.6)
        soft = (target_of(objective, logits, batch) - 0.4 * label_of(batch, 10)) / 0.6
        first = 1 / 10 + (t - t.mean(1, keepdim=True)) / (10 * temperature)
        left.append(float((soft - first).abs().max()))
    assert left[0] < 2e-3
    assert left[0] / left[1] == pytest.approx(100, rel=0.1)


def test_the_teacher_alone_is_softened_and_nothing_is_scaled() -> None:
    """Unlike Hinton's distillation: the student at temperature 1, no factor T^2."""
    logits, batch = make()
    for temperature in (1.0, 4.0):
        q = (batch.teacher_logits / temperature).softmax(1)
        target = 0.4 * label_of(batch, 10) + 0.6 * q
        found = target_of(SelfDistillation(temperature=temperature, alpha=0.6), logits, batch)
        torch.testing.assert_close(found, target, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------- matched mean targets


def test_matched_smoothing_is_label_smoothing_by_the_mean_doubt_of_the_teacher() -> None:
    """eps = alpha (1 - mean p_y), in the released convention."""
    logits, batch = make()
    mean = on_label((batch.teacher_logits / 1.5).softmax(1), batch).mean().item()
    epsilon = 0.6 * (1 - mean)
    matched = MatchedSmoothing(temperature=1.5, alpha=0.6)
    torch.testing.assert_close(
        gradient_of(matched, logits, batch), gradient_of(smoothed(epsilon), logits, batch), rtol=0, atol=EXACT
    )

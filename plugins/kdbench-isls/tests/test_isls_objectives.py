"""The losses of the arms against their references, and each for what sets it apart from the others."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from isls_batches import batch_of, gradient_of, label_of, make, on_label, target_of, value_of
from torch import Tensor, nn

from kdbench.component import load_object
from kdbench.plugins import registry
from kdbench.testing import assert_loss_parity
from kdbench.training import Distillation, LabelSmoothing, Objective
from kdbench.training.followers import WeightAverage
from kdbench_isls.objectives import (
    BetaSmoothing,
    EntropyPenalty,
    FlatTarget,
    FlooredSmoothing,
    MatchedSmoothing,
    SelfDistillation,
)
from kdbench_isls.ranking import Ranking, draws, quantiles, shares

RANKINGS: tuple[Ranking, ...] = ("average", "student", "none", "reversed")
DISTILLED = (SelfDistillation, FlatTarget, MatchedSmoothing)

OBJECTIVES: dict[str, Objective] = {
    "entropy": EntropyPenalty(weight=0.3),
    "LS released": FlooredSmoothing(epsilon=0.15, log_floor=1e-8),
    "LS without a floor": FlooredSmoothing(epsilon=0.15, log_floor=0.0),
    "SD": SelfDistillation(temperature=4.0, alpha=0.6),
    "SD released": SelfDistillation(temperature=4.0, alpha=0.4, log_floor=1e-8),
    "SD soft alone": SelfDistillation(temperature=1.5, alpha=1.0),
    "SD permuted": SelfDistillation(temperature=1.5, alpha=0.6, confidence="permuted"),
    "SD permuted released": SelfDistillation(temperature=4.0, alpha=0.4, confidence="permuted", log_floor=1e-8),
    "SD flat": FlatTarget(temperature=1.5, alpha=0.6),
    "LS matched": MatchedSmoothing(temperature=1.5, alpha=0.6),
    **{f"Beta {ranking}": BetaSmoothing(a=3.0, alpha=0.6, ranking=ranking) for ranking in RANKINGS},
    "Beta released": BetaSmoothing(a=3.0, alpha=0.6, log_floor=1e-8),
    "Beta unsorted released": BetaSmoothing(a=3.0, alpha=0.6, ranking="none", log_floor=1e-8),
    "Beta soft alone": BetaSmoothing(a=1.0, alpha=1.0),
    "Beta quantiles": BetaSmoothing(a=3.0, alpha=0.6, values="quantiles"),
    "Beta quantiles by student": BetaSmoothing(a=3.0, alpha=0.6, values="quantiles", ranking="student"),
}


def tempered(objective: Objective, temperature: float) -> Objective:
    if not hasattr(objective, "temperature"):
        return objective
    found: Objective = msgspec.structs.replace(objective, temperature=temperature)
    return found


# ----------------------------------------------------------------------------------------------- losses and references


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("step", [0, 2**62])
def test_the_loss_is_the_reference(name: str, step: int) -> None:
    """Value and gradient, in single and double precision; nothing reaches the teacher, no input is modified."""
    objective = OBJECTIVES[name]

    def loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        return tempered(objective, temperature).loss(student_logits, batch_of(labels, teacher_logits, step=step))

    def reference(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        return tempered(objective, temperature).reference(student_logits, batch_of(labels, teacher_logits, step=step))

    assert_loss_parity(
        loss,
        reference,
        shapes=((5, 2), (1, 3), (7, 10), (24, 10), (3, 100)),
        dtypes=(torch.float32, torch.float64),
        temperatures=(1.0, 4.0, 1.5) if hasattr(objective, "temperature") else (1.0,),
    )


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_no_gradient_reaches_whoever_ranks_or_teaches(name: str) -> None:
    logits, batch = make()
    teacher = batch.teacher_logits.requires_grad_()
    leaf = logits.requires_grad_()
    (reached,) = torch.autograd.grad(OBJECTIVES[name].loss(leaf, batch), [teacher], allow_unused=True)
    assert reached is None or not reached.any()


@pytest.mark.parametrize("name", sorted(name for name in OBJECTIVES if name != "entropy" and "released" not in name))
def test_targets_are_distributions_and_constant_in_the_student(name: str) -> None:
    """By the gradient p - target; with a ranking by the student too, whose gradient would show here."""
    logits, batch = make(24)
    target = target_of(OBJECTIVES[name], logits, batch)
    torch.testing.assert_close(target.sum(1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-13)
    assert target.min() > -1e-13


@pytest.mark.parametrize("name", ["Beta none", "Beta student"])
def test_without_a_follower_no_teacher_is_asked(name: str) -> None:
    logits, batch = make()
    alone = batch._replace(teacher_logits=torch.empty(0))
    assert torch.equal(gradient_of(OBJECTIVES[name], logits, alone), gradient_of(OBJECTIVES[name], logits, batch))


def test_published_objectives_are_these() -> None:
    published = {
        "beta-smoothing": BetaSmoothing,
        "self-distillation": SelfDistillation,
        "flat-self-distillation": FlatTarget,
        "matched-smoothing": MatchedSmoothing,
        "entropy-penalty": EntropyPenalty,
    }
    for name, kind in published.items():
        info = registry().objectives[name]
        assert registry().owner("objectives", name).distribution == "kdbench-isls"
        assert type(load_object(info.create)(**info.example)) is kind


# ----------------------------------------------------------------------------------------------- the released logarithm


def written_out(target: Tensor, logits: Tensor, floor: float) -> Tensor:
    return -(target * (logits.softmax(1) + floor).log()).sum(1).mean()


@pytest.mark.parametrize("name", ["SD released", "SD permuted released", "Beta released", "Beta unsorted released"])
def test_the_floor_stands_inside_the_logarithm_of_the_soft_term_alone(name: str) -> None:
    logits, batch = make(scale=6.0)  # probabilities far below the floor occur
    objective: Any = OBJECTIVES[name]
    exact = msgspec.structs.replace(objective, log_floor=0.0, alpha=1.0)
    soft = target_of(exact, logits, batch)
    hard = torch.nn.functional.cross_entropy(logits, batch.labels)
    expected = (1 - objective.alpha) * hard + objective.alpha * written_out(soft, logits, 1e-8)
    if isinstance(objective, SelfDistillation):
        expected = expected - objective.alpha * torch.special.entr(soft.clamp_min(0)).sum(1).mean()
    assert value_of(objective, logits, batch) == pytest.approx(expected.item(), rel=1e-9)
    assert logits.softmax(1).min() < 1e-9
    without = value_of(msgspec.structs.replace(objective, log_floor=0.0), logits, batch)
    assert value_of(objective, logits, batch) < without - 1e-3


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 0.6])
def test_released_label_smoothing_without_its_floor_is_label_smoothing(epsilon: float, classes: int) -> None:
    logits, batch = make(classes=classes)
    floored, exact = FlooredSmoothing(epsilon=epsilon, log_floor=0.0), LabelSmoothing(epsilon=epsilon, over="others")
    assert value_of(floored, logits, batch) == pytest.approx(value_of(exact, logits, batch), rel=1e-13)
    torch.testing.assert_close(
        gradient_of(floored, logits, batch), gradient_of(exact, logits, batch), rtol=1e-12, atol=1e-16
    )
    assert floored.observe(logits, batch)["target"].item() == exact.observe(logits, batch)["target"].item()


def test_released_label_smoothing_floors_both_of_its_terms() -> None:
    """The floor is in the label's logarithm too, since the released code has one cross-entropy for the whole target."""
    logits, batch = make(scale=6.0)
    target = label_of(batch, 10)
    target = target * (1 - 0.15) + (1 - target) * 0.15 / 9
    expected = written_out(target, logits, 1e-8).item()
    assert value_of(FlooredSmoothing(epsilon=0.15, log_floor=1e-8), logits, batch) == pytest.approx(expected, rel=1e-12)
    assert expected < value_of(LabelSmoothing(epsilon=0.15, over="others"), logits, batch) - 1e-3


@pytest.mark.parametrize("objective", [SelfDistillation(temperature=1.0, alpha=1.0), BetaSmoothing(a=3.0, alpha=1.0)])
def test_the_floor_clips_the_gradient_where_the_student_gives_nothing(objective: Any) -> None:
    logits = torch.tensor([[0.0, -60.0]], dtype=torch.float64)
    batch = batch_of(torch.tensor([1]), torch.zeros(1, 2, dtype=torch.float64))
    floored = msgspec.structs.replace(objective, log_floor=1e-8)
    assert gradient_of(objective, logits, batch)[0, 1] < -0.1
    assert abs(gradient_of(floored, logits, batch)[0, 1]) < 1e-12


# -------------------------------------------------------------------------------------------------- permuted confidence

PERMUTED = SelfDistillation(temperature=1.5, alpha=1.0, confidence="permuted")


@pytest.mark.parametrize("classes", [2, 10])
def test_the_label_has_the_confidence_of_another_and_the_others_keep_their_shares(classes: int) -> None:
    logits, batch = make(64, classes)
    target = target_of(PERMUTED, logits, batch)
    q = (batch.teacher_logits / 1.5).softmax(1)
    mine, theirs = on_label(q, batch), on_label(target, batch)
    torch.testing.assert_close(theirs.sort().values, mine.sort().values, rtol=0, atol=1e-13)
    partner = (theirs[:, None] - mine[None, :]).abs().argmin(1)
    assert sorted(partner.tolist()) == list(range(64))
    assert (partner == torch.arange(64)).sum() < 8  # one on average keeps its own
    label = label_of(batch, classes).bool()
    ratio = target[~label].view(64, -1) / q[~label].view(64, -1)
    torch.testing.assert_close(ratio, ((1 - theirs) / (1 - mine))[:, None].expand_as(ratio), rtol=1e-8, atol=0)


def test_who_changes_with_whom_is_anew_in_every_step_and_the_same_when_repeated() -> None:
    found = [on_label(target_of(PERMUTED, *make(64, step=step)), make(64)[1]) for step in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confidences_that_round_to_1_change_places_too(dtype: torch.dtype) -> None:
    """Where p rounds to 1 nothing is left for the other classes, unless one reckons in log-odds."""
    rows, classes = 32, 10
    logits, batch = make(rows, classes)
    teacher = batch.teacher_logits.clone()
    sure = torch.arange(rows) % 2 == 0
    teacher[sure, batch.labels[sure]] += 60.0  # far beyond what 1 - p can hold
    batch = batch._replace(teacher_logits=teacher.to(dtype))
    objective = msgspec.structs.replace(PERMUTED, temperature=1.0)
    assert (on_label(teacher.to(dtype).softmax(1), batch)[sure] == 1).all()
    target = target_of(objective, logits.to(dtype), batch)
    assert target.isfinite().all()
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(target.sum(1), torch.ones(rows, dtype=dtype), rtol=0, atol=tolerance)
    theirs = on_label(target, batch)
    mine = on_label(teacher.softmax(1), batch).to(dtype)
    torch.testing.assert_close(theirs.sort().values, mine.sort().values, rtol=0, atol=tolerance)
    # A sure example that got the doubt of another spreads it as its own teacher says, however small that was.
    doubtful = sure & (theirs < 0.9)
    assert doubtful.any()
    label = label_of(batch, classes).bool()
    rest = teacher.masked_fill(label, -math.inf).softmax(1)
    expected = (1 - theirs)[:, None] * rest.to(dtype)
    torch.testing.assert_close(target.masked_fill(label, 0)[doubtful], expected[doubtful], rtol=0, atol=10 * tolerance)


# -------------------------------------------------------------------------------------------------------- mean targets


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_flat_and_matched_give_the_label_what_self_distillation_does(temperature: float) -> None:
    logits, batch = make()
    made = {kind: kind(temperature=temperature, alpha=0.6) for kind in DISTILLED}
    labelled = {kind: on_label(target_of(objective, logits, batch), batch) for kind, objective in made.items()}
    own = labelled[SelfDistillation]
    torch.testing.assert_close(labelled[FlatTarget], own, rtol=0, atol=1e-14)
    torch.testing.assert_close(labelled[MatchedSmoothing], own.mean().expand(16), rtol=0, atol=1e-14)
    assert own.std() > 0.02
    told = [made[kind].observe(logits, batch)["target"].item() for kind in DISTILLED]
    assert told == [pytest.approx(own.mean().item(), abs=1e-15)] * 3
    for kind in (FlatTarget, MatchedSmoothing):  # and the rest is even
        rest = target_of(made[kind], logits, batch)[label_of(batch, 10) == 0].view(16, 9)
        torch.testing.assert_close(rest, ((1 - labelled[kind]) / 9)[:, None].expand(16, 9), rtol=0, atol=1e-14)


def test_permuting_leaves_the_mean_target_of_a_batch() -> None:
    logits, batch = make()
    own, permuted = OBJECTIVES["SD soft alone"], PERMUTED
    means = [on_label(target_of(objective, logits, batch), batch).mean().item() for objective in (own, permuted)]
    assert means[0] == pytest.approx(means[1], abs=1e-14)
    assert permuted.observe(logits, batch)["target"].item() == pytest.approx(means[1], abs=1e-14)


@pytest.mark.parametrize("name", sorted(name for name in OBJECTIVES if name != "entropy"))
def test_what_is_observed_is_the_mean_target_of_the_label(name: str) -> None:
    logits, batch = make()
    objective: Any = OBJECTIVES[name]
    exact = msgspec.structs.replace(objective, log_floor=0.0) if hasattr(objective, "log_floor") else objective
    told = objective.observe(logits, batch)
    assert set(told) == {"target"}
    assert told["target"].dim() == 0
    assert told["target"].item() == pytest.approx(
        on_label(target_of(exact, logits, batch), batch).mean().item(), abs=1e-13
    )


def test_the_entropy_penalty_has_no_target() -> None:
    logits, batch = make()
    assert EntropyPenalty(weight=0.3).observe(logits, batch) == {}
    p = logits.softmax(1).numpy()
    expected = -np.log(p[np.arange(16), batch.labels]).mean() - 0.3 * scipy.stats.entropy(p, axis=1).mean()
    assert value_of(EntropyPenalty(weight=0.3), logits, batch) == pytest.approx(expected, rel=1e-12)


def test_self_distillation_is_hintons_at_temperature_1_alone() -> None:
    logits, batch = make()
    for temperature, alike in ((1.0, True), (4.0, False)):
        mine = gradient_of(SelfDistillation(temperature=temperature, alpha=0.6), logits, batch)
        hintons = gradient_of(Distillation(temperature=temperature, alpha=0.6), logits, batch)
        assert torch.allclose(mine, hintons, rtol=0, atol=1e-14) == alike


# -------------------------------------------------------------------------------------------------------------- ranking


def shares_of(ranking: Ranking, logits: Tensor, batch: Any, values: Any = "draws") -> Tensor:
    return on_label(target_of(BetaSmoothing(a=3.0, alpha=1.0, ranking=ranking, values=values), logits, batch), batch)


def test_rankings_share_the_draws_of_a_batch() -> None:
    """So that Beta and its controls differ in who gets which share, and in nothing else."""
    logits, batch = make(128)
    found = {ranking: shares_of(ranking, logits, batch) for ranking in RANKINGS}
    drawn = torch.from_numpy(np.sort(draws(3.0, 128, batch.seed)))
    for given in found.values():
        torch.testing.assert_close(given.sort().values, drawn, rtol=0, atol=1e-13)
    for one in RANKINGS:
        for other in RANKINGS:
            assert (one == other) == torch.equal(found[one], found[other])
    # Backwards is the mirror image: the ranks of the two add up to n + 1.
    assert torch.equal(
        found["average"].argsort().argsort() + found["reversed"].argsort().argsort(), torch.full((128,), 127)
    )
    other_step = shares_of("none", *make(128, step=12))
    assert not torch.equal(other_step, found["none"])


def test_quantiles_are_given_out_as_draws_are() -> None:
    logits, batch = make(128)
    for ranking in ("average", "student"):
        drawn, fixed = (shares_of(ranking, logits, batch, values) for values in ("draws", "quantiles"))
        assert torch.equal(drawn.argsort(), fixed.argsort())
        torch.testing.assert_close(fixed.sort().values, torch.from_numpy(quantiles(3.0, 128)), rtol=0, atol=1e-13)
    # They do not vary between batches.
    again = shares_of("average", *make(128, step=12), "quantiles")
    assert torch.equal(again, shares_of("average", logits, batch, "quantiles"))


def test_equal_keys_keep_the_order_of_the_batch() -> None:
    values = draws(3.0, 6, 0)
    ascending = np.sort(values).tolist()
    assert shares(values, torch.zeros(6)).tolist() == ascending
    assert shares(values, torch.zeros(6), reverse=True).tolist() == ascending[::-1]
    found = shares(values, torch.tensor([1.0, 0, 1, 0, 1, 0]))
    assert found.tolist() == [ascending[i] for i in (3, 0, 4, 1, 5, 2)]
    assert shares(values, None).tolist() == values.tolist()
    assert found.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_probabilities_that_round_to_1_or_0_are_ranked_all_the_same(dtype: torch.dtype, sign: int) -> None:
    """A network that fits its training set is this sure of most of it: ties there would rank by place in the batch."""
    rows = 12
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    own = sign * torch.linspace(20, 80, rows, dtype=dtype)[order]
    teacher = torch.zeros(rows, 10, dtype=dtype)
    teacher[:, 0] = own
    assert sign < 0 or len(set(teacher.float().softmax(1)[:, 0].tolist())) == 1
    batch = batch_of(torch.zeros(rows, dtype=torch.int64), teacher)
    found = shares_of("average", torch.zeros(rows, 10, dtype=torch.float64), batch)
    assert found.argsort().tolist() == own.argsort().tolist()


# ------------------------------------------------------------------------------------------------------ draws, follower


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0, 12.0])
def test_draws_are_of_beta_a_1(a: float) -> None:
    found = draws(a, 20_000, 4)
    assert scipy.stats.kstest(found, scipy.stats.beta(a, 1).cdf).pvalue > 1e-3
    assert found.min() > 0
    assert found.max() <= 1
    wrong = scipy.stats.beta(a * 1.1, 1).cdf
    assert scipy.stats.kstest(found, wrong).pvalue < 1e-3


def test_draws_depend_on_their_seed_alone() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert np.array_equal(draws(3.0, 100, 7), draws(3.0, 100, 7))
    assert not np.array_equal(draws(3.0, 100, 7), draws(3.0, 100, 8))
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]
    # Seeds that follow each other give draws that have nothing to do with each other.
    rho = scipy.stats.spearmanr(draws(3.0, 5000, 0), draws(3.0, 5000, 1)).statistic
    assert abs(rho) < 0.06


def test_the_average_trains_along_where_it_ranks() -> None:
    def fresh() -> nn.Module:
        return nn.Linear(2, 3)

    for ranking in RANKINGS:
        found = BetaSmoothing(a=3.0, alpha=0.6, ranking=ranking, cap=0.5).follower(fresh)
        assert isinstance(found, WeightAverage) == (ranking in ("average", "reversed"))
    average = BetaSmoothing(a=3.0, alpha=0.6, cap=0.25).follower(fresh)
    assert isinstance(average, WeightAverage)
    (start, student) = (average.average.module.weight.detach().clone(), nn.Linear(2, 3))  # type: ignore[union-attr]
    average.follow(student)
    expected = 0.25 * start + 0.75 * student.weight.detach()
    torch.testing.assert_close(average.average.module.weight.detach(), expected)  # type: ignore[union-attr]
    assert all(each.follower(fresh) is None for each in OBJECTIVES.values() if not isinstance(each, BetaSmoothing))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_whoever_trains_a_network_along_pays_a_forward_pass_for_it(name: str) -> None:
    follower = OBJECTIVES[name].follower(lambda: nn.Linear(2, 3))
    assert OBJECTIVES[name].forwards == (0.0 if follower is None else 1.0)


@pytest.mark.parametrize("name", sorted(name for name in OBJECTIVES if name.startswith("Beta")))
def test_observing_needs_no_ranking(name: str) -> None:
    """Whoever gets which share, the mean is theirs: it can be told without asking who ranks."""
    logits, batch = make()
    alone = batch._replace(teacher_logits=torch.empty(0))
    told = (OBJECTIVES[name].observe(torch.empty_like(logits), each)["target"].item() for each in (alone, batch))
    assert len(set(told)) == 1

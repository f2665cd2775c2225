"""The losses on token states: against their formulas, at values known beforehand, and for what they must not see."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vid_states import gradients, padded, random_states, same

from kdbench.errors import KdbenchError
from kdbench_vidlankd import references
from kdbench_vidlankd.losses import (
    halves,
    hinge,
    nst,
    nt_xent,
    regression,
    soft_label,
    token_mean,
    unit,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, tuple[Loss, Loss]] = {
    "nst": (
        lambda s, t, mask: nst(s, t, mask=mask),
        lambda s, t, mask: references.nst_by_kernels(s, t, mask).mean(),
    ),
    "nst by length": (
        lambda s, t, mask: nst(s, t, divide="length", mask=mask),
        lambda s, t, mask: references.nst_by_kernels(s, t, mask).sum() / s.shape[1],
    ),
    "regression": (
        lambda s, t, mask: regression(unit(s), unit(t), mask=mask),
        references.regression_by_cosines,
    ),
    "nt-xent": (
        lambda s, t, mask: nt_xent(unit(s), unit(t), temperature=0.3, mask=mask),
        lambda s, t, mask: references.contrast_by_pairs(unit(s), unit(t), 0.3, mask),
    ),
    "nt-xent released": (
        lambda s, t, mask: nt_xent(unit(s), unit(t), temperature=1.0, released=True, mask=mask),
        lambda s, t, mask: references.contrast_by_pairs(unit(s), unit(t), 1.0, mask) / (2 * len(s)),
    ),
}
SHAPES = [(4, 5, 6), (3, 7, 4), (2, 3, 3), (5, 2, 9)]


def whole(blocks: int, length: int) -> Tensor:
    return torch.ones(blocks, length, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------ against the formulas


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask_of", [whole, padded])
def test_a_loss_is_its_formula(name: str, shape: tuple[int, int, int], mask_of: Callable[[int, int], Tensor]) -> None:
    """Value and gradient in the states of both, in double and in single precision."""
    fast, plain = LOSSES[name]
    mask = mask_of(*shape[:2])
    states = [random_states(*shape, seed=seed).requires_grad_() for seed in (1, 2)]
    expected = gradients(lambda: plain(*states, mask), *states)
    same(gradients(lambda: fast(*states, mask), *states), expected)
    single = [leaf.detach().float().requires_grad_() for leaf in states]
    same(gradients(lambda: fast(*single, mask), *single), expected, rtol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    """By differences."""
    mask = padded(3, 4)
    states = [random_states(3, 4, 3, seed=seed).requires_grad_() for seed in (5, 6)]
    assert torch.autograd.gradcheck(lambda s, t: LOSSES[name][0](s, t, mask), states)


@pytest.mark.parametrize("name", LOSSES)
def test_no_mask_is_a_mask_of_real_tokens(name: str) -> None:
    student, teacher = (unit(random_states(4, 5, 6, seed=seed)) for seed in (1, 2))
    unmasked = {
        "nst": nst(student, teacher),
        "nst by length": nst(student, teacher, divide="length"),
        "regression": regression(student, teacher),
        "nt-xent": nt_xent(student, teacher, temperature=0.3),
        "nt-xent released": nt_xent(student, teacher, temperature=1.0, released=True),
    }
    torch.testing.assert_close(unmasked[name], LOSSES[name][0](student, teacher, whole(4, 5)), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_is_not_seen(name: str) -> None:
    """Whatever stands there: the value stays, and no gradient arrives."""
    mask = padded(4, 5)
    student, teacher = (random_states(4, 5, 6, seed=seed) for seed in (1, 2))
    fast = LOSSES[name][0]
    other = student + (~mask)[..., None] * 1e3
    leaf = other.requires_grad_()
    value, (gradient,) = gradients(lambda: fast(leaf, teacher - (~mask)[..., None] * 30.0, mask), leaf)
    torch.testing.assert_close(value, fast(student, teacher, mask), rtol=1e-13, atol=0)
    assert not gradient[~mask].any()
    assert gradient[mask].any()


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_input_gives_the_same_bits(name: str) -> None:
    """With torch's deterministic algorithms alone, as in every stage."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        leaf = random_states(6, 8, 16, dtype=torch.float32).requires_grad_()
        teacher, mask = random_states(6, 8, 16, seed=1, dtype=torch.float32), padded(6, 8)
        first, second = (gradients(lambda: LOSSES[name][0](leaf, teacher, mask), leaf) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1][0], second[1][0])


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_blocks_does_not_matter(name: str) -> None:
    student, teacher, mask = random_states(5, 4, 6), random_states(5, 4, 6, seed=1), padded(5, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    fast = LOSSES[name][0]
    torch.testing.assert_close(
        fast(student[order], teacher[order], mask[order]), fast(student, teacher, mask), rtol=1e-13, atol=0
    )


# ----------------------------------------------------------------------------------------------------------------- NST


def kernel_means(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float, float]:
    """Mean k(s, s), k(s, t), k(t, t) of one block ``[L, H]``, neuron by neuron."""

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        values = []
        for one in x.T:
            for other in y.T:
                values.append((np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))) ** 2)
        return float(np.mean(values))

    return mean(student, student), mean(student, teacher), mean(teacher, teacher)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
def test_nst_is_the_frobenius_distance_of_gram_matrices(blocks: int, length: int, hidden: int, seed: int) -> None:
    """Kernel values, a pair of neurons at a time, against ``|| S'S/H - T'T/H ||^2`` written out; and what nst says."""
    student, teacher = (random_states(blocks, length, hidden, seed=seed + part) for part in (0, 1))
    discrepancies, distances = [], []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        ss, cross, tt = kernel_means(s, t)
        discrepancies.append(ss - 2 * cross + tt)
        own, target = (x / np.linalg.norm(x, axis=0) for x in (s, t))  # [L, H], neurons in columns
        distances.append(np.linalg.norm(own @ own.T / hidden - target @ target.T / hidden) ** 2)
    np.testing.assert_allclose(discrepancies, distances, rtol=1e-12, atol=1e-14)
    assert nst(student, teacher).item() == pytest.approx(np.mean(distances), rel=1e-12, abs=1e-14)


def test_nst_without_the_constant_is_less_by_the_teachers_kernel() -> None:
    student, teacher = random_states(3, 5, 8).requires_grad_(), random_states(3, 5, 8, seed=1)
    constant = np.mean([kernel_means(t, t)[2] for t in teacher.numpy()])
    part = gradients(lambda: nst(student, teacher, whole=False), student)
    full = gradients(lambda: nst(student, teacher), student)
    assert full[0].item() - part[0].item() == pytest.approx(constant, rel=1e-12)
    torch.testing.assert_close(part[1][0], full[1][0], rtol=1e-11, atol=1e-15)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)))
def test_nst_does_not_see_an_order_of_neurons(one: list[int], other: list[int]) -> None:
    student, teacher = random_states(2, 5, 8), random_states(2, 5, 8, seed=1)
    expected = nst(student, teacher)
    torch.testing.assert_close(nst(student[..., one], teacher[..., other]), expected, rtol=1e-12, atol=0)


def test_nst_is_zero_for_equal_relations_and_sees_a_change_of_them() -> None:
    states = random_states(2, 5, 8)
    signs = torch.tensor([1.0, -1, 1, 1, -1, 1, -1, -1], dtype=torch.float64)
    assert nst(states, states * signs * 3).item() < 1e-30
    swapped = states[:, [1, 0, 2, 3, 4]]
    assert nst(states, swapped).item() > 1e-3


def test_nst_sees_nothing_across_blocks() -> None:
    """It is the mean of what each block has alone."""
    student, teacher = random_states(3, 5, 8), random_states(3, 5, 8, seed=1)
    apart = torch.stack([nst(s[None], t[None]) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(nst(student, teacher), apart.mean(), rtol=1e-13, atol=0)


def test_nst_takes_a_teacher_of_another_width() -> None:
    student, teacher, mask = random_states(3, 5, 8), random_states(3, 5, 12, seed=1), padded(3, 5)
    expected = references.nst_by_kernels(student, teacher, mask).mean()
    torch.testing.assert_close(nst(student, teacher, mask=mask), expected, rtol=1e-12, atol=0)


def test_the_released_division_weighs_a_quarter_at_32_blocks_of_128() -> None:
    """And unrelated random states of 512 units are then worth about a thousandth: little beside a masked-LM loss."""
    student, teacher = (random_states(32, 128, 512, seed=seed, dtype=torch.float32) for seed in (0, 1))
    released, mean = nst(student, teacher, divide="length").item(), nst(student, teacher).item()
    assert released == pytest.approx(0.25 * mean, rel=1e-6)
    assert released == pytest.approx(0.25 * 2 / 512, rel=0.05)
    assert 0.9e-3 < released < 1.1e-3


# ---------------------------------------------------------------------------------------------------------- regression


def test_regression_is_between_0_and_4() -> None:
    states = unit(random_states(2, 3, 7))
    assert regression(states, states).item() == 0
    assert regression(states, -states).item() == pytest.approx(4, rel=1e-14)
    one, other = torch.eye(2, dtype=torch.float64)
    assert regression(one.expand(2, 3, 2), other.expand(2, 3, 2)).item() == pytest.approx(2, rel=1e-14)


# ------------------------------------------------------------------------------------------------------------- NT-Xent


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_nt_xent_has_twice_the_other_blocks_as_negatives(blocks: int) -> None:
    """Where all states are one, every choice is as likely: log of the positive and 2 (B - 1) negatives."""
    states = unit(random_states(1, 1, 6)).expand(blocks, 4, 6)
    expected = math.log(1 + 2 * (blocks - 1))
    assert nt_xent(states, states, temperature=0.5).item() == pytest.approx(expected, rel=1e-14, abs=1e-14)
    released = nt_xent(states, states, temperature=1.0, released=True).item()
    assert released == pytest.approx(expected / (2 * blocks), rel=1e-14, abs=1e-14)


def test_nt_xent_compares_the_same_position_alone() -> None:
    student, teacher = (unit(random_states(4, 5, 6, seed=seed)) for seed in (0, 1))
    apart = [nt_xent(student[:, [p]], teacher[:, [p]], temperature=0.2) for p in range(5)]
    together = nt_xent(student, teacher, temperature=0.2)
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-13, atol=0)


def test_nt_xent_leaves_out_padding_as_negative() -> None:
    """At a position that is real in two blocks of four, each anchor has 2 (2 - 1) negatives."""
    states = unit(random_states(1, 1, 6)).expand(4, 2, 6)
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    expected = (8 * math.log(7) + 4 * math.log(3)) / 12
    assert nt_xent(states, states, temperature=1.0, mask=mask).item() == pytest.approx(expected, rel=1e-14)


def test_nt_xent_prefers_the_pair() -> None:
    states = unit(random_states(6, 3, 32))
    matched, shuffled = (nt_xent(states, other, temperature=0.07).item() for other in (states, states.roll(1, 0)))
    assert matched < 0.05 < 5 < shuffled


# ---------------------------------------------------------------------------------------------------------- soft label


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_divergence_by_token(temperature: float) -> None:
    student, teacher = (random_states(1, 12, 30, seed=seed, scale=2.0)[0] for seed in (0, 1))
    student.requires_grad_()
    expected = gradients(lambda: references.soft_label_by_sum(student, teacher, temperature), student)
    same(gradients(lambda: soft_label(student, teacher, temperature=temperature), student), expected)
    assert soft_label(teacher, teacher, temperature=temperature).item() == pytest.approx(0, abs=1e-15)


def test_soft_labels_are_not_scaled_by_the_temperature() -> None:
    """A divergence of logits 2 t at temperature 2 is that of logits t at 1."""
    student, teacher = (random_states(1, 12, 30, seed=seed)[0] for seed in (0, 1))
    torch.testing.assert_close(
        soft_label(2 * student, 2 * teacher, temperature=2.0), soft_label(student, teacher, temperature=1.0)
    )


def test_the_mean_over_elements_times_1000_of_the_old_code_is_1000_by_vocabulary() -> None:
    student, teacher = (random_states(1, 12, 30, seed=seed)[0] for seed in (0, 1))
    old = torch.nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean() * 1000
    torch.testing.assert_close(old, 1000 / 30 * soft_label(student, teacher, temperature=1.0), rtol=1e-12, atol=0)


# --------------------------------------------------------------------------------------------------------------- hinge


def test_the_hinge_at_its_known_values() -> None:
    """t.v = 1 and t.v_neg = 0 cost nothing at margin 1; a clip that is its own negative costs the margin a token."""
    own, other = torch.eye(4, dtype=torch.float64)[:2]
    tokens = own.expand(3, 5, 4)
    clips, others = own.expand(3, 4), other.expand(3, 4)
    assert hinge(tokens, clips, others).item() == 0
    assert hinge(tokens, clips, clips).item() == 1
    assert hinge(tokens, others, clips).item() == 2
    assert hinge(tokens, clips, clips, margin=0.2).item() == pytest.approx(0.2, rel=1e-14)


@pytest.mark.parametrize("mask", [None, padded(4, 5)])
def test_the_hinge_is_its_formula(mask: Tensor | None) -> None:
    tokens, clips = unit(random_states(4, 5, 6)), unit(random_states(1, 8, 6, seed=1))[0]
    leaves = [leaf.clone().requires_grad_() for leaf in (tokens, clips[:4], clips[4:])]
    real = whole(4, 5) if mask is None else mask

    def by_token() -> Tensor:
        found = []
        for block, place in real.nonzero().tolist():
            token = leaves[0][block, place]
            found.append((0.4 - token @ leaves[1][block] + token @ leaves[2][block]).clamp(min=0))
        return torch.stack(found).mean()

    same(gradients(lambda: hinge(*leaves, margin=0.4, mask=mask), *leaves), gradients(by_token, *leaves))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40))
def test_an_item_is_paired_with_the_same_item_of_the_other_half(half: int) -> None:
    partner = halves(2 * half).tolist()
    assert partner == [*range(half, 2 * half), *range(half)]


def test_each_token_meets_the_clip_of_its_partner_alone() -> None:
    """The gradient of item k's tokens reaches clips k and k + B / 2, with opposite signs."""
    tokens = unit(random_states(6, 3, 5))
    clips = unit(random_states(1, 6, 5, seed=1))[0].requires_grad_()
    only = torch.zeros(6, 3, dtype=torch.bool)
    only[1] = True
    _, (gradient,) = gradients(lambda: hinge(tokens, clips, clips[halves(6)], margin=3.0, mask=only), clips)
    assert gradient.any(1).tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(gradient[1], -gradient[4], rtol=1e-13, atol=0)


# --------------------------------------------------------------------------------------------------------------- small


def test_the_mean_over_no_tokens_is_0() -> None:
    assert token_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("blocks", [0, 1, 7])
def test_what_cannot_be_halved_is_an_error(blocks: int) -> None:
    with pytest.raises(KdbenchError, match=f"a batch of {blocks} cannot be halved"):
        halves(blocks)


def test_shapes_that_do_not_fit_are_named() -> None:
    states = unit(random_states(3, 5, 6))
    with pytest.raises(KdbenchError, match=r"student \(3 x 5 x 6\) and of the teacher \(3 x 4 x 6\)"):
        nst(states, states[:, :4])
    for loss in (regression, lambda s, t: nt_xent(s, t, temperature=1.0)):
        with pytest.raises(KdbenchError, match="same hidden size"):
            loss(states, states[..., :4])
    with pytest.raises(KdbenchError, match="a mask of 3 x 4 bool for states 3 x 5 x 6"):
        regression(states, states, mask=whole(3, 4))
    with pytest.raises(KdbenchError, match="a mask of 3 x 5 int64"):
        nst(states, states, mask=whole(3, 5).long())
    with pytest.raises(KdbenchError, match=r"one negative a block, 3 x 6, and not 3 x 6 and 2 x 6"):
        hinge(states, states[:, 0], states[:2, 0])

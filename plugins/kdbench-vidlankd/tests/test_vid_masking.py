"""Masked language modelling: shares of tokens, draws that every arm shares, and the loss against torch's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdbench_vidlankd.masking import SHARE, mask, masked_loss
from kdbench_vidlankd.wordpiece import Specials

SPECIALS = Specials(pad=0, unknown=1, cls=2, sep=3, mask=4)
VOCABULARY = 500


def blocks(count: int = 400, length: int = 64, seed: int = 0) -> Tensor:
    """``[CLS] ... [SEP]`` with unknown words and padding among the tokens."""
    tokens = torch.randint(5, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0], tokens[:, -1] = SPECIALS.cls, SPECIALS.sep
    tokens[:, 5] = SPECIALS.unknown
    tokens[::2, -4:-1] = SPECIALS.pad
    tokens[:, 9] = SPECIALS.mask
    return tokens


def within(count: int, trials: int, share: float) -> bool:
    """Within four deviations of the binomial law."""
    return abs(count - trials * share) < 4 * (trials * share * (1 - share)) ** 0.5


# which tokens


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shares_are_those_of_bert(seed: int) -> None:
    tokens = blocks()
    words = ~torch.isin(tokens, torch.tensor(SPECIALS))
    masked = mask(tokens, SPECIALS, VOCABULARY, seed)
    assert SHARE == 0.15
    chosen = int(masked.chosen.sum())
    assert within(chosen, int(words.sum()), 0.15)
    read = masked.tokens[masked.chosen]
    became_mask = int((read == SPECIALS.mask).sum())
    # A random entry is [MASK] or the word itself now and then.
    assert within(became_mask, chosen, 0.8 + 0.1 / VOCABULARY)
    assert within(int((read == tokens[masked.chosen]).sum()), chosen, 0.1 + 0.1 / VOCABULARY)


def test_random_entries_come_from_the_whole_vocabulary() -> None:
    tokens = torch.full((2_000, 40), 7)
    masked = mask(tokens, SPECIALS, 20, seed=3)
    others = masked.tokens[masked.chosen & (masked.tokens != 7) & (masked.tokens != SPECIALS.mask)]
    counted = torch.bincount(others, minlength=20)
    assert len(counted) == 20
    assert counted[[7, SPECIALS.mask]].tolist() == [0, 0]
    rest = [entry for entry in range(20) if entry not in (7, SPECIALS.mask)]
    assert all(within(int(counted[entry]), len(others), 1 / len(rest)) for entry in rest)


def test_special_and_unknown_tokens_are_never_chosen() -> None:
    tokens = blocks()
    special = torch.isin(tokens, torch.tensor(SPECIALS))
    assert all((tokens == entry).any() for entry in SPECIALS)
    for seed in range(5):
        masked = mask(tokens, SPECIALS, VOCABULARY, seed)
        assert not (masked.chosen & special).any()


def test_what_is_not_chosen_is_read_as_it_is() -> None:
    tokens = blocks()
    before = tokens.clone()
    masked = mask(tokens, SPECIALS, VOCABULARY, 0)
    assert torch.equal(tokens, before)
    assert torch.equal(masked.tokens[~masked.chosen], tokens[~masked.chosen])
    assert masked.tokens.dtype == tokens.dtype
    assert masked.chosen.dtype == torch.bool


# draws


def test_a_seed_is_one_mask_whatever_was_drawn_before() -> None:
    first = mask(blocks(), SPECIALS, VOCABULARY, 11)
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    second = mask(blocks(), SPECIALS, VOCABULARY, 11)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.chosen, second.chosen)
    other = mask(blocks(), SPECIALS, VOCABULARY, 12)
    assert not torch.equal(first.chosen, other.chosen)


def test_places_do_not_depend_on_the_words() -> None:
    """Other blocks of one shape are masked at the same places, but for what is special in them."""
    one, other = blocks(seed=0), blocks(seed=1)
    assert torch.equal(mask(one, SPECIALS, VOCABULARY, 4).chosen, mask(other, SPECIALS, VOCABULARY, 4).chosen)
    plain = torch.full_like(one, 8)
    chosen = mask(plain, SPECIALS, VOCABULARY, 4).chosen
    special = torch.isin(one, torch.tensor(SPECIALS))
    assert torch.equal(mask(one, SPECIALS, VOCABULARY, 4).chosen, chosen & ~special)


# loss


class Decoder(torch.nn.Module):
    """The one part of a language tower that the loss uses."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(30, hidden, generator=generator, dtype=torch.float64))

    def vocabulary(self, states: Tensor) -> Tensor:
        return states @ self.weight.T


def batch() -> tuple[Any, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 7, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(30, (4, 7), generator=generator)
    return Decoder(6), states, tokens, torch.rand(4, 7, generator=generator) < 0.4


def test_loss_is_the_mean_cross_entropy_of_the_chosen() -> None:
    tower, states, tokens, chosen = batch()
    assert 1 < chosen.sum() < chosen.numel()
    loss = masked_loss(tower, states, tokens, chosen)
    labels = torch.where(chosen, tokens, -100)
    reference = functional.cross_entropy(tower.vocabulary(states).transpose(1, 2), labels, ignore_index=-100)
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)
    inputs = (states, tower.weight)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_what_is_not_chosen_has_no_gradient() -> None:
    tower, states, tokens, chosen = batch()
    masked_loss(tower, states, tokens, chosen).backward()
    assert states.grad is not None
    assert states.grad.abs().sum(2).bool().equal(chosen)


def test_without_a_chosen_token_the_loss_is_0_and_has_a_graph() -> None:
    tower, states, tokens, chosen = batch()
    loss = masked_loss(tower, states, tokens, torch.zeros_like(chosen))
    assert (loss.shape, loss.item()) == ((), 0.0)
    loss.backward()
    assert states.grad is not None
    assert not states.grad.any()


def test_only_chosen_tokens_are_decoded() -> None:
    """A vocabulary is large: logits of all tokens would not fit in memory."""
    tower, states, tokens, chosen = batch()
    rows: list[int] = []

    def vocabulary(given: Tensor) -> Tensor:
        rows.append(len(given))
        return tower.vocabulary(given)

    spy: Any = SimpleNamespace(vocabulary=vocabulary)
    masked_loss(spy, states, tokens, chosen)
    assert rows == [int(chosen.sum())]

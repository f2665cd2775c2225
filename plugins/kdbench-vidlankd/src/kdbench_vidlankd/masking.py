"""Masked language modelling: which tokens are to be guessed, and what is read in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kdbench_vidlankd._modules import LanguageModule
    from kdbench_vidlankd.wordpiece import Specials

__all__ = ["SHARE", "Masked", "mask", "masked_loss"]

SHARE = 0.15
"""Of the tokens [code]; of them 80 % become [MASK], 10 % a random entry of the vocabulary, 10 % stay."""


class Masked(NamedTuple):
    """Token ids as they are read ``[B, L]``, and where they are to be guessed (bool)."""

    tokens: Tensor
    chosen: Tensor


def mask(tokens: Tensor, specials: Specials, vocabulary: int, seed: int) -> Masked:
    """Mask token ids ``[B, L]``; special and unknown ones are never chosen.

    The draws depend on ``seed`` and the shape alone, so every arm that reads the same blocks guesses the same words.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand((2, *tokens.shape), generator=generator).to(tokens.device)
    words = torch.randint(vocabulary, tokens.shape, generator=generator).to(tokens.device)
    special = torch.isin(tokens, torch.tensor(specials, device=tokens.device))
    chosen = (draws[0] < SHARE) & ~special
    read = torch.where(chosen & (draws[1] < 0.8), specials.mask, tokens)
    return Masked(torch.where(chosen & (draws[1] >= 0.9), words, read), chosen)


def masked_loss(tower: LanguageModule, states: Tensor, tokens: Tensor, chosen: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of the chosen tokens ``[B, L]``, from hidden states ``[B, L, H]``; 0 where none is."""
    from kdbench.losses import cross_entropy

    if not chosen.any():
        return states.sum() * 0.0
    return cross_entropy(tower.vocabulary(states[chosen]), tokens[chosen])

"""Language towers whose states and logits are given, to judge what reads them by what is known to be in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdbench_vidlankd.corpus import Corpus
from kdbench_vidlankd.grammar import CARRIERS, COLOURS, ORDERS, PACES, SIZES
from kdbench_vidlankd.world import Noun

__all__ = ["Planted", "knowing", "one_hot"]


class Planted(nn.Module):
    """Every token of a sentence has the vector of the sentence's noun, or zeros where it has none; words are scored by
    a matrix.

    Parameters
    ----------
    corpus : whose world's nouns are known.
    vectors : ``[nouns, H]``.
    words : ``[H, V]``; all words are equal by default.
    """

    def __init__(self, corpus: Corpus, vectors: Tensor, words: Tensor | None = None) -> None:
        super().__init__()
        assert corpus.world is not None
        self.here = nn.Parameter(torch.zeros(()))
        ids = torch.tensor([corpus.id(noun.word) for noun in corpus.world.nouns])
        table = torch.zeros(corpus.vocabulary, vectors.shape[1])
        table[ids] = vectors.float()
        self.table = table
        self.words = torch.zeros(vectors.shape[1], corpus.vocabulary) if words is None else words.float()

    def forward(self, tokens: Tensor, attention: Tensor | None = None) -> Tensor:
        return self.table[tokens].sum(1, keepdim=True).expand(-1, tokens.shape[1], -1)

    def vocabulary(self, states: Tensor) -> Tensor:
        return states @ self.words


def one_hot(noun: Noun) -> list[float]:
    """Its attributes: a place for every colour, size, order and pace."""
    parts = ((noun.colour, COLOURS), (noun.size, SIZES), (noun.order, ORDERS), (noun.pace, PACES))
    return [float(place == number) for number, names in parts for place in range(len(names))]


def knowing(corpus: Corpus, change: Callable[[Noun], Noun] | None = None) -> Planted:
    """A tower that knows all nouns, or holds each for another: a state is its attributes, and says their words.

    The likeliest word of all is always one that no question has among its choices.
    """
    assert corpus.world is not None
    nouns: Sequence[Noun] = corpus.world.nouns
    vectors = torch.tensor([one_hot(noun if change is None else change(noun)) for noun in nouns])
    words = torch.zeros(vectors.shape[1], corpus.vocabulary)
    for place, word in enumerate((*COLOURS, *CARRIERS, *ORDERS, *PACES)):
        words[place, corpus.id(word)] = 3.0
    words[:, corpus.id("the")] = 100.0
    return Planted(corpus, vectors, words)

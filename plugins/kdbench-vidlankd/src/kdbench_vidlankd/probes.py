"""What a language tower knows of unspoken nouns, and of text: probes of one trained network, student or teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import Effort, Stage, Work

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench_vidlankd._modules import LanguageModule
    from kdbench_vidlankd.corpus import Corpus
    from kdbench_vidlankd.world import Choice, Noun, World

__all__ = ["PROBES", "MaskedLoss", "Probe", "collapse", "noun_states"]

PROBES = {
    "colour": 25.0,
    "colour-cloze": 25.0,
    "size": 50.0,
    "physical": 50.0,
    "order": 50.0,
    "before-after": 50.0,
    "pace": 50.0,
    "faster-slower": 50.0,
}
"""What is measured of unspoken nouns, and what guessing gives, percent: the world is balanced."""

LENGTH = 16
"""Tokens of a sentence about one noun, room enough where its words are in pieces."""


class Probe(Stage, frozen=True):
    """Accuracy, percent, on unspoken nouns. Input ``network``: a pre-trained teacher or student.

    For each part P of the unspoken nouns, ``development`` and ``test``, and for the ``spoken`` ones, whose text says it
    all (there of the probes, which are fitted on them, it is the training accuracy):

    - ``P.colour``, ``P.size``, ``P.order``, ``P.pace``: a linear probe (logistic regression by scikit-learn) of the
      noun's last hidden state in sentences that say nothing of it, fitted on spoken nouns;
    - ``P.colour-cloze``: the likeliest colour where it is masked;
    - ``P.physical``: in a pocket or a truck; ``P.before-after``: which of its two events comes first;
      ``P.faster-slower``: how the second follows; likewise.

    ``collapse`` is the mean cosine of the states of two tokens of a held-out block: 1 where all tokens are one.
    """

    world: int
    length: int

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        return Effort(0, 1e9)

    def run(self, work: Work) -> Outcome:
        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.pretrain import language_of
        from kdbench_vidlankd.world import ATTRIBUTES

        found = corpus(work.spec.data, self.world)
        if found.world is None:
            raise StageError(f"'{work.spec.data.dataset}' has no nouns to probe", cure="probe a data set with a world")
        tower = language_of(work.input("network"), work)
        world = found.world
        parts = {name: world.part(name) for name in ("spoken", "development", "test")}
        states = {name: noun_states(tower, found, nouns) for name, nouns in parts.items()}
        metrics: dict[str, float] = {}
        for attribute in ATTRIBUTES:
            scores = _linear_probe(states, parts, attribute)
            metrics |= {f"{name}.{attribute}": score for name, score in scores.items()}
        for name, nouns in parts.items():
            metrics[f"{name}.colour-cloze"] = _right(tower, found, [world.cloze(noun) for noun in nouns])
            metrics[f"{name}.physical"] = _right(tower, found, [world.physical(noun) for noun in nouns])
            metrics[f"{name}.before-after"] = _right(tower, found, [world.before_after(noun) for noun in nouns])
            metrics[f"{name}.faster-slower"] = _right(tower, found, [world.faster_slower(noun) for noun in nouns])
        metrics["collapse"] = collapse(tower, found.held_text(self.length))
        return Outcome(metrics=metrics)


class MaskedLoss(Stage, frozen=True):
    """``test.mlm``: masked-LM loss (nats) on held-out text, every block masked once by a fixed seed. Input ``network``.

    ``blocks``: how many of the held-out blocks are read; None is all.
    """

    world: int
    length: int
    blocks: int | None = None

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.masking import mask, masked_loss
        from kdbench_vidlankd.pretrain import language_of

        found = corpus(work.spec.data, self.world)
        tower = language_of(work.input("network"), work)
        text = found.held_text(self.length)[: self.blocks].to(work.device)
        masked = mask(text, found.specials, found.vocabulary, HELD_SEED)
        guessed = int(masked.chosen.sum())
        if not guessed:
            raise StageError("no token of the held-out text is masked", cure="hold out more text")
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(text)), BATCH):
                chosen = masked.chosen[rows]
                loss = masked_loss(tower, tower(masked.tokens[rows]), text[rows], chosen)
                total += loss.double().cpu() * int(chosen.sum())
        return Outcome(metrics={"test.mlm": total.item() / guessed}, notes={"guessed": guessed})


HELD_SEED = 0
BATCH = 256


def noun_states(tower: LanguageModule, corpus: Corpus, nouns: Sequence[Noun]) -> Tensor:
    """``[nouns, contexts, H]``: last hidden states of each noun in sentences that say nothing of it."""
    import torch

    world = _world(corpus)
    contexts = [world.contexts(noun) for noun in nouns]
    tokens, attended = corpus.sentences([sentence for each in contexts for sentence in each], LENGTH)
    numbers = torch.tensor([corpus.id(noun.word) for noun, each in zip(nouns, contexts, strict=True) for _ in each])
    states = _states(tower, tokens, attended)
    own = states[torch.arange(len(tokens)), (tokens == numbers[:, None]).int().argmax(1)]
    return own.view(len(nouns), len(contexts[0]), -1)


def collapse(tower: LanguageModule, text: Tensor) -> float:
    """Mean cosine of the states of two different tokens of one block, over all pairs and some blocks ``[M, L]``."""
    from kdbench_vidlankd.losses import unit

    states = unit(_states(tower, text[:BATCH], None))
    length = states.shape[1]
    alike = (states @ states.transpose(1, 2)).sum((1, 2)) - length  # without each token and itself
    return float(alike.mean()) / (length * (length - 1))


def _states(tower: LanguageModule, tokens: Tensor, attended: Tensor | None) -> Tensor:
    """``[N, L, H]`` on the CPU."""
    import torch

    device = next(tower.parameters()).device
    parts = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(tokens)), BATCH):
            real = None if attended is None else attended[rows].to(device)
            parts.append(tower(tokens[rows].to(device), real).cpu())
    return torch.cat(parts)


def _linear_probe(
    states: Mapping[str, Tensor], parts: Mapping[str, Sequence[Noun]], attribute: str
) -> dict[str, float]:
    """Accuracy (percent) of each part, by logistic regression on the standardised states of the spoken nouns."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def labels(name: str) -> object:
        contexts = states[name].shape[1]
        return np.repeat([getattr(noun, attribute) for noun in parts[name]], contexts)

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1_000))
    flat = {name: each.flatten(0, 1).double().numpy() for name, each in states.items()}
    probe.fit(flat["spoken"], labels("spoken"))
    return {name: 100.0 * float(probe.score(each, labels(name))) for name, each in flat.items()}


PENALTY = 0.1
"""C of the logistic regression, fixed: a probe that was tuned would be a second student."""


def _right(tower: LanguageModule, corpus: Corpus, choices: Sequence[Choice]) -> float:
    """Share of the questions (percent) of whose words the right one is the likeliest in the place of [MASK]."""
    import torch

    tokens, attended = corpus.sentences([choice.sentence for choice in choices], LENGTH)
    masked = _states(tower, tokens, attended)[tokens == corpus.specials.mask]
    words = torch.tensor([[corpus.id(word) for word in choice.words] for choice in choices])
    device = next(tower.parameters()).device
    with torch.no_grad():
        logits = tower.vocabulary(masked.to(device)).cpu().gather(1, words)
    answers = torch.tensor([choice.answer for choice in choices])
    return 100.0 * (logits.argmax(1) == answers).double().mean().item()


def _world(corpus: Corpus) -> World:
    assert corpus.world is not None
    return corpus.world

"""A language tower as a classifier of sentences and pairs, and what the training loop is given of it.

Imported only where a stage runs: torch and transformers come with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdbench.losses import cross_entropy
from kdbench.quiet import quiet
from kdbench.training.loop import Task
from kdbench.training.recipe import Recipe
from kdbench.training.seeds import derive_seed
from kdbench_vidlankd._modules import LanguageModule  # first: its error says what to install
from kdbench_vidlankd.texts import Example
from kdbench_vidlankd.wordpiece import pack

if TYPE_CHECKING:
    from tokenizers import Tokenizer

with quiet():
    from transformers.models.bert.modeling_bert import BertForSequenceClassification

__all__ = ["Classifier", "ClassifierTask", "Examples", "classify", "packed"]


class Classifier(nn.Module):
    """BERT's own: the tower's encoder, then on [CLS] a dense layer with tanh, dropout, and a linear layer.

    The encoder starts as a copy of the tower's; the two layers are fresh, so the caller seeds torch's global generator
    first. The masked-LM head is left behind. Everything here is trained, with the dropout of the tower's configuration.
    """

    def __init__(self, tower: LanguageModule, classes: int) -> None:
        super().__init__()
        config = deepcopy(tower.net.config)
        config.num_labels = classes
        self.net = BertForSequenceClassification(config)
        # The pooler is the one part that a tower does not have.
        fresh = {name: value for name, value in self.net.bert.state_dict().items() if name.startswith("pooler.")}
        self.net.bert.load_state_dict(tower.net.bert.state_dict() | fresh)

    def forward(self, tokens: Tensor, attended: Tensor, segments: Tensor) -> Tensor:
        """Logits ``[B, C]`` of token ids ``[B, L]``; ``attended`` is True at real tokens, ``segments`` are 0 and 1."""
        return cast(Tensor, self.net(tokens, attention_mask=attended, token_type_ids=segments).logits)


class Examples(NamedTuple):
    """Of a task, N of L tokens: ``tokens``, ``segments`` (integers) and ``attended`` (bool) ``[N, L]``, ``labels``
    ``[N]`` int64."""

    tokens: Tensor
    segments: Tensor
    attended: Tensor
    labels: Tensor

    def rows(self, chosen: Tensor) -> Examples:
        """Some of them."""
        return Examples(*(each[chosen] for each in self))

    def batch(self, chosen: Tensor, device: str) -> Examples:
        """Some of them as a network reads them, without the padding that all have: nobody attends to it."""
        part = self.rows(chosen)
        longest = int(part.attended.sum(1).max())
        tokens, segments, attended = (each[:, :longest].to(device) for each in part[:3])
        return Examples(tokens.long(), segments.long(), attended, part.labels.to(device))


def packed(tokenizer: Tokenizer, examples: Sequence[Example], length: int) -> Examples:
    """Examples as token ids, cut and padded to ``length``, on the CPU."""
    found = pack(tokenizer, [example[:2] for example in examples], length)
    ids, segments, attended = (torch.from_numpy(each) for each in found)
    return Examples(ids, segments, attended, torch.tensor([label for *_, label in examples], dtype=torch.int64))


class ClassifierTask(Task):
    """Cross-entropy (nats) of the labels. An epoch shows every example once; what does not fill a batch is a smaller
    one."""

    def __init__(self, model: Classifier, train: Examples, recipe: Recipe, seed: int, device: str) -> None:
        self._model, self._train, self._recipe, self._seed, self._device = model, train, recipe, seed, device
        self.steps = -(-len(train.labels) // recipe.batch_size)

    def batches(self, epoch: int) -> Iterator[Examples]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order = torch.randperm(len(self._train.labels), generator=generator)
        for chosen in torch.split(order, self._recipe.batch_size):
            yield self._train.batch(chosen, self._device)

    def terms(self, batch: Examples) -> dict[str, Tensor]:
        logits = self._model(batch.tokens, batch.attended, batch.segments)
        return {"loss": cross_entropy(logits, batch.labels)}

    def weight(self, batch: Examples) -> int:
        return len(batch.labels)


def classify(model: Classifier, examples: Examples, device: str) -> Tensor:
    """The likeliest class of each example, ``[N]`` int64 on the CPU; the model is left in eval mode."""
    model.eval()
    parts = []
    with torch.no_grad():
        for chosen in torch.split(torch.arange(len(examples.labels)), BATCH):
            batch = examples.batch(chosen, device)
            parts.append(model(batch.tokens, batch.attended, batch.segments).argmax(1).cpu())
    return torch.cat(parts)


BATCH = 256

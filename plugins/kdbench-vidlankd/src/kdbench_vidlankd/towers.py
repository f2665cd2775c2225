"""The towers as plain values, and their networks, built of BERT by transformers' own configuration and classes.

Describing a tower imports nothing heavy; :meth:`Bert.language` and :meth:`VideoTower.build` import torch and
transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from kdbench.component import Component
from kdbench.networks.base import Cost

if TYPE_CHECKING:
    from kdbench_vidlankd._modules import LanguageModule, VideoModule

__all__ = ["BASE", "SMALL", "Bert", "Video", "bert_config"]


class Bert(Component, frozen=True):
    """A BERT encoder: ``feedforward`` is its inner width, ``positions`` the longest block it can read.

    ``dropout`` is that of hidden states and attention alike (.1 in the released configurations [code]); ``spread`` the
    deviation of the weights at the start, BERT's .02, too little for narrow towers.
    """

    layers: int
    hidden: int
    heads: int
    feedforward: int
    dropout: float = 0.1
    positions: int = 512
    spread: float = 0.02

    @property
    def name(self) -> str:
        """For instance ``6L/512H``."""
        return f"{self.layers}L/{self.hidden}H"

    def build(self, vocabulary: int) -> LanguageModule:
        """A fresh language tower with its masked-LM head; the caller seeds torch's global generator first."""
        from kdbench_vidlankd._modules import LanguageModule

        return LanguageModule(self, vocabulary)

    def cost(self, vocabulary: int, length: int) -> Cost:
        """Parameters (masked-LM head included, decoder tied), and MACs of one block, the head on every token."""
        head = self.hidden * (self.hidden + vocabulary)
        return Cost(self._parameters(vocabulary), length * (self._macs(length) + head))

    def _parameters(self, vocabulary: int) -> int:
        hidden, wide = self.hidden, self.feedforward
        layer = 4 * (hidden * hidden + hidden) + 2 * hidden * wide + wide + hidden + 4 * hidden
        embeddings = (vocabulary + self.positions + 2) * hidden + 2 * hidden
        head = hidden * hidden + hidden + 2 * hidden + vocabulary
        return embeddings + self.layers * layer + head

    def _macs(self, length: int) -> int:
        """Of one token among ``length``."""
        each = 4 * self.hidden * self.hidden + 2 * self.hidden * self.feedforward + 2 * length * self.hidden
        return self.layers * each


class Video(Component, frozen=True):
    """The video tower: frame features -> Linear ``projection`` -> Linear hidden -> BERT encoder -> one unit vector.

    Attributes
    ----------
    encoder : of the same shape as the language tower, but for its dropout.
    features : width of a frame's features: 4096 of ResNet-152 and 3D-ResNeXt.
    projection : width between the two linear maps, 1024 [code].
    vector : what stands for the clip: the ``mean`` over time, or BERT's ``pooler`` on time step 1 (as released).
    trained : False leaves the tower at its random start, with its dropout left on (trap 1 of the released code).
    """

    encoder: Bert
    features: int
    projection: int = 1024
    vector: Literal["mean", "pooler"] = "mean"
    trained: bool = True

    def build(self) -> VideoModule:
        """A fresh video tower; the caller seeds torch's global generator first."""
        from kdbench_vidlankd._modules import VideoModule

        return VideoModule(self)

    def macs(self, frames: int) -> int:
        """Of one clip."""
        entry = self.features * self.projection + self.projection * self.encoder.hidden
        layers = 3 if self.vector == "pooler" else 2
        return frames * (entry + self.encoder._macs(frames)) + layers * self.encoder.hidden**2


SMALL = Bert(layers=6, hidden=512, heads=8, feedforward=2048)
BASE = Bert(layers=12, hidden=768, heads=12, feedforward=3072)
"""The two sizes of the paper [code]."""


def bert_config(tower: Bert, vocabulary: int, **more: Any) -> Any:
    """The tower as transformers' configuration."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=tower.hidden,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        intermediate_size=tower.feedforward,
        max_position_embeddings=tower.positions,
        hidden_dropout_prob=tower.dropout,
        attention_probs_dropout_prob=tower.dropout,
        initializer_range=tower.spread,
        **more,
    )

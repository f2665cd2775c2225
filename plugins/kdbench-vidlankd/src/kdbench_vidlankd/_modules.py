"""The towers' networks. Imported only where they are built: torch and transformers come with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn import functional

from kdbench.errors import KdbenchError
from kdbench.quiet import quiet
from kdbench_vidlankd.towers import bert_config

if TYPE_CHECKING:
    from kdbench_vidlankd.towers import Bert, Video

try:
    with quiet():
        from transformers.models.bert.modeling_bert import BertForMaskedLM, BertModel
except ModuleNotFoundError as error:
    raise KdbenchError(
        f"the towers need the module '{error.name}', which is not installed", cure="install kdbench-vidlankd[bert]"
    ) from error

__all__ = ["LanguageModule", "VideoModule"]


class LanguageModule(nn.Module):
    """BERT with its masked-LM head, the decoder tied to the word embeddings."""

    def __init__(self, tower: Bert, vocabulary: int) -> None:
        super().__init__()
        self.net = BertForMaskedLM(bert_config(tower, vocabulary))

    def forward(self, tokens: Tensor, attention: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Last hidden states ``[B, L, H]`` of token ids ``[B, L]``; ``attention`` is True at real tokens."""
        found = self.net.bert(input_ids=tokens, attention_mask=attention, token_type_ids=segments)
        return cast(Tensor, found.last_hidden_state)

    def vocabulary(self, states: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., H]``."""
        return cast(Tensor, self.net.cls(states))

    def weights(self) -> dict[str, Tensor]:
        """The state without what is tied to something else in it, as a file of tensors wants it."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_TIED)}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Read what :meth:`weights` gave.

        Raises
        ------
        KdbenchError : the weights are another tower's.
        """
        try:
            found = self.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise KdbenchError(f"the weights do not fit the language tower: {error}") from error
        if strange := [*found.unexpected_keys, *(name for name in found.missing_keys if not name.startswith(_TIED))]:
            raise KdbenchError(f"the weights do not fit the language tower: {', '.join(strange)}")


_TIED = "net.cls.predictions.decoder."  # its weight is the word embeddings', its bias the head's


class VideoModule(nn.Module):
    """Frame features ``[B, T, F]`` to one unit vector a clip ``[B, H]``."""

    def __init__(self, tower: Video) -> None:
        super().__init__()
        hidden = tower.encoder.hidden
        self.vector = tower.vector
        self.entry = nn.Sequential(nn.Linear(tower.features, tower.projection), nn.Linear(tower.projection, hidden))
        # One word, because BERT's configuration wants a vocabulary; frames come as embeddings.
        config = bert_config(tower.encoder, vocabulary=1, pad_token_id=0)
        self.net = BertModel(config, add_pooling_layer=tower.vector == "pooler")
        del self.net.embeddings.word_embeddings  # never read, so never trained
        self.exit = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, hidden))
        self.requires_grad_(tower.trained)

    def forward(self, frames: Tensor, attention: Tensor | None = None) -> Tensor:
        """``attention`` ``[B, T]`` is True at real frames."""
        found = self.net(inputs_embeds=self.entry(frames), attention_mask=attention)
        if self.vector == "pooler":
            clip = found.pooler_output
        elif attention is None:
            clip = found.last_hidden_state.mean(1)
        else:
            real = attention.unsqueeze(2).to(frames.dtype)
            clip = (found.last_hidden_state * real).sum(1) / real.sum(1)
        return functional.normalize(self.exit(clip), dim=1)

    def each_frame(self, frames: Tensor) -> Tensor:
        """One unit vector a frame ``[B, T, H]``: what the clip's would be, were every frame like this one."""
        states = self.net(inputs_embeds=self.entry(frames)).last_hidden_state
        if self.vector == "pooler":
            pooler = cast(nn.Module, self.net.pooler)
            states = pooler(states.flatten(0, 1)[:, None]).view_as(states)  # it reads the first step of each clip
        return functional.normalize(self.exit(states), dim=2)

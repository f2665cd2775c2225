"""What the two steps give the training loop: batches, and the loss of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import StageError
from kdbench.stage import Work
from kdbench.training.loop import Task
from kdbench.training.seeds import derive_seed
from kdbench_vidlankd.corpus import Clip, Corpus
from kdbench_vidlankd.losses import halves, hinge, unit
from kdbench_vidlankd.masking import Masked, mask, masked_loss
from kdbench_vidlankd.objectives import Material
from kdbench_vidlankd.pretrain import language_of
from kdbench_vidlankd.vokens import labels_of
from kdbench_vidlankd.world import STREAMS, WIDTH

if TYPE_CHECKING:
    from kdbench_vidlankd._modules import LanguageModule, VideoModule
    from kdbench_vidlankd.distilling import Distiller
    from kdbench_vidlankd.pretrain import PretrainStudent, PretrainTeacher

__all__ = ["Learner", "StudentTask", "TeacherTask", "Towers", "shown_frames"]


class Towers(nn.Module):
    """A teacher: what is trained, or at least run, in the first step."""

    def __init__(self, language: LanguageModule, video: VideoModule) -> None:
        super().__init__()
        self.language, self.video = language, video


class Learner(nn.Module):
    """A student with the modules of its objectives, in their order."""

    def __init__(self, language: LanguageModule, objectives: Sequence[Distiller]) -> None:
        super().__init__()
        self.language = language
        self.objectives = nn.ModuleList(objectives)


class Scene(NamedTuple):
    """A teacher's batch: captions with their clips, and the captions masked."""

    clip: Clip
    masked: Masked


class TeacherTask(Task):
    """Captions and clips; the losses of :class:`kdbench_vidlankd.pretrain.PretrainTeacher`."""

    def __init__(self, stage: PretrainTeacher, towers: Towers, corpus: Corpus, seed: int, device: str) -> None:
        if not (stage.masked or stage.contrast):
            raise StageError(
                "the teacher is given neither masked words nor video to learn from",
                cure="give masked or contrast a weight",
            )
        self._stage, self._towers, self._corpus, self._seed, self._device = stage, towers, corpus, seed, device
        self._negatives = halves(stage.recipe.batch_size, device=device)
        self._footage = corpus.footage(stage.length)
        self.steps = self._footage.steps(stage.recipe.batch_size)
        if not self.steps:
            raise StageError(
                f"{self._footage.count} clips do not fill a batch of {stage.recipe.batch_size}",
                cure="give more clips, or smaller batches",
            )

    def batches(self, epoch: int) -> Iterator[Scene]:
        stage, footage = self._stage, self._footage
        random = np.random.default_rng(derive_seed(self._seed, "clips", epoch))
        for step, (first, second) in enumerate(footage.pairs(stage.recipe.batch_size, stage.near, random)):
            captions = clips = [*first, *second]
            if stage.pairing == "mismatched":
                clips = [int(clip) for clip in random.integers(footage.count, size=len(captions))]
            clip = footage.read(captions, clips, random if stage.captions == "random" else None)
            clip = Clip(*(each.to(self._device) for each in clip))
            drawn = derive_seed(self._seed, "mask", epoch, step)
            yield Scene(clip, mask(clip.tokens, self._corpus.specials, self._corpus.vocabulary, drawn))

    def terms(self, batch: Scene) -> dict[str, Tensor]:
        """``loss``, and of its parts those whose weight is not 0: ``masked`` (nats), ``contrast``."""
        stage, clip = self._stage, batch.clip
        language, video = self._towers.language, self._towers.video
        states = language(batch.masked.tokens, clip.attended)
        parts: dict[str, tuple[float, Tensor]] = {}
        if stage.masked:
            parts["masked"] = stage.masked, masked_loss(language, states, clip.tokens, batch.masked.chosen)
        if stage.contrast:
            clips = video(*shown_frames(stage, clip.frames, clip.shown))
            away = hinge(unit(states), clips, clips[self._negatives], margin=stage.margin, mask=clip.attended)
            parts["contrast"] = stage.contrast, away
        loss = torch.stack([weight * value for weight, value in parts.values()]).sum()
        return {"loss": loss, **{name: value for name, (_, value) in parts.items()}}

    def weight(self, batch: Scene) -> int:
        return len(batch.clip.tokens)


class Page(NamedTuple):
    """A student's batch: numbers of the blocks ``[B]``, their tokens ``[B, L]``, the tokens masked, and a seed for what
    objectives draw."""

    indices: Tensor
    tokens: Tensor
    masked: Masked
    seed: int


class StudentTask(Task):
    """Blocks of text; the losses of :class:`kdbench_vidlankd.pretrain.PretrainStudent`."""

    def __init__(self, stage: PretrainStudent, model: Learner, corpus: Corpus, text: Tensor, work: Work) -> None:
        self._stage, self._model, self._corpus, self._seed = stage, model, corpus, work.seed
        self._text = text.to(work.device)
        self._teacher = language_of(work.input("teacher"), work) if "teacher" in work.spec.inputs else None
        self._vokens = labels_of(work).to(work.device) if "vokens" in work.spec.inputs else None
        # What does not fill a batch is left to other epochs: contrast in a batch depends on its size.
        self.steps = len(text) // stage.recipe.batch_size
        if not self.steps:
            raise StageError(
                f"{len(text)} blocks of text do not fill a batch of {stage.recipe.batch_size}",
                cure="give more text, or smaller batches",
            )

    def batches(self, epoch: int) -> Iterator[Page]:
        size = self._stage.recipe.batch_size
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "blocks", epoch))
        order = torch.randperm(len(self._text), generator=generator).to(self._text.device)
        for step, indices in enumerate(torch.split(order[: self.steps * size], size)):
            drawn = derive_seed(self._seed, "page", epoch, step)
            tokens = self._text[indices]
            masked = mask(tokens, self._corpus.specials, self._corpus.vocabulary, drawn)
            yield Page(indices, tokens, masked, derive_seed(self._seed, "objective", epoch, step))

    def terms(self, batch: Page) -> dict[str, Tensor]:
        """``loss``, ``masked`` (nats), and the value of each objective without its weight."""
        language = self._model.language
        states = language(batch.masked.tokens)
        terms = {"masked": masked_loss(language, states, batch.tokens, batch.masked.chosen)}
        loss = terms["masked"]
        if len(self._stage.objectives):
            material = self._material(batch, states)
            for number, (objective, module) in enumerate(
                zip(self._stage.objectives, self._model.objectives, strict=True)
            ):
                value = module(material)
                terms[f"objective{number or ''}"] = value
                loss = loss + objective.weight * value
        return {"loss": loss, **terms}

    def weight(self, batch: Page) -> int:
        return len(batch.tokens)

    def _material(self, batch: Page, states: Tensor) -> Material:
        language, teacher = self._model.language, self._teacher
        if teacher is None:
            taught = states.detach()
        else:
            with torch.no_grad():
                taught = teacher(batch.masked.tokens)

        def teacher_logits() -> Tensor:
            assert teacher is not None
            with torch.no_grad():
                return teacher.vocabulary(taught.flatten(0, 1))

        return Material(
            student=states,
            teacher=taught,
            indices=batch.indices,
            seed=batch.seed,
            attention=torch.ones_like(batch.tokens, dtype=torch.bool),
            student_logits=lambda: language.vocabulary(states.flatten(0, 1)),
            teacher_logits=teacher_logits,
            vokens=None if self._vokens is None else self._vokens[batch.indices],
        )


def shown_frames(stage: PretrainTeacher, frames: Tensor, shown: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a teacher's video tower is given of frames ``[B, T, F]``: all, or one, or not all of their features.

    ``shown`` ``[B, T]`` is True at real frames; None comes back where all are.
    """
    flat = frames.shape[2] // 2 if frames.shape[2] != WIDTH else STREAMS["2d"].stop
    if stage.streams == "2d" or stage.frames == "middle":
        frames = frames.clone()
        frames[:, :, flat:] = 0.0
    if stage.frames == "middle":
        middle = (shown.sum(1) - 1) // 2
        return frames[torch.arange(len(frames), device=frames.device), middle][:, None], None
    return frames, None if bool(shown.all()) else shown

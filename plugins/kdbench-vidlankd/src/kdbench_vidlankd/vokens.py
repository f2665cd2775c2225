"""Voken-style labels: every token of the text is given its nearest clip, and the student learns to name it.

After Vokenization (Tan and Bansal, EMNLP 2020), with the teacher's two towers as the matcher and clips in place of
images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdbench.errors import StageError
from kdbench.record import Outcome
from kdbench.stage import Stage, Work
from kdbench_vidlankd.objectives import TokenObjective

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench_vidlankd.distilling import Distiller

__all__ = ["LABELS", "VokenLabels", "Vokenize", "labels_of"]

LABELS = "vokens.safetensors"


class VokenLabels(TokenObjective, frozen=True, kw_only=True):
    """Cross-entropy of a classifier over ``count`` vokens on every token's state."""

    count: int

    title: ClassVar[str] = "vokens: the nearest clip of each token as its label"
    source: ClassVar[str] = "Tan and Bansal 2020 (Vokenization), Section 3; matched by the teacher's towers here"

    @property
    def from_teacher(self) -> bool:
        return False

    def macs(self, hidden: int, length: int) -> float:
        return float(length * hidden * self.count)

    def build(self, hidden: int, blocks: int, length: int) -> Distiller:
        from kdbench_vidlankd.distilling import VokenDistiller

        return VokenDistiller(self, hidden)


class Vokenize(Stage, frozen=True):
    """Label every token of the text, or of its first ``blocks`` blocks, with the nearest of ``count`` training clips.
    Input ``teacher``.

    Leaves labels ``[N, length]`` of the text's blocks, which are read unmasked, and the metric ``vokens.used``: how
    many clips are the nearest of any token.
    """

    count: int
    world: int
    length: int
    blocks: int | None = None

    def run(self, work: Work) -> Outcome:
        import numpy as np
        import torch

        from kdbench.training.seeds import derive_seed
        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.losses import unit
        from kdbench_vidlankd.pretrain import PretrainTeacher, language_of, stage_of, video_of
        from kdbench_vidlankd.tasks import shown_frames

        found, teacher = corpus(work.spec.data, self.world), work.input("teacher")
        language, video, stage = language_of(teacher, work), video_of(teacher, work), stage_of(teacher)
        assert isinstance(stage, PretrainTeacher), "video_of has a video tower"
        footage = found.footage(self.length)
        if self.count > footage.count:
            raise StageError(f"{footage.count} clips do not give {self.count} vokens", cure="ask for fewer")
        random = np.random.default_rng(derive_seed(work.seed, "vokens"))
        chosen = [int(clip) for clip in random.permutation(footage.count)[: self.count]]
        text = found.text(self.length, most=self.blocks)
        with torch.no_grad():
            clip = footage.read(chosen, chosen, random)
            frames, shown = shown_frames(stage, clip.frames.to(work.device), clip.shown.to(work.device))
            clips = video(frames, shown)
            parts = [unit(language(block.to(work.device))) @ clips.T for block in torch.split(text, 256)]
        labels = torch.cat([part.argmax(2).cpu() for part in parts])
        work.save_tensors(LABELS, {"labels": labels})
        return Outcome(metrics={"vokens.used": float(len(torch.unique(labels)))})


def labels_of(work: Work) -> Tensor:
    """The labels that the input ``vokens`` left."""
    return work.input("vokens").tensors(LABELS)["labels"]

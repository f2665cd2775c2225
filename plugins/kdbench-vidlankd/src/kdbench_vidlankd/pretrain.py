"""The two steps: a teacher on captioned clips, and a student on text alone, distilled from the teacher's text tower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdbench.component import pack, unpack
from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Effort, Finished, Stage, Work
from kdbench.training.recipe import Recipe
from kdbench_vidlankd.objectives import TokenObjective
from kdbench_vidlankd.towers import Bert, Video

if TYPE_CHECKING:
    from kdbench_vidlankd._modules import LanguageModule, VideoModule

__all__ = ["HEADS", "VIDEO", "PretrainStudent", "PretrainTeacher", "language_of", "stage_of", "video_of"]

VIDEO = "video.safetensors"
HEADS = "objectives.safetensors"


class PretrainTeacher(Stage, frozen=True, kw_only=True):
    """Masked language modelling and token-to-clip contrast, on captions and their clips. Leaves both towers.

    Attributes
    ----------
    recipe : an epoch shows every clip once (in the world, where negatives are chosen, once beside them).
    world : number of the world; without effect where the data have none.
    length : tokens of a caption's block.
    masked, contrast : weights of the two losses, 1 and 1 in the released code; 0 leaves one out.
    margin : of the hinge, 1 in the released code.
    near : share of the clips that get a negative which differs in one attribute alone.
    pairing : ``mismatched`` shows with every caption a clip drawn from all (control).
    frames : ``middle`` shows one frame of every clip, and of it what an image has, the 2D features.
    streams : ``2d`` leaves the 3D features out.
    captions : spans of long videos: ``random``, or the ``first`` of each, as released.
    """

    language: Bert
    video: Video
    recipe: Recipe
    world: int
    length: int
    masked: float = 1.0
    contrast: float = 1.0
    margin: float = 1.0
    near: float = 0.0
    pairing: Literal["matched", "mismatched"] = "matched"
    frames: Literal["all", "middle"] = "all"
    streams: Literal["2d+3d", "2d"] = "2d+3d"
    captions: Literal["random", "first"] = "random"

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        clips = self.recipe.epochs * data.sizes["train"] * (2 if data.dataset != "howto100m" else 1)
        macs = _macs(self.language, self.length, data)
        if self.contrast:
            macs += self.video.macs(data.input_shape[1])
        return Effort(round(clips / self.recipe.batch_size), 3.0 * macs * clips)

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench.training.loop import optimise
        from kdbench.training.seeds import derive_seed
        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.tasks import TeacherTask, Towers

        found = corpus(work.spec.data, self.world)
        torch.manual_seed(derive_seed(work.seed, "init", "teacher"))
        towers = Towers(self.language.build(found.vocabulary), self.video.build()).to(work.device)
        task = TeacherTask(self, towers, found, work.seed, work.device)
        curves = optimise(towers, task, self.recipe, seed=work.seed, checkpoints=work) if self.recipe.epochs else {}
        work.save_tensors(WEIGHTS, towers.language.weights())
        work.save_tensors(VIDEO, towers.video.state_dict())
        return Outcome(metrics=_last(curves), curves=curves, notes=_notes(self, found.vocabulary))


class PretrainStudent(Stage, frozen=True, kw_only=True):
    """Masked language modelling on text and, with an input ``teacher``, distillation from its text tower.

    Inputs, each only where there is something for it to do: ``teacher``, whose tower is frozen and reads the same
    masked blocks; ``start``, whose tower is where training begins; ``vokens``, labels of every token.

    Attributes
    ----------
    tower : of the same size as the teacher's.
    recipe : an epoch is a pass over the text.
    objectives : what holds the student's states against the teacher's, their weighted sum beside the masked loss.
    captions : adds the text of the teacher's captions to the text.
    blocks : the most blocks of text that are read, from its beginning, captions not counted; None reads all.
    """

    tower: Bert
    recipe: Recipe
    world: int
    length: int
    objectives: tuple[TokenObjective, ...] = ()
    captions: bool = False
    blocks: int | None = None

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        blocks = min(TEXT_BLOCKS.get(data.dataset, 1_000_000), self.blocks or 1_000_000) * self.recipe.epochs
        macs = _macs(self.tower, self.length, data)
        added = sum(each.macs(self.tower.hidden, self.length) for each in self.objectives)
        taught = macs * any(each.from_teacher for each in self.objectives)
        each = 3.0 * (macs + added) + taught  # backward costs two forwards, and a teacher has none
        return Effort(round(blocks / self.recipe.batch_size), each * blocks)

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench.training.loop import optimise
        from kdbench.training.seeds import derive_seed
        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.tasks import Learner, StudentTask

        found = corpus(work.spec.data, self.world)
        text = found.text(self.length, captions=self.captions, most=self.blocks)
        torch.manual_seed(derive_seed(work.seed, "init", "student"))
        tower = self.tower.build(found.vocabulary)
        if "start" in work.spec.inputs:
            tower.load_weights(work.input("start").tensors(WEIGHTS))
        torch.manual_seed(derive_seed(work.seed, "init", "objectives"))
        built = [each.build(self.tower.hidden, len(text), self.length) for each in self.objectives]
        model = Learner(tower, built).to(work.device)
        task = StudentTask(self, model, found, text, work)
        curves = optimise(model, task, self.recipe, seed=work.seed, checkpoints=work)
        work.save_tensors(WEIGHTS, tower.weights())
        heads = {name: value for name, value in model.objectives.state_dict().items() if ".head." in name}
        if heads:
            work.save_tensors(HEADS, heads)
        return Outcome(metrics=_last(curves), curves=curves, notes=_notes(self, found.vocabulary))


WORDS = {"unspoken": 121}
"""Vocabulary by which work is priced before data are read; that of others is BERT's."""

TEXT_BLOCKS = {"unspoken": 3_000, "unspoken-text": 10_000}
"""Blocks of text, about, by which work is priced likewise; others have a million."""


def _macs(tower: Bert, length: int, data: DataRef) -> float:
    """Of one block: the tower on every token, the vocabulary on those that are masked."""
    words = 0.15 * length * tower.hidden * WORDS.get(data.dataset, 30_522)
    return tower.cost(0, length).macs + words


def language_of(finished: Finished, work: Work) -> LanguageModule:
    """The language tower that a stage left, on the device, frozen and in eval mode."""
    stage = stage_of(finished)
    tower: Bert = stage.language if isinstance(stage, PretrainTeacher) else stage.tower
    module = tower.build(finished.record.notes["vocabulary"])
    module.load_weights(finished.tensors(WEIGHTS))
    return module.to(work.device).eval().requires_grad_(False)


def video_of(finished: Finished, work: Work) -> VideoModule:
    """The video tower that a teacher's stage left, likewise.

    Raises
    ------
    StageError : the stage is no teacher's.
    """
    stage = stage_of(finished)
    if not isinstance(stage, PretrainTeacher):
        raise StageError("a student has no video tower", where=finished.record.label, cure="give the teacher's stage")
    module = stage.video.build()
    module.load_state_dict(finished.tensors(VIDEO))
    return module.to(work.device).eval().requires_grad_(False)


def stage_of(finished: Finished) -> PretrainTeacher | PretrainStudent:
    """The pre-training that a finished stage was."""
    stage: PretrainTeacher | PretrainStudent = unpack(finished.record.notes["pretraining"])
    return stage


def _notes(stage: Stage, vocabulary: int) -> dict[str, Any]:
    from importlib.metadata import version

    # Their arithmetic is in the numbers, and their versions are in no hash.
    libraries = {name: version(name) for name in ("tokenizers", "transformers")}
    return {"pretraining": pack(stage), "vocabulary": vocabulary, "libraries": libraries}


def _last(curves: dict[str, list[float]]) -> dict[str, float]:
    """What the losses were in the last epoch."""
    return {f"train.{name}": curve[-1] for name, curve in curves.items() if name != "lr" and math.isfinite(curve[-1])}

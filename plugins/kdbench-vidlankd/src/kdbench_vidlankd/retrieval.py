"""Whether tokens find fitting clips: recall, and similarities of words and frames for a picture."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING, Any

from kdbench.errors import StageError
from kdbench.record import Outcome
from kdbench.stage import Stage, Work
from kdbench_vidlankd.objectives import CRD, NTXent, Regression
from kdbench_vidlankd.pretrain import HEADS, PretrainStudent, PretrainTeacher, stage_of

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.stage import Finished
    from kdbench_vidlankd._modules import LanguageModule, VideoModule
    from kdbench_vidlankd.corpus import Corpus

__all__ = ["RANKS", "Retrieve", "chance"]

RANKS = (1, 5)

MAPPING = (CRD, NTXent, Regression)
"""Objectives that hold a student's state against the teacher's own of the same token."""


class Retrieve(Stage, frozen=True):
    """Recall at k, percent. Inputs ``teacher``, whose video tower embeds held-out clips, and ``network``: a student,
    whose tokens pass the head of its first objective of :data:`MAPPING`, or that teacher itself.

    A query is an unspoken test noun: its state in sentences that say nothing of it, of length 1 each, averaged. The
    gallery are the held-out clips of all these nouns, no two of which have the same attributes. ``test.recall1`` and
    ``test.recall5``: whether the k clips with the largest cosine have one of its own.

    The notes hold, of one test noun, the cosines of the words of a sentence and the frames of its clip, as far as the
    teacher is shown them: the tower's output at each frame in place of its mean over time.
    """

    world: int

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.losses import unit
        from kdbench_vidlankd.pretrain import language_of, video_of
        from kdbench_vidlankd.probes import noun_states
        from kdbench_vidlankd.tasks import shown_frames

        found = corpus(work.spec.data, self.world)
        if found.world is None:
            raise StageError(
                f"'{work.spec.data.dataset}' has no nouns to find clips of",
                cure="retrieve from a data set with a world",
            )
        teacher, network = work.input("teacher"), work.input("network")
        nouns = found.world.part("test")
        stage, language, video = stage_of(teacher), language_of(network, work), video_of(teacher, work)
        assert isinstance(stage, PretrainTeacher)
        head = _head(network, work)
        numbers = torch.from_numpy(found.world.clip_labels("test"))
        wanted = torch.tensor([noun.number for noun in nouns])
        rows = torch.isin(numbers, wanted).nonzero()[:, 0]
        frames = torch.from_numpy(found.world.test_clips)[rows].to(work.device)
        shown = torch.ones(frames.shape[:2], dtype=torch.bool, device=work.device)
        with torch.no_grad():
            seen, real = shown_frames(stage, frames, shown)
            clips = video(seen, real)
            queries = unit(head(noun_states(language, found, nouns).to(work.device)).mean(1))
        ranked = torch.argsort((queries @ clips.T).cpu(), dim=1, descending=True, stable=True)
        own = numbers[rows][ranked] == wanted[:, None]
        metrics = {f"test.recall{k}": 100.0 * own[:, :k].any(1).double().mean().item() for k in RANKS}
        place = int((numbers[rows] == nouns[0].number).nonzero()[0, 0])
        picture = _picture(found, language, video, head, seen[place : place + 1], nouns[0].word)
        if stage.frames == "all":
            shakes, glows = found.world.events("test")[int(rows[place])]
            picture["events"] = {"shakes": int(shakes), "glows": int(glows)}
        return Outcome(metrics=metrics, notes={"picture": picture, "gallery": len(rows)})


def chance(k: int, own: int, gallery: int) -> float:
    """Recall at k, percent, of clips in random order, of which ``own`` of ``gallery`` are right."""
    return 100.0 * (1.0 - comb(gallery - own, k) / comb(gallery, k))


def _head(network: Finished, work: Work) -> Any:
    """What maps states of the network to the teacher's, of length 1."""
    from torch import nn

    from kdbench_vidlankd.distilling import DistillationHead
    from kdbench_vidlankd.losses import unit

    stage = stage_of(network)
    if not isinstance(stage, PretrainStudent):
        return unit
    # NST's head is drawn to relations of tokens, and its states lie nowhere near the teacher's.
    kinds = enumerate(stage.objectives)
    number = next((place for place, each in kinds if isinstance(each, MAPPING) and each.head), None)
    if number is None:
        raise StageError(
            "the student has no head that maps its states to the teacher's",
            where=network.record.label,
            cure="retrieve with a student of CRD, NT-Xent or L2 regression",
        )
    tensors = network.tensors(HEADS)
    head: nn.Module = DistillationHead(stage.tower.hidden)
    prefix = f"{number}.head."
    head.load_state_dict({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    return head.to(work.device).eval().requires_grad_(False)


def _picture(
    corpus: Corpus, language: LanguageModule, video: VideoModule, head: Any, frames: Tensor, noun: str
) -> dict[str, Any]:
    """Words, and their cosines with each frame ``[words][frames]``."""
    import torch

    from kdbench_vidlankd.grammar import neutral

    sentence = neutral(noun)[0]
    tokens, attended = corpus.sentences([sentence], len(sentence.split()) + 2)
    with torch.no_grad():
        words = head(language(tokens.to(frames.device), attended.to(frames.device)))[0]
        cosines = words @ video.each_frame(frames)[0].T
    written = [corpus.tokenizer.id_to_token(int(token)) for token in tokens[0]]
    return {"words": written, "cosines": [[round(float(value), 6) for value in row] for row in cosines.cpu()]}

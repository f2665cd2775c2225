"""Voken-style labels: the nearest clip of each token by brute force, and the classifier that learns them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from vid_bench import TOWER, Bench, make_recipe, untrained
from vid_states import gradients, make_material, same

from kdbench.errors import KdbenchError, StageError
from kdbench.stage import Finished
from kdbench.training.seeds import derive_seed
from kdbench_vidlankd.corpus import corpus
from kdbench_vidlankd.datasets import UNSPOKEN
from kdbench_vidlankd.pretrain import PretrainStudent, language_of, video_of
from kdbench_vidlankd.vokens import LABELS, Vokenize, VokenLabels
from kdbench_vidlankd.world import STREAMS

for extra in ("transformers", "tokenizers"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

BLOCK, COUNT = 16, 12


@pytest.fixture(scope="module")
def bench(small_world: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), UNSPOKEN.expected())


def teacher(bench: Bench, **changes: Any) -> Finished:
    return bench.run(msgspec.structs.replace(untrained(), **changes))


@pytest.mark.parametrize("frames", ["all", "middle"])
def test_a_label_is_the_nearest_of_the_clips_as_the_teacher_is_shown_them(bench: Bench, frames: str) -> None:
    taught = teacher(bench, frames=frames)
    found = bench.run(Vokenize(count=COUNT, world=0, length=BLOCK), teacher=taught)
    labels = found.tensors(LABELS)["labels"]
    text = corpus(bench.data, 0).text(BLOCK)
    assert labels.shape == text.shape
    assert 0 <= int(labels.min()) <= int(labels.max()) < COUNT
    assert found.record.metrics == {"vokens.used": float(len(set(labels.flatten().tolist())))}
    assert len(set(labels.flatten().tolist())) > 2, "else nothing is told apart"
    language, video = language_of(taught, bench.work(taught)), video_of(taught, bench.work(taught))
    world = corpus(bench.data, 0).world
    assert world is not None
    order = np.random.default_rng(derive_seed(0, "vokens")).permutation(len(world.train_clips))
    clips = torch.from_numpy(world.train_clips[order[:COUNT]])
    if frames == "middle":
        clips = clips[:, 4:5].clone()
        clips[:, :, STREAMS["3d"]] = 0.0
    with torch.no_grad():
        vectors = [video(clip[None])[0].double() for clip in clips]
        for row in (0, 1, 255, 256, len(text) - 1):
            states = language(text[row : row + 1])[0].double()
            for place, state in enumerate(states):
                near = [float(state @ vector) / float(state.norm()) for vector in vectors]
                best = max(near)
                # Of two equally near ones to single precision either will do.
                assert near[int(labels[row, place])] == pytest.approx(best, abs=1e-6)


def test_more_vokens_than_clips_are_an_error_in_words(bench: Bench) -> None:
    with pytest.raises(StageError, match="320 clips do not give 321 vokens"):
        bench.run(Vokenize(count=321, world=0, length=BLOCK), teacher=teacher(bench))


def test_every_clip_may_be_a_voken(bench: Bench) -> None:
    found = bench.run(Vokenize(count=320, world=0, length=BLOCK), teacher=teacher(bench))
    assert int(found.tensors(LABELS)["labels"].max()) < 320


@pytest.mark.parametrize("padding", [False, True])
def test_the_classifier_is_its_reference(padding: bool) -> None:
    torch.manual_seed(0)
    module = VokenLabels(weight=2.0, count=7).build(6, 9, 5).double()
    material = make_material(padding=padding)
    labels = torch.randint(7, material.attention.shape, generator=torch.Generator().manual_seed(1))
    material = material._replace(vokens=labels)
    leaves = (material.student, *module.parameters())
    found = gradients(lambda: module(material), *leaves)
    same(found, gradients(lambda: module.reference(material), *leaves))
    if padding:
        assert not material.attention.all()
        assert not found[1][0][~material.attention].any()
        other = material._replace(vokens=torch.where(material.attention, labels, 6 - labels))
        assert torch.equal(module(other), found[0])
        labels = labels.masked_fill(~material.attention, -1)
        assert torch.equal(module(material._replace(vokens=labels)), found[0]), "what stands at padding is not read"


def test_without_labels_it_is_an_error_in_words() -> None:
    with pytest.raises(KdbenchError, match="there are no voken labels"):
        VokenLabels(weight=1.0, count=7).build(6, 9, 5)(make_material())


def test_a_student_learns_its_own_blocks_labels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench_vidlankd.distilling import VokenDistiller

    made = bench.run(Vokenize(count=COUNT, world=0, length=BLOCK), teacher=teacher(bench))
    labels, text = made.tensors(LABELS)["labels"], corpus(bench.data, 0).text(BLOCK)
    forward, seen = VokenDistiller.forward, 0

    def watching(module: VokenDistiller, material: Any) -> torch.Tensor:
        nonlocal seen
        assert torch.equal(material.vokens, labels[material.indices])
        assert material.attention.all()
        seen += len(material.indices)
        return forward(module, material)

    monkeypatch.setattr(VokenDistiller, "forward", watching)
    stage = PretrainStudent(
        tower=TOWER,
        recipe=make_recipe(1),
        world=0,
        length=BLOCK,
        objectives=(VokenLabels(weight=1.0, count=COUNT),),
    )
    found = bench.run(stage, vokens=made)
    assert seen == len(text) // 32 * 32
    assert found.record.curves["objective"][0] > 0

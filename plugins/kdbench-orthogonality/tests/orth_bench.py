"""A store in which the stage is run for real on tiny networks that are trained there."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from torch import Tensor

from kdbench.component import load_object
from kdbench.data import DataRef, dataset
from kdbench.networks import Plain
from kdbench.paper import Paper, Protocol
from kdbench.stage import Finished, execute
from kdbench.store import Store
from kdbench.study import Lab, Node
from kdbench.training import SGD, CrossEntropy, Distillation, Objective, Recipe
from kdbench.training.batch import Batch
from kdbench.training.recipe import Sample
from kdbench_orthogonality.compress import Compress
from kdbench_orthogonality.techniques import Technique

STUDENT, TEACHER = Plain(size=2, width=0.5), Plain(size=4, width=0.5)
RECIPE = Recipe(
    epochs=2, optimizer=SGD(lr=0.05, weight_decay=1e-3), batch_size=64, holdout=0.1, sample=Sample(size=800, number=1)
)
NONE = msgspec.structs.replace(RECIPE, epochs=0)
KD = Distillation(temperature=4.0, alpha=0.9)

SEEN: list[list[int]] = []


class Spy(CrossEntropy, frozen=True):
    """Notes the places of every batch."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SEEN.append(batch.indices.tolist())
        return super().loss(logits, batch)


class Workshop:
    """A store shared by the tests below: each network is trained once, in this process."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)
        paper = Paper(
            id="toy",
            title="A toy",
            authors="Nobody",
            venue="Nowhere",
            year=2026,
            url="https://example.org",
            bibtex="@misc{toy}",
            summary="Nothing.",
            datasets=("mnist1d",),
            default_dataset={"smoke": "mnist1d"},
            protocols=(Protocol(id="clean", sentence="clean"),),
        )
        data: DataRef = load_object(dataset("mnist1d").locate)(None, Path(os.environ["KDBENCH_CACHE"]), None)
        self.lab = Lab(paper, tier="smoke", protocol="clean", data=data, seeds=(0,), networks={})

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)


class Bench(Workshop):
    """A student and its teacher, and what techniques make of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.student = self.lab.train(STUDENT, seed=0, recipe=RECIPE)
        self.teacher = self.lab.train(TEACHER, seed=0, recipe=RECIPE)

    def compressed(
        self,
        technique: Technique,
        recipe: Recipe = RECIPE,
        objective: Objective | None = None,
        network: Node | None = None,
    ) -> Node:
        inputs = {"network": network or self.student}
        if isinstance(objective, Distillation):
            inputs["teacher"] = self.lab.teacher(self.teacher, recipe)
        stage = Compress(technique=technique, recipe=recipe, objective=objective or CrossEntropy())
        return self.lab.stage(stage, seed=0, label=technique.label, inputs=inputs, network=STUDENT)

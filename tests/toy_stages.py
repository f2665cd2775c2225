"""Stages that do next to nothing, or do it badly, and a plugin around them: what the engine is tested with.

Workers import this module by its name, so whoever starts one puts this folder on ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toy_paper import STUDENT, TEACHER, toy_paper

import kdbench.stage
from kdbench import Paper, hookimpl
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Effort, Stage, Work
from kdbench.study import Lab, Measurement
from kdbench.training import SGD, Distillation, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.training.batch import Batch

HOLD = "KDBENCH_TEST_HOLD"  # while the file of that name exists, a Held stage stands still
HELD_EPOCH = 2


class Number(Stage, frozen=True):
    """Leaves its own number plus those of its inputs; ``steps`` is what it claims to cost."""

    value: float
    validation: float = 0.0
    steps: int = 0

    def effort(self, data: object, networks: object) -> Effort:
        return Effort(self.steps, 0.0)

    def run(self, work: Work) -> Outcome:
        import torch

        total = self.value + sum(work.input(role).record.metrics["test.accuracy"] for role in work.spec.inputs)
        work.save_tensors(WEIGHTS, {"value": torch.tensor([total])})
        return Outcome(metrics={"test.accuracy": total, "validation.accuracy": self.validation})


class Draws(Stage, frozen=True):
    """Leaves one draw of every global generator."""

    salt: int = 0

    def run(self, work: Work) -> Outcome:
        import random

        import numpy
        import torch

        draws = {"python": random.random(), "numpy": float(numpy.random.rand()), "torch": torch.rand(()).item()}
        return Outcome(metrics={**draws, "threads": float(torch.get_num_threads())})


class Fails(Stage, frozen=True):
    """Raises, or leaves a number that is none; not while the file ``unless`` exists."""

    message: str = "broken on purpose"
    how: Literal["raise", "nan", "curve"] = "raise"
    unless: str = ""

    def run(self, work: Work) -> Outcome:
        if self.unless and Path(self.unless).exists():
            return Outcome(metrics={"test.accuracy": 50.0})
        work.save_tensors(WEIGHTS, {})  # a leftover must not be taken for a result
        if self.how == "raise":
            raise ValueError(self.message)
        if self.how == "nan":
            return Outcome(metrics={"test.accuracy": float("nan")})
        return Outcome(metrics={}, curves={"loss": [1.0, float("inf")]})


class Dies(Stage, frozen=True):
    """Takes its process along."""

    how: Literal["exit", "kill"]

    def run(self, work: Work) -> Outcome:
        if self.how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


class Chatters(Stage, frozen=True):
    """Writes on standard output in every way there is, also what looks like an answer of the protocol."""

    lines: int = 3

    def run(self, work: Work) -> Outcome:
        for _ in range(self.lines):
            print("{}", flush=True)
            os.write(1, b'{"what": "not an answer", "where": null, "cure": null, "trace": ""}\n')
            subprocess.run(["echo", "{}"], check=True)
        return Outcome(metrics={"test.accuracy": 1.0})


class Held(Distillation, frozen=True):
    """Distillation that stands still in its third epoch while the file named in the environment exists.

    It then writes its resumable state after every epoch, and its process id beside the file.
    """

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        if name := os.environ.get(HOLD):
            hold = Path(name)
            kdbench.stage.STATE_EVERY = 0.0
            if batch.epoch == HELD_EPOCH and hold.exists():
                hold.with_suffix(".pid").write_text(str(os.getpid()))
                while hold.exists():
                    time.sleep(0.02)
        return super().loss(logits, batch)


HELD_RECIPE = Recipe(
    epochs=4, optimizer=SGD(lr=0.05), statistics="none", holdout=0.1, selection="validation", batch_size=200
)


def held_study(lab: Lab) -> Iterator[Measurement]:
    """Scratch against distilled, the distillation one that can be held."""
    for seed in lab.seeds:
        teacher = lab.train(TEACHER, seed=seed, recipe=HELD_RECIPE)
        scratch = lab.train(STUDENT, seed=seed, recipe=HELD_RECIPE)
        objective = Held(temperature=4.0, alpha=0.9)
        distilled = lab.distil(STUDENT, teacher, seed=seed, recipe=HELD_RECIPE, objective=objective)
        yield lab.measure(f"table1/{lab.dataset}/scratch", scratch.accuracy, seed=seed)
        yield lab.measure(f"table1/{lab.dataset}/distilled", distilled.accuracy, seed=seed)


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield toy_paper(held_study, id="held-toy")

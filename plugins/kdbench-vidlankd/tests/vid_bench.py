"""A store in which stages run for real, in this process, on towers that are made in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdbench import stage as stages
from kdbench.code import code_version
from kdbench.component import pack
from kdbench.data.base import DataRef
from kdbench.stage import Finished, Spec, Stage, Work, execute
from kdbench.store import Store
from kdbench.training import AdamW, Recipe, WarmupLinear
from kdbench_vidlankd.pretrain import PretrainTeacher
from kdbench_vidlankd.towers import Bert, Video

__all__ = ["TOWER", "Bench", "Killed", "killing", "make_recipe", "untrained"]

TOWER = Bert(layers=1, hidden=16, heads=2, feedforward=32, dropout=0.1, positions=32, spread=0.1)


def make_recipe(epochs: int, rate: float = 1e-2, batch_size: int = 32, **more: Any) -> Recipe:
    return Recipe(
        epochs=epochs,
        optimizer=AdamW(lr=rate),
        batch_size=batch_size,
        schedule=WarmupLinear(0.1),
        clip=1.0,
        **more,
    )


def untrained(tower: Bert = TOWER, features: int = 40, batch_size: int = 32) -> PretrainTeacher:
    """A teacher as it begins."""
    video = Video(encoder=tower, features=features, projection=16)
    return PretrainTeacher(
        language=tower, video=video, recipe=make_recipe(0, batch_size=batch_size), world=0, length=20
    )


class Bench:
    """Stages of one data set, each run once."""

    def __init__(self, root: Path, data: DataRef) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True, exist_ok=True)
        self.data = data

    def prepare(self, stage: Stage, *, seed: int = 0, **inputs: Finished) -> Path:
        """The folder of a stage that has not run."""
        packed = pack(stage)
        spec = Spec(
            stage=packed,
            seed=seed,
            tier="smoke",
            device="cpu",
            threads=1,
            code=code_version(packed, self.data.load),
            data=self.data,
            inputs={role: finished.record.hash for role, finished in inputs.items()},
            label=f"{type(stage).__name__} seed {seed}",
        )
        return self.store.prepare(spec)

    def run(self, stage: Stage, *, seed: int = 0, **inputs: Finished) -> Finished:
        folder = self.prepare(stage, seed=seed, **inputs)
        execute(folder)
        return Finished(folder)

    def work(self, finished: Finished) -> Work:
        """What the stage could touch."""
        return Work(finished.folder, stages.read_spec(finished.folder))


class Killed(BaseException):
    """What a kill is to the process that it ends."""


@contextmanager
def killing() -> Iterator[None]:
    """Within, a process ends with its first resumable state."""
    save = Work.save_state

    def save_and_end(work: Work, state: Any) -> None:
        save(work, state)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "STATE_EVERY", 0.0)
        patch.setattr(Work, "save_state", save_and_end)
        yield

"""What a step of training is given, seen from outside, in a store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vid_bench import Bench

from kdbench.stage import Finished
from kdbench_vidlankd.pretrain import PretrainStudent, PretrainTeacher
from kdbench_vidlankd.tasks import StudentTask, TeacherTask

__all__ = ["Seen", "elsewhere", "same_tensors", "watch", "watched"]


def elsewhere(bench: Bench, root: Path, *inputs: Finished) -> Bench:
    """Another store, in which nothing but some inputs is finished."""
    other = Bench(root, bench.data)
    for each in inputs:
        (other.store.stages / each.folder.name).symlink_to(each.folder, target_is_directory=True)
    return other


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Seen:
    """What a task trained on, step by step: tokens as read and as meant, and the language tower at its start."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []
        self.meant: list[Tensor] = []
        self.clips: list[Tensor] = []
        self.start: dict[str, Tensor] = {}

    def same_text(self, other: Seen) -> bool:
        return all(
            len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))
            for mine, theirs in ((self.read, other.read), (self.meant, other.meant))
        )


@contextmanager
def watched(task: type[StudentTask] | type[TeacherTask]) -> Iterator[Seen]:
    """Everything that tasks of a kind are given meanwhile."""
    seen, terms = Seen(), task.terms

    def watching(self: Any, batch: Any) -> dict[str, Tensor]:
        model = self._model if isinstance(self, StudentTask) else self._towers
        if not seen.start:
            seen.start = {name: each.clone() for name, each in model.language.weights().items()}
        seen.read.append(batch.masked.tokens)
        if isinstance(self, TeacherTask):
            seen.clips.append(batch.clip.frames)
        seen.meant.append(batch.tokens if isinstance(self, StudentTask) else batch.clip.tokens)
        found: dict[str, Tensor] = terms(self, batch)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "terms", watching)
        yield seen


def watch(bench: Bench, root: Path, stage: PretrainStudent | PretrainTeacher, **given: Finished) -> Seen:
    task = StudentTask if isinstance(stage, PretrainStudent) else TeacherTask
    with watched(task) as seen:
        elsewhere(bench, root, *given.values()).run(stage, **given)
    return seen

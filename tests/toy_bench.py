"""A store in which tests run the stages of a lab, in this process, and kill them."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_paper import toy_lab

import kdbench.stage
from kdbench.stage import Finished, Work, execute, read_spec
from kdbench.store import Store
from kdbench.study import Lab, Node

__all__ = ["Bench", "work_of"]


class Bench:
    """Each node is run once, after its inputs."""

    def __init__(self, root: Path, lab: Lab | None = None) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)
        self.lab = lab or toy_lab()

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)

    def killed_and_resumed(self, node: Node, epoch: int) -> Finished:
        """The node killed as ``epoch`` begins, from whose state it then goes on."""
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        progress, begun = Work.progress, []

        def fatal(self: Work, done: int, total: int) -> None:
            if done == epoch:
                raise KeyboardInterrupt
            progress(self, done, total)

        def noting(self: Work, done: int, total: int) -> None:
            begun.append(done)
            progress(self, done, total)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kdbench.stage, "STATE_EVERY", 0.0)
            patch.setattr(Work, "progress", fatal)
            with pytest.raises(KeyboardInterrupt):
                execute(folder)
            assert (folder / "state.pt").exists()
            patch.setattr(Work, "progress", noting)
            execute(folder)
        assert begun[0] == epoch, "it began anew"
        return Finished(folder)


def work_of(finished: Finished) -> Work:
    return Work(finished.folder, read_spec(finished.folder))

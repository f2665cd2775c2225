"""The training loop on a handful of examples: what the tests of the loop and of what trains along share."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor
from toy_paper import STUDENT

from kdbench.data.base import Split
from kdbench.training import SGD, CrossEntropy, Objective, OneCycle, Recipe
from kdbench.training.loop import History, fit
from kdbench.training.model import Normalised

__all__ = ["SHORT", "Memory", "model", "same", "split", "trained"]

SHORT = Recipe(epochs=4, optimizer=SGD(lr=0.05, weight_decay=1e-3), batch_size=20, schedule=OneCycle())

LABELS = CrossEntropy()


class Memory:
    """Checkpoints in memory, written as a file would be; ``stop_at`` plays the kill at an epoch's start."""

    def __init__(self, stop_at: int | None = None, save: bool = False) -> None:
        self.stop_at = stop_at
        self.save = save
        self.blob: bytes | None = None

    def load_state(self) -> Any:
        return None if self.blob is None else torch.load(io.BytesIO(self.blob), weights_only=True)

    def state_due(self) -> bool:
        return self.save

    def save_state(self, state: Any) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.blob = buffer.getvalue()

    def progress(self, done: int, total: int) -> None:
        if done == self.stop_at:
            raise KeyboardInterrupt


def split(count: int = 50, seed: int = 0, dtype: torch.dtype = torch.float32) -> Split:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 1, 40, generator=generator, dtype=torch.float64).to(dtype)
    return Split(inputs, torch.randint(10, (count,), generator=generator))


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Normalised:
    torch.manual_seed(seed)
    return Normalised(STUDENT.build((1, 1, 40), 10), [0.1], [0.9]).to(dtype)


def trained(
    recipe: Recipe = SHORT,
    objective: Objective = LABELS,
    checkpoints: Memory | None = None,
    dtype: torch.dtype = torch.float32,
    **how: Any,
) -> tuple[dict[str, Tensor], History]:
    """Weights and history of one network on the same examples; ``how`` goes to :func:`kdbench.training.loop.fit`."""
    net = model(dtype=dtype)
    memory = checkpoints or Memory()
    history = fit(net, split(dtype=dtype), recipe, objective, seed=7, checkpoints=memory, **how)
    return net.state_dict(), history


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

"""Networks that train along with the student and stand in for a teacher: what self-distillation without one uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["Follower", "WeightAverage", "decay"]


class Follower(Protocol):
    """Gives logits for every batch, and learns of every step of the student. A resumed run has the same state."""

    def __call__(self, inputs: Tensor, indices: Tensor) -> Tensor:
        """Logits ``[n, C]``, without a graph, of the inputs that the student is about to see."""
        ...

    def follow(self, student: nn.Module) -> None:
        """The student has taken an optimiser step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def decay(step: int, cap: float) -> float:
    """Share of the average that a step keeps, ``min(1 - 1 / (step + 1), cap)``, counted from step 1.

    Below the cap the result is the plain mean of the start and of all states so far.
    """
    return min(1.0 - 1.0 / (step + 1), cap)


class WeightAverage:
    """An exponential moving average of the student's parameters, begun from a network of its own.

    Parameters
    ----------
    start : the network to begin from; it is copied. Buffers of normalisation follow the student's.
    cap : largest share of the average that a step keeps, see :func:`decay`.

    Notes
    -----
    It runs in train mode, so batch normalisation sees the batch and not the student's running statistics.
    """

    def __init__(self, start: nn.Module, cap: float) -> None:
        def move(averaged: Sequence[Tensor], current: Sequence[Tensor], step: Tensor | int) -> None:
            # Not ``step``, a copy on the parameters' device: reading that would wait for a GPU.
            kept = decay(int(self.average.n_averaged), cap)
            torch._foreach_lerp_(list(averaged), list(current), 1.0 - kept)

        self.average = AveragedModel(start, multi_avg_fn=move)
        # At 0 torch's class would copy the student over the start, which is not how the average begins here.
        self.average.n_averaged.fill_(1)
        self.average.train().requires_grad_(False)

    def __call__(self, inputs: Tensor, indices: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.average(inputs)
        return logits

    def follow(self, student: nn.Module) -> None:
        with torch.no_grad():
            self.average.update_parameters(student)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        return self.average.load_state_dict(state)


Fresh = Callable[[], nn.Module]
"""Builds the student's network anew, with an initialisation that no student of the study has."""

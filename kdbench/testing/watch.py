"""What a conformance run watches in a stage: teachers, optimisers, the environment, the reduction of its losses.

Each watch is a context manager around ``execute`` that changes no number of a stage that is in order; a test holds an
observed run against an unobserved one. That of networks is in :mod:`kdbench.testing.watch_networks`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from unittest import mock

from kdbench.testing.forks import Seen
from kdbench.testing.watch_networks import listed, networks_watched

if TYPE_CHECKING:
    import torch

__all__ = ["Optimisers", "optimisers_watched", "watched"]

LOSSES = ("distillation_loss", "ensemble_distillation_loss", "kl", "linear_distillation_loss", "topk_distillation_loss")
"""Functions of :mod:`kdbench.losses` with a KL, which the reduction 'mean' divides by the classes too."""


@contextmanager
def watched(packages: Sequence[str], seen: Seen, optimisers: Optimisers) -> Iterator[None]:
    """Note in ``seen`` whatever a stage does that it must not, though it leaves a record: a sentence each.

    Teachers (inputs whose role begins with ``teacher``, and the network of the built-in teacher stage) must be in eval
    mode, without a gradient, and end as they came; so must other inputs that a stage neither trains nor keeps. Code of
    ``packages`` must not read the environment, which no stage's identity knows, and at protocol ``clean`` must not
    train on a KL with reduction 'mean'.
    """
    with (
        networks_watched(seen.faults, optimisers.parameters),
        _environment_watched(packages, seen.faults),
        _losses_watched(packages, seen.unclean),
    ):
        yield


class Optimisers:
    """The optimisers that made a step."""

    def __init__(self) -> None:
        self.stepped: list[torch.optim.Optimizer] = []  # in the order of their first steps

    def note(self, optimiser: torch.optim.Optimizer, *given: object) -> None:
        """Called after each step."""
        if not any(optimiser is each for each in self.stepped):
            self.stepped.append(optimiser)

    def parameters(self) -> Iterator[torch.Tensor]:
        """What they hold."""
        for optimiser in self.stepped:
            for group in optimiser.param_groups:
                yield from group["params"]

    def digest(self) -> str:
        """SHA-256 over the networks' parameters that they hold, empty where none made a step.

        Other tensors are left out: an attack on test inputs, say, optimises these and trains nothing.
        """
        from torch import nn, uint8

        if not self.stepped:
            return ""
        found = hashlib.sha256()
        for parameter in self.parameters():
            if isinstance(parameter, nn.Parameter):
                found.update(parameter.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes())
        return found.hexdigest()


@contextmanager
def optimisers_watched() -> Iterator[Optimisers]:
    """What optimisers step meanwhile."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    optimisers = Optimisers()
    hook = register_optimizer_step_post_hook(optimisers.note)
    try:
        yield optimisers
    finally:
        hook.remove()


@contextmanager
def _losses_watched(packages: Sequence[str], unclean: list[str]) -> Iterator[None]:
    import torch

    import kdbench.losses

    places: dict[str, None] = {}

    def watching(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(loss)
        def watched_loss(*given: Any, **named: Any) -> torch.Tensor:
            value = loss(*given, **named)
            if torch.compiler.is_compiling():  # there are no frames to look at
                return value
            place = _place(sys._getframe(1), packages)
            if place and named.get("reduction") == "mean" and value.requires_grad:
                places[f"{loss.__name__} at {place}"] = None
            return value

        return watched_loss

    with ExitStack() as stack:
        for name in LOSSES:
            loss = getattr(kdbench.losses, name)
            for module in (kdbench.losses, sys.modules[loss.__module__]):
                stack.enter_context(mock.patch.object(module, name, watching(loss)))
        yield
        unclean += [
            f"trains on the 'mean' KL (kdbench.losses.{place}), which divides it by the number of classes as well as "
            "by the batch; take reduction 'batchmean'"
            for place in places
        ]


@contextmanager
def _environment_watched(packages: Sequence[str], faults: list[str]) -> Iterator[None]:
    reads: dict[str, Counter[str]] = defaultdict(Counter)
    copies: Counter[str] = Counter()

    class Watched(os._Environ[str]):
        def __getitem__(self, name: str) -> str:
            if place := _place(sys._getframe(1), packages):
                reads[place][name] += 1
            return super().__getitem__(name)

        def __iter__(self) -> Iterator[str]:
            if place := _place(sys._getframe(1), packages):
                copies[place] += 1
            return super().__iter__()

    kind = type(os.environ)
    os.environ.__class__ = Watched
    try:
        yield
    finally:
        os.environ.__class__ = kind
        for place, counts in reads.items():
            # A copy, for another program, reads every variable once where it walks over them.
            if names := [name for name, count in counts.items() if count > copies[place]]:
                what = f"the environment variable{'s' if len(names) > 1 else ''} {listed(names)}"
                faults.append(f"reads {what} at {place}; its hash does not know it: make it a field")


def _place(frame: FrameType | None, packages: Sequence[str]) -> str | None:
    """``package/module.py:line`` of who reads, where it is code of one of the packages."""
    while frame is not None and frame.f_globals.get("__name__") in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    if frame is None:
        return None
    parts = str(frame.f_globals.get("__name__")).split(".")
    if parts[0] not in packages:
        return None
    folders = parts if "__path__" in frame.f_globals else parts[:-1]
    return "/".join([*folders, Path(frame.f_code.co_filename).name]) + f":{frame.f_lineno}"

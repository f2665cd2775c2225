"""The one training loop. Extended by composition (task, objective, schedule, teacher), never by copying.

:func:`optimise` trains a network on any :class:`Task`; :func:`fit` on inputs with labels, by an objective on logits.
Every random choice of an epoch comes from a generator seeded by (seed, stream, epoch), so a run that resumes at an
epoch's start makes the same choices as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.base import Split
from kdbench.data.mixing import Mixed, cutmix, mixup
from kdbench.data.transforms import random_crop, random_flip, random_resized_crop
from kdbench.errors import StageError
from kdbench.training.batch import Batch, weighed
from kdbench.training.evaluate import evaluate
from kdbench.training.followers import Follower
from kdbench.training.objectives import Objective
from kdbench.training.recipe import Recipe
from kdbench.training.seeds import derive_seed

__all__ = ["Checkpoints", "History", "Task", "TeacherLogits", "fit", "optimise"]


class Checkpoints(Protocol):
    """Where resumable states go; see :class:`kdbench.stage.Work`."""

    def load_state(self) -> Any: ...
    def state_due(self) -> bool: ...
    def save_state(self, state: Any) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


class Task:
    """What a network is trained on: batches, and the loss of each. Subclasses implement the first three methods.

    An epoch is what the task says it is: after it the loop looks at the loss, notes the curves and may save its state.
    Random choices come from torch's own generator, which the loop seeds at every epoch's start, or from (seed, stream,
    epoch, step), see :func:`kdbench.training.seeds.derive_seed`; what else changes in a run is in the task's state. So
    a resumed run is the same to the bit.

    Attributes
    ----------
    steps : optimiser steps of one epoch, by which the schedule knows its position.
    """

    steps: int

    def batches(self, epoch: int) -> Iterator[Any]:
        """The material of every step of an epoch, made when its step begins."""
        raise NotImplementedError

    def terms(self, batch: Any) -> dict[str, Tensor]:
        """The ``loss`` of the network on a batch, and whatever else is to become a curve; all scalars.

        Every batch has the same terms. ``lr`` and ``gradient`` are names of the loop's own.
        """
        raise NotImplementedError

    def weight(self, batch: Any) -> int:
        """How many examples are in a batch: its share in the means over the epoch."""
        raise NotImplementedError

    def stepped(self) -> None:
        """The network has taken an optimiser step."""

    def ended(self, epoch: int, curves: dict[str, list[float]]) -> None:
        """An epoch is over, ``curves`` end with its values; more may be added, one an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the network, the optimiser and the curves: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


def optimise(
    model: nn.Module, task: Task, recipe: Recipe, *, seed: int, checkpoints: Checkpoints
) -> dict[str, list[float]]:
    """Train ``model`` in place on ``task`` by the epochs, optimiser, schedule and clipping of ``recipe``.

    Parameters
    ----------
    model : the network, all of whose parameters that require a gradient are trained; put into train mode at the start
        of every epoch.
    seed : of the run; torch's own generator is seeded by it and the epoch.

    Returns
    -------
    dict : curves, one value an epoch: the means of the task's terms over the examples, the rate ``lr`` at the epoch's
        first step and, where the recipe clips, the mean norm ``gradient`` before clipping.

    Raises
    ------
    StageError : the loss is not finite, or an epoch has not the steps that the task says.
    """
    optimizer = recipe.optimizer.build(model.parameters())
    curves: dict[str, list[float]] = {"loss": [], "lr": []}
    first = 0
    if (state := checkpoints.load_state()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        task.load_state_dict(state["task"])
        curves, first = state["curves"], state["epoch"]
    for epoch in range(first, recipe.epochs):
        checkpoints.progress(epoch, recipe.epochs)
        torch.manual_seed(derive_seed(seed, "torch", epoch))  # for networks with randomness of their own
        model.train()
        for name, value in _epoch(model, task, optimizer, recipe, epoch).items():
            curves.setdefault(name, []).append(value)
        task.ended(epoch, curves)
        if epoch + 1 < recipe.epochs and checkpoints.state_due():
            checkpoints.save_state(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "task": task.state_dict(),
                    "curves": curves,
                    "epoch": epoch + 1,
                }
            )
    return curves


def _epoch(
    model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int
) -> dict[str, float]:
    """Means of the terms over the examples of an epoch, and the rate at its first step."""
    rates: list[float] = []
    totals: dict[str, Tensor] = {}
    examples = 0
    for step, batch in enumerate(task.batches(epoch)):
        position = (epoch + step / task.steps) / recipe.epochs
        rates.append(recipe.optimizer.lr * recipe.schedule.factor(epoch, position, recipe.epochs))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        terms = task.terms(batch)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            terms = {**terms, "gradient": nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)}
        optimizer.step()
        task.stepped()
        weight = task.weight(batch)
        for name, value in terms.items():
            total = (value.detach() * weight).double()
            totals[name] = totals[name] + total if name in totals else total
        examples += weight
    _check_steps(len(rates), task, epoch)
    means = {name: total.item() / examples for name, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise StageError(
            f"the loss is {means['loss']} in epoch {epoch + 1} of {recipe.epochs}",
            cure=f"lower the learning rate (now {recipe.optimizer.lr:g}) or check the inputs and the objective",
        )
    return {**means, "lr": rates[0]}


def _check_steps(ran: int, task: Task, epoch: int) -> None:
    """The schedule went by the steps that the task said it has: others, and the rates were not the recipe's."""
    if ran != task.steps or not ran:
        raise StageError(
            f"epoch {epoch + 1} had {ran} steps, {type(task).__name__} says {task.steps}",
            cure="let its steps be the number of batches that it gives in every epoch, one at least",
        )


class TeacherLogits(Protocol):
    """Logits of a frozen teacher for a batch, looked up (inputs never change) or computed: ``[n, C]``, of M > 1
    teachers ``[M, n, C]``."""

    def __call__(self, inputs: Tensor, indices: Tensor) -> Tensor: ...


class History(NamedTuple):
    """What the loop leaves beside the trained weights: one value an epoch, and the epoch whose weights were kept."""

    curves: dict[str, list[float]]
    selected_epoch: int


def fit(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    objective: Objective,
    *,
    seed: int,
    checkpoints: Checkpoints,
    teacher: TeacherLogits | None = None,
    follower: Follower | None = None,
    selection: Split | None = None,
    input_size: tuple[int, int] | None = None,
) -> History:
    """Train ``model`` in place and leave it with the selected epoch's weights.

    Parameters
    ----------
    train : inputs ``[N, C, H, W]`` and labels ``[N]``, on the model's device.
    teacher : gives teacher logits for a batch; None for plain training.
    follower : a network that trains along and stands in for the teacher.
    selection : the split on which the best epoch is chosen; None keeps the last.
    input_size : height and width that ``resized-crop-flip`` leaves, what the network takes; None: those of ``train``.

    Raises
    ------
    StageError : the loss is not finite, or there are both a teacher and a follower.
    """
    if teacher is not None and follower is not None:
        raise StageError(
            f"{type(objective).__name__} brings a network of its own that stands in for the teacher, and there is one",
            cure="train it without a teacher: lab.train",
        )
    task = _Images(model, train, recipe, objective, seed, teacher, follower, selection, input_size)
    curves = optimise(model, task, recipe, seed=seed, checkpoints=checkpoints)
    if task.best["weights"] is not None:
        model.load_state_dict(task.best["weights"])
    return History(curves, task.best["epoch"])


class _Images(Task):
    """Inputs with labels, an objective on the network's logits, and who is asked for a teacher's."""

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        recipe: Recipe,
        objective: Objective,
        seed: int,
        teacher: TeacherLogits | None,
        follower: Follower | None,
        selection: Split | None,
        input_size: tuple[int, int] | None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.objective = objective
        self.follower = follower
        self.selection = selection
        self.steps = math.ceil(len(train.labels) / recipe.batch_size)
        self.best: dict[str, Any] = {"epoch": recipe.epochs - 1, "score": -math.inf, "weights": None}
        asked = teacher if follower is None else follower
        self._batches = partial(_batches, train, recipe, asked, seed, input_size=input_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        return self._batches(epoch)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.model(batch.inputs)
        return weighed(partial(_terms, self.objective, logits), batch)

    def weight(self, batch: Batch) -> int:
        return len(batch.labels)

    def stepped(self) -> None:
        if self.follower is not None:
            self.follower.follow(self.model)

    def ended(self, epoch: int, curves: dict[str, list[float]]) -> None:
        if self.selection is not None:
            _keep_best(self.model, self.selection, epoch, curves, self.best, self.recipe.ties)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "follower": None if self.follower is None else self.follower.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        if self.follower is not None:
            self.follower.load_state_dict(state["follower"])


def _terms(objective: Objective, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The loss, and without a graph what the objective observes."""
    loss = objective.loss(logits, batch)
    with torch.no_grad():
        seen = objective.observe(logits.detach(), batch)
    return {"loss": loss, **{f"objective.{name}": value for name, value in seen.items()}}


def _batches(
    train: Split,
    recipe: Recipe,
    teacher: TeacherLogits | None,
    seed: int,
    epoch: int,
    input_size: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    device = train.labels.device
    order = torch.randperm(len(train.labels), generator=_generator(seed, "order", epoch)).to(device)
    size = input_size or (train.inputs.shape[2], train.inputs.shape[3])
    augment = _augmentation(recipe, size, _generator(seed, "augment", epoch))
    mix = _mixing(recipe, derive_seed(seed, "mix", epoch))
    nothing = torch.empty(0, device=device)
    for step, indices in enumerate(torch.split(order, recipe.batch_size)):
        inputs, labels = augment(train.inputs[indices]), train.labels[indices]
        other_labels, share = None, 1.0
        if mix is not None:
            inputs, partners, share = mix(inputs)
            other_labels = labels[partners]
        logits = nothing if teacher is None else teacher(inputs, indices)
        drawn = derive_seed(seed, "objective", epoch, step)
        yield Batch(inputs, labels, indices, logits, epoch, drawn, other_labels, share)


def _augmentation(recipe: Recipe, size: tuple[int, int], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    if recipe.augmentation == "none":
        return lambda inputs: inputs
    if recipe.augmentation == "resized-crop-flip":
        return lambda inputs: random_flip(random_resized_crop(inputs, size, generator), generator)
    if recipe.augmentation == "shift":
        return lambda inputs: random_crop(inputs, 4, generator)
    return lambda inputs: random_flip(random_crop(inputs, 4, generator), generator)


def _mixing(recipe: Recipe, seed: int) -> Callable[[Tensor], Mixed] | None:
    if recipe.mixing is None:
        return None
    random = np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF])
    mix = mixup if recipe.mixing.kind == "mixup" else cutmix
    return partial(mix, strength=recipe.mixing.strength, random=random)


def _generator(seed: int, stream: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, stream, epoch))


def _keep_best(
    model: nn.Module, selection: Split, epoch: int, curves: dict[str, list[float]], best: dict[str, Any], ties: str
) -> None:
    score = evaluate(model, selection)["accuracy"]
    curves.setdefault("selection.accuracy", []).append(score)
    if score > best["score"] or (ties == "last" and score == best["score"]):
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        best.update(epoch=epoch, score=score, weights=weights)

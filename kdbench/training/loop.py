"""The one training loop. Extended by composition (objective, schedule, teacher), never by copying.

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

__all__ = ["Checkpoints", "History", "TeacherLogits", "fit"]


class TeacherLogits(Protocol):
    """Logits of a frozen teacher for a batch, looked up (inputs never change) or computed: ``[n, C]``, of M > 1
    teachers ``[M, n, C]``."""

    def __call__(self, inputs: Tensor, indices: Tensor) -> Tensor: ...


class Checkpoints(Protocol):
    """Where resumable states go; see :class:`kdbench.stage.Work`."""

    def load_state(self) -> Any: ...
    def state_due(self) -> bool: ...
    def save_state(self, state: Any) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


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
    optimizer = _optimizer(model, recipe)
    curves: dict[str, list[float]] = {"loss": [], "lr": []}
    best: dict[str, Any] = {"epoch": recipe.epochs - 1, "score": -math.inf, "weights": None}
    first = 0
    if (state := checkpoints.load_state()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curves, best, first = state["curves"], state["best"], state["epoch"]
        if follower is not None:
            follower.load_state_dict(state["follower"])
    for epoch in range(first, recipe.epochs):
        checkpoints.progress(epoch, recipe.epochs)
        torch.manual_seed(derive_seed(seed, "torch", epoch))  # for networks with randomness of their own
        batches = _batches(train, recipe, teacher if follower is None else follower, seed, epoch, input_size)
        for name, value in _epoch(model, optimizer, batches, train, recipe, objective, follower, epoch).items():
            curves.setdefault(name, []).append(value)
        if selection is not None:
            _keep_best(model, selection, epoch, curves, best, recipe.ties)
        if epoch + 1 < recipe.epochs and checkpoints.state_due():
            checkpoints.save_state(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "follower": None if follower is None else follower.state_dict(),
                    "curves": curves,
                    "best": best,
                    "epoch": epoch + 1,
                }
            )
    if best["weights"] is not None:
        model.load_state_dict(best["weights"])
    return History(curves, best["epoch"])


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    train: Split,
    recipe: Recipe,
    objective: Objective,
    follower: Follower | None,
    epoch: int,
) -> dict[str, float]:
    """Means over the epoch of the loss and of what the objective observes, and the rate at its first step."""
    model.train()
    rates: list[float] = []
    nothing = torch.zeros((), dtype=torch.float64, device=train.labels.device)
    totals: dict[str, Tensor] = {}
    steps = math.ceil(len(train.labels) / recipe.batch_size)
    for step, batch in enumerate(batches):
        position = (epoch + step / steps) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * recipe.schedule.factor(epoch, position, recipe.epochs)
        logits = model(batch.inputs)
        terms = weighed(partial(_terms, objective, logits), batch)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if follower is not None:
            follower.follow(model)
        rates.append(optimizer.param_groups[0]["lr"])
        for name, value in terms.items():
            totals[name] = totals.get(name, nothing) + value.detach() * len(batch.labels)
    means = {name: total.item() / len(train.labels) for name, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise StageError(
            f"the loss is {means['loss']} in epoch {epoch + 1} of {recipe.epochs}",
            cure=f"lower the learning rate (now {recipe.optimizer.lr:g}) or check the inputs and the objective",
        )
    return {**means, "lr": rates[0]}


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


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    sgd = recipe.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=sgd.lr,
        momentum=sgd.momentum,
        nesterov=sgd.nesterov and sgd.momentum > 0,
        weight_decay=sgd.weight_decay,
        fused=True,
    )


def _keep_best(
    model: nn.Module, selection: Split, epoch: int, curves: dict[str, list[float]], best: dict[str, Any], ties: str
) -> None:
    score = evaluate(model, selection)["accuracy"]
    curves.setdefault("selection.accuracy", []).append(score)
    if score > best["score"] or (ties == "last" and score == best["score"]):
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        best.update(epoch=epoch, score=score, weights=weights)

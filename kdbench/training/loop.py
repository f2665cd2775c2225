"""The one training loop. Extended by composition (objective, schedule, teacher), never by copying.

Every random choice of an epoch comes from a generator seeded by (seed, stream, epoch), so a run that resumes at an
epoch's start makes the same choices as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdbench.data.base import Split
from kdbench.data.transforms import random_crop, random_flip
from kdbench.errors import StageError
from kdbench.training.batch import Batch
from kdbench.training.evaluate import evaluate
from kdbench.training.objectives import Objective
from kdbench.training.recipe import Recipe
from kdbench.training.seeds import derive_seed

__all__ = ["Checkpoints", "History", "TeacherLogits", "fit"]


class TeacherLogits(Protocol):
    """Logits ``[n, C]`` of a frozen teacher for a batch: looked up (inputs never change) or computed."""

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
    selection: Split | None = None,
) -> History:
    """Train ``model`` in place and leave it with the selected epoch's weights.

    Parameters
    ----------
    train : inputs ``[N, C, H, W]`` and labels ``[N]``, on the model's device.
    teacher : gives teacher logits for a batch; None for plain training.
    selection : the split on which the best epoch is chosen; None keeps the last.

    Raises
    ------
    StageError : the loss is not finite.
    """
    optimizer = _optimizer(model, recipe)
    curves: dict[str, list[float]] = {"loss": [], "lr": []}
    best: dict[str, Any] = {"epoch": recipe.epochs - 1, "score": -math.inf, "weights": None}
    first = 0
    if (state := checkpoints.load_state()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curves, best, first = state["curves"], state["best"], state["epoch"]
    for epoch in range(first, recipe.epochs):
        checkpoints.progress(epoch, recipe.epochs)
        torch.manual_seed(derive_seed(seed, "torch", epoch))  # for networks with randomness of their own
        loss, rate = _epoch(model, optimizer, train, recipe, objective, teacher, seed, epoch)
        curves["loss"].append(loss)
        curves["lr"].append(rate)
        if selection is not None:
            _keep_best(model, selection, epoch, curves, best)
        if epoch + 1 < recipe.epochs and checkpoints.state_due():
            checkpoints.save_state(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
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
    train: Split,
    recipe: Recipe,
    objective: Objective,
    teacher: TeacherLogits | None,
    seed: int,
    epoch: int,
) -> tuple[float, float]:
    """Mean loss of the epoch, and the rate that the optimiser really had at its first step."""
    model.train()
    rates: list[float] = []
    total = torch.zeros((), dtype=torch.float64, device=train.labels.device)
    steps = math.ceil(len(train.labels) / recipe.batch_size)
    for step, batch in enumerate(_batches(train, recipe, teacher, seed, epoch)):
        position = (epoch + step / steps) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * recipe.schedule.factor(epoch, position, recipe.epochs)
        loss = objective.loss(model(batch.inputs), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        total += loss.detach() * len(batch.labels)
    mean = total.item() / len(train.labels)
    if not math.isfinite(mean):
        raise StageError(
            f"the loss is {mean} in epoch {epoch + 1} of {recipe.epochs}",
            cure=f"lower the learning rate (now {recipe.optimizer.lr:g}) or check the inputs and the objective",
        )
    return mean, rates[0]


def _batches(train: Split, recipe: Recipe, teacher: TeacherLogits | None, seed: int, epoch: int) -> Iterator[Batch]:
    device = train.labels.device
    order = torch.randperm(len(train.labels), generator=_generator(seed, "order", epoch)).to(device)
    augment = _augmentation(recipe, _generator(seed, "augment", epoch))
    nothing = torch.empty(0, device=device)
    for indices in torch.split(order, recipe.batch_size):
        inputs = augment(train.inputs[indices])
        logits = nothing if teacher is None else teacher(inputs, indices)
        yield Batch(inputs, train.labels[indices], indices, logits, epoch)


def _augmentation(recipe: Recipe, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    if recipe.augmentation == "none":
        return lambda inputs: inputs
    return lambda inputs: random_flip(random_crop(inputs, 4, generator), generator)


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
    model: nn.Module, selection: Split, epoch: int, curves: dict[str, list[float]], best: dict[str, Any]
) -> None:
    score = evaluate(model, selection)["accuracy"]
    curves.setdefault("selection.accuracy", []).append(score)
    if score > best["score"]:  # the first of equals, as released code does
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        best.update(epoch=epoch, score=score, weights=weights)

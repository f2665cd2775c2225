"""Train one network, from its labels or from a frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdbench.component import pack
from kdbench.data.base import DataRef
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import PREDICTIONS, WEIGHTS, Effort, Stage, Work
from kdbench.stages.splits import splits_of
from kdbench.stages.teacher import teacher_logits
from kdbench.training.objectives import CrossEntropy, Objective
from kdbench.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from kdbench.data.base import Split
    from kdbench.training.loop import History

__all__ = ["Train", "measured"]


class Train(Stage, frozen=True):
    """Train ``network`` by ``recipe`` on ``objective``; with an input ``teacher`` the objective sees its logits.

    Several teachers are the inputs ``teacher``, ``teacher1``, ``teacher2``, ...
    ``restart`` numbers repeated trials of one seed: another initialisation and order, equal in everything else.
    """

    network: Network
    recipe: Recipe
    objective: Objective = CrossEntropy()
    restart: int = 0

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        images = self.recipe.examples(data.sizes["train"]) * self.recipe.epochs
        # Backward costs two forwards.
        macs = (3.0 + self.objective.forwards) * self.network.cost(data.input_shape, data.num_classes).macs
        if not self.recipe.inputs_never_change:  # a teacher's logits cannot be looked up
            teachers = [network for role, network in networks.items() if role.startswith("teacher")]
            macs += sum(teacher.cost(data.input_shape, data.num_classes).macs for teacher in teachers)
        return Effort(round(images / self.recipe.batch_size), macs * images)

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench.training.loop import fit
        from kdbench.training.model import Normalised, build_model, sizes_of
        from kdbench.training.seeds import derive_seed

        recipe = self.recipe
        splits = splits_of(work, recipe.holdout, recipe.label_noise, recipe.sample, recipe.unlabelled)
        mean, std = _statistics(recipe, splits["train"])
        seed = derive_seed(work.seed, self.restart)

        def build(stream: str) -> Normalised:
            torch.manual_seed(derive_seed(seed, stream, self.network.name))
            return build_model(self.network, work.spec.data, mean, std).to(work.device)

        model = build("init")
        history = fit(
            model,
            splits["train"],
            recipe,
            self.objective,
            seed=seed,
            checkpoints=work,
            teacher=teacher_logits(work, recipe),
            follower=self.objective.follower(lambda: build("follower")),
            selection=None if recipe.selection == "last" else splits[recipe.selection],
            input_size=work.spec.data.input_shape[1:],
        )
        work.save_tensors(WEIGHTS, model.state_dict())
        metrics = measured(work, model, splits, history)
        sizes = sizes_of(model, self.network, work.spec.data)
        notes = {
            "network": pack(self.network),
            "mean": mean,
            "std": std,
            "parameters": sizes["parameters"],
            "sizes": sizes,
            "recipe": pack(recipe),
            "objective": pack(self.objective),
            "selected_epoch": history.selected_epoch,
        }
        return Outcome(metrics=metrics, curves=history.curves, notes=notes)


def measured(work: Work, model: nn.Module, splits: Mapping[str, Split], history: History) -> dict[str, float]:
    """Keep the answers of a trained network to the test inputs; its metrics on ``validation`` and ``test``, and the
    means of what its objective observed."""
    from kdbench.training.evaluate import metrics_of, predict

    logits = {name: predict(model, splits[name].inputs) for name in ("validation", "test") if name in splits}
    answers = {"classes": logits["test"].argmax(1).int(), "labels": splits["test"].labels.int()}
    work.save_tensors(PREDICTIONS, answers)
    metrics = {
        f"{name}.{metric}": value
        for name, found in logits.items()
        for metric, value in metrics_of(found, splits[name].labels).items()
    }
    observed = {name: curve for name, curve in history.curves.items() if name.startswith("objective.")}
    return metrics | {name: sum(curve) / len(curve) for name, curve in observed.items()}


def _statistics(recipe: Recipe, train: Split) -> tuple[list[float], list[float]]:
    from kdbench.data import channel_statistics

    channels = train.inputs.shape[1]
    if recipe.statistics == "data":
        mean, std = channel_statistics(train)
        return list(mean), list(std)
    if recipe.statistics == "none":
        return [0.0] * channels, [1.0] * channels
    half = len(recipe.statistics) // 2
    return list(recipe.statistics[:half]), list(recipe.statistics[half:])

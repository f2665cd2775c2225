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
from kdbench.stages.teacher import LOGITS
from kdbench.training.objectives import CrossEntropy, Objective
from kdbench.training.recipe import Recipe

if TYPE_CHECKING:
    from kdbench.data.base import Split
    from kdbench.training import loop

__all__ = ["Train"]


class Train(Stage, frozen=True):
    """Train ``network`` by ``recipe`` on ``objective``; with an input ``teacher`` the objective sees its logits.

    ``restart`` numbers repeated trials of one seed: another initialisation and order, equal in everything else.
    """

    network: Network
    recipe: Recipe
    objective: Objective = CrossEntropy()
    restart: int = 0

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        images = data.sizes["train"] * (1 - self.recipe.holdout) * self.recipe.epochs
        # Backward costs two forwards.
        macs = (3.0 + self.objective.forwards) * self.network.cost(data.input_shape, data.num_classes).macs
        if "teacher" in networks and self.recipe.augmentation != "none":  # its logits cannot be looked up
            macs += networks["teacher"].cost(data.input_shape, data.num_classes).macs
        return Effort(round(images / self.recipe.batch_size), macs * images)

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench.training.evaluate import metrics_of, predict
        from kdbench.training.loop import fit
        from kdbench.training.model import Normalised, build_model, sizes_of
        from kdbench.training.seeds import derive_seed

        splits = splits_of(work, self.recipe.holdout, self.recipe.label_noise)
        mean, std = _statistics(self.recipe, splits["train"])
        seed = derive_seed(work.seed, self.restart)

        def build(stream: str) -> Normalised:
            torch.manual_seed(derive_seed(seed, stream, self.network.name))
            return build_model(self.network, work.spec.data, mean, std).to(work.device)

        model = build("init")
        history = fit(
            model,
            splits["train"],
            self.recipe,
            self.objective,
            seed=seed,
            checkpoints=work,
            teacher=_teacher(work, splits["train"]) if "teacher" in work.spec.inputs else None,
            follower=self.objective.follower(lambda: build("follower")),
            selection=None if self.recipe.selection == "last" else splits[self.recipe.selection],
            input_size=work.spec.data.input_shape[1:],
        )
        work.save_tensors(WEIGHTS, model.state_dict())
        logits = {name: predict(model, splits[name].inputs) for name in ("validation", "test") if name in splits}
        answers = {"classes": logits["test"].argmax(1).int(), "labels": splits["test"].labels.int()}
        work.save_tensors(PREDICTIONS, answers)
        metrics = {
            f"{name}.{metric}": value
            for name, found in logits.items()
            for metric, value in metrics_of(found, splits[name].labels).items()
        }
        metrics |= {
            name: sum(curve) / len(curve) for name, curve in history.curves.items() if name.startswith("objective.")
        }
        sizes = sizes_of(model, self.network, work.spec.data)
        notes = {
            "network": pack(self.network),
            "mean": mean,
            "std": std,
            "parameters": sizes["parameters"],
            "sizes": sizes,
            "recipe": pack(self.recipe),
            "objective": pack(self.objective),
            "selected_epoch": history.selected_epoch,
        }
        return Outcome(metrics=metrics, curves=history.curves, notes=notes)


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


def _teacher(work: Work, train: Split) -> loop.TeacherLogits:
    """Cached logits where the teacher stage left them (inputs never change), the frozen network itself otherwise."""
    import torch

    stage = work.input("teacher")
    if LOGITS in stage.record.files:
        table = stage.tensors(LOGITS)["train"].to(work.device)
        return lambda inputs, indices: table[indices]
    model = stage.model(work)

    def live(inputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(inputs)
        return logits

    return live

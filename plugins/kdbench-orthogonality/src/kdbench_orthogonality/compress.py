"""The stage that applies a technique: a trained network in, the compressed one, trained further, out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from kdbench.component import pack, unpack
from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Effort, Stage, Work
from kdbench.stages.splits import splits_of
from kdbench.stages.teacher import teacher_logits
from kdbench.stages.train import Train, measured
from kdbench.training import CrossEntropy, Objective, Recipe
from kdbench_orthogonality.techniques import Technique

__all__ = ["MASKS", "PROGRAM", "Compress"]

MASKS = "pruned.safetensors"
"""Which weights of the network are pruned, bool tensors by the layer's name; left where any is."""

PROGRAM = "program.safetensors"
"""The tensors of a compressed network that no description builds, as the program names them."""


class Compress(Stage, frozen=True):
    """Apply ``technique`` to a trained network, train it further by ``recipe`` on ``objective``, finish, evaluate.

    Input ``network``: the trained network, which may be one that was compressed before; what was pruned in it stays
    zero. With an input ``teacher`` the objective sees its logits, as in :class:`kdbench.stages.Train`. The further
    training is the one loop's: its order of examples is equal for all techniques and objectives of a seed, other than
    the first training's, and another after each technique applied before. With 0 epochs there is none.

    ``made_with`` is :attr:`Technique.made_with` where the stage was planned: with another version of the library it is
    another stage, and where that is not the one at hand it fails.

    The inputs' normalisation is part of the network that comes in; the recipe's ``statistics`` have no meaning here.

    The record's notes say in ``network`` what the network is built from now, in ``technique`` and ``findings`` what was
    done, and in ``before`` which techniques were applied to it earlier. A network that is not built from a description
    any more (:attr:`Technique.rebuilt`) leaves no weights: it is evaluated here, and can be neither teacher nor input.
    """

    technique: Technique
    recipe: Recipe
    objective: Objective = CrossEntropy()
    made_with: str = ""

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        return Train(network=networks["network"], recipe=self.recipe, objective=self.objective).effort(data, networks)

    def run(self, work: Work) -> Outcome:
        from kdbench.training.loop import fit
        from kdbench.training.model import Normalised
        from kdbench.training.seeds import derive_seed
        from kdbench_orthogonality import _pruning

        self.technique.check()
        if self.made_with and self.made_with != self.technique.made_with:
            raise StageError(
                f"planned with {self.made_with}, and here is {self.technique.made_with}",
                cure="plan and run in one environment: reproduce again",
            )
        recipe, before = self.recipe, work.input("network")
        splits = splits_of(work, recipe.holdout, recipe.label_noise, recipe.sample, recipe.unlabelled)
        inputs = splits["train"].inputs
        known = before.record.notes
        earlier = [*known.get("before", []), *([known["technique"]] if "technique" in known else [])]
        pruned = before.tensors(MASKS) if MASKS in before.record.files else {}
        model = before.model(work)
        assert isinstance(model, Normalised)
        model.requires_grad_(True)
        built_from: Network = unpack(before.record.notes["network"])
        network = self.technique.apply(model, built_from, inputs)
        if pruned and network != built_from:
            raise StageError(
                f"what was pruned in {built_from.name} has no place in {network.name}",
                cure="prune filters before weights",
            )
        _pruning.hold_zeros(model.net, pruned)
        history = fit(
            model,
            splits["train"],
            recipe,
            self.objective,
            seed=derive_seed(work.seed, "compress", len(earlier)),
            checkpoints=work,
            teacher=teacher_logits(work, recipe),
            follower=self.objective.follower(_no_follower),
            selection=None if recipe.selection == "last" else splits[recipe.selection],
            input_size=work.spec.data.input_shape[1:],
        )
        self.technique.finish(model, inputs)
        if self.technique.rebuilt:
            work.save_tensors(WEIGHTS, model.state_dict())
            if self.technique.prunes or pruned:
                work.save_tensors(MASKS, _pruning.zeros(model.net) if self.technique.prunes else pruned)
        else:
            work.save_tensors(PROGRAM, self.technique.tensors(model))
        sizes = self.technique.sizes(model, network, work.spec.data)
        notes = {
            "network": pack(network),
            "mean": model.mean,
            "std": model.std,
            "parameters": sizes["parameters"],
            "sizes": sizes,
            "recipe": pack(recipe),
            "objective": pack(self.objective),
            "selected_epoch": history.selected_epoch,
            "technique": pack(self.technique),
            "findings": self.technique.findings(model),
            "before": earlier,
        }
        return Outcome(metrics=measured(work, model, splits, history), curves=history.curves, notes=notes)


def _no_follower() -> NoReturn:
    raise StageError(
        "the objective brings a network that trains along, and a compressed network has no fresh copy to begin it from",
        where="Compress",
        cure="train with it before the technique is applied",
    )

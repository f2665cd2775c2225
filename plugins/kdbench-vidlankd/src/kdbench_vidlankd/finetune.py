"""Fine-tuning a pre-trained language tower on a classification task, as GLUE does, with its collapses on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdbench.data.base import DataRef
from kdbench.errors import KdbenchError, StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import PREDICTIONS, Effort, Stage, Work
from kdbench.stages.splits import HOLDOUT_SEED
from kdbench.training.recipe import Recipe
from kdbench_vidlankd.towers import SMALL, Bert

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench_vidlankd._modules import LanguageModule
    from kdbench_vidlankd.classifier import Examples
    from kdbench_vidlankd.texts import Metric

__all__ = ["NEARLY_ALL", "FineTune", "judged"]

NEARLY_ALL = 99.0
"""Percent of the examples: a network that gives as many of them one answer has collapsed."""


class FineTune(Stage, frozen=True, kw_only=True):
    """Train the tower of the input ``network`` with a fresh classifier, and score it on the task's dev split.

    The pre-training heads are dropped, the tower is trained too. Scored is what the last epoch leaves: nothing, no
    epoch and no run, is selected on dev. To choose a learning rate, let the recipe hold out a part of the training
    split (``holdout``, stratified, the same for every seed): it is scored likewise, as ``validation`` in place of
    ``test``.

    Metrics: ``test.score``, ``test.accuracy-of-majority``, ``test.commonest-answer`` and ``test.collapsed``, see
    :func:`judged`, and ``train.loss``, the mean of the last epoch (nats). A collapsed run is a result like any other:
    recorded, and neither an error nor repeated. Only a loss that is no number ends the stage, as in all training. The
    answers to the dev split are kept, the weights are not.

    Attributes
    ----------
    task : what the data set calls it, for instance ``CoLA``; ``acceptability`` in every world.
    recipe : an epoch is a pass over the training split.
    world : number of the world; tasks of real text are the same in all.
    length : tokens of an example, the special ones counted; of longer examples the longer sentence is cut first.
    trial : numbers repeated fine-tunings of one network: other fresh layers, another order, other dropout. Networks of
        one size have these in common where seed and trial are equal, so arms are compared in pairs.

    Raises
    ------
    KdbenchError : the recipe asks for something that fine-tuning does not do, for instance to select an epoch; or, when
        it runs, the tower has fewer positions than ``length``.
    """

    task: str
    recipe: Recipe
    world: int
    length: int
    trial: int = 0

    def __post_init__(self) -> None:
        plain = Recipe(**{name: getattr(self.recipe, name) for name in USED})
        if strange := [name for name in plain.__struct_fields__ if getattr(plain, name) != getattr(self.recipe, name)]:
            raise KdbenchError(
                f"fine-tuning has no use for the recipe's {strange[0]}",
                where=self.task,
                cure=f"leave it as it is by default, and set {', '.join(USED)} alone",
            )

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        examples = EXAMPLES.get(data.dataset, {}).get(self.task, GUESSED_EXAMPLES)
        shown = examples * (1 - self.recipe.holdout) * self.recipe.epochs
        macs = TOWERS.get(data.dataset, SMALL).cost(0, self.length).macs  # no word is decoded
        return Effort(round(shown / self.recipe.batch_size), 3.0 * macs * shown)  # backward costs two forwards

    def run(self, work: Work) -> Outcome:
        import torch

        from kdbench.training.loop import optimise
        from kdbench.training.seeds import derive_seed
        from kdbench_vidlankd.classifier import Classifier, ClassifierTask, classify, packed
        from kdbench_vidlankd.corpus import corpus
        from kdbench_vidlankd.pretrain import language_of

        found = corpus(work.spec.data, self.world)
        task = found.task(self.task)
        splits = _held_out(packed(found.tokenizer, task.train, self.length), self.recipe.holdout)
        splits["test"] = packed(found.tokenizer, task.dev, self.length)
        seed = derive_seed(work.seed, self.trial)
        torch.manual_seed(derive_seed(seed, "init", "classifier"))
        model = Classifier(self._fitting(language_of(work.input("network"), work)), task.classes).to(work.device)
        training = ClassifierTask(model, splits["train"], self.recipe, seed, work.device)
        curves = optimise(model, training, self.recipe, seed=seed, checkpoints=work)
        answers = {name: classify(model, each, work.device) for name, each in splits.items() if name != "train"}
        work.save_tensors(PREDICTIONS, {"classes": answers["test"].int(), "labels": splits["test"].labels.int()})
        metrics = {"train.loss": curves["loss"][-1]} if curves["loss"] else {}
        for name, classes in answers.items():
            found_out = judged(classes, splits[name].labels, task.metric)
            metrics |= {f"{name}.{key}": value for key, value in found_out.items()}
        notes = {
            "task": task.name,
            "metric": task.metric,
            "classes": task.classes,
            "examples": {name: len(each.labels) for name, each in splits.items()},
            "left_out": task.left_out,
        }
        return Outcome(metrics=metrics, curves=curves, notes=notes)

    def _fitting(self, tower: LanguageModule) -> LanguageModule:
        positions: int = tower.net.config.max_position_embeddings
        if self.length > positions:
            raise StageError(
                f"examples have {self.length} tokens, and the tower reads {positions}",
                where=self.task,
                cure="give a smaller length, or fine-tune a tower that was built with more positions",
            )
        return tower


USED = ("epochs", "optimizer", "batch_size", "schedule", "clip", "holdout")
"""What of a recipe fine-tuning goes by."""

EXAMPLES = {
    "unspoken": {"acceptability": 600},
    "unspoken-text": {"acceptability": 600, "CoLA": 8_551, "SST-2": 6_920, "RTE": 1_244},
    "howto100m": {"CoLA": 8_551, "SST-2": 67_349, "RTE": 5_770, "QNLI": 116_000, "QQP": 795_000, "MNLI": 432_000},
}
"""Training examples by which work is priced before data are read; of some tasks only the sum of all splits is known."""

GUESSED_EXAMPLES = 10_000

_TINY = Bert(layers=2, hidden=64, heads=2, feedforward=256)
TOWERS = {"unspoken": _TINY, "unspoken-text": _TINY}
"""About what is fine-tuned on them, by which work is priced likewise: a plan does not know the input's tower. On
others it is the paper's smaller one."""


def judged(classes: Tensor, labels: Tensor, metric: Metric) -> dict[str, float]:
    """How good answers ``[N]`` to examples with ``labels`` ``[N]`` are.

    Returns
    -------
    dict
        ``score``: accuracy in percent, or Matthews' correlation x 100.
        ``accuracy-of-majority``: that of naming the largest class of these examples always, percent.
        ``commonest-answer``: how many examples get the answer that most get, percent.
        ``collapsed``: 1 where the commonest answer is given to :data:`NEARLY_ALL` examples or more, or the score is not
        above the best that one answer to all can have: the accuracy of the majority, or a correlation of 0. Else 0.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    function = matthews_corrcoef if metric == "matthews" else accuracy_score
    score = 100.0 * float(function(labels.numpy(), classes.numpy()))
    # Shares first, as in the score: equal counts are to be equal numbers.
    majority, commonest = (100.0 * (each.bincount().max().item() / len(each)) for each in (labels, classes))
    best_of_one = 0.0 if metric == "matthews" else majority
    return {
        "score": score,
        "accuracy-of-majority": majority,
        "commonest-answer": commonest,
        "collapsed": float(commonest >= NEARLY_ALL or score <= best_of_one),
    }


def _held_out(train: Examples, share: float) -> dict[str, Examples]:
    """``train`` and, of a positive share of it, ``validation``."""
    from kdbench.data import holdout

    if not share:
        return {"train": train}
    kept, held = holdout(train.labels, share, HOLDOUT_SEED)
    return {"train": train.rows(kept), "validation": train.rows(held)}

"""The stages of the ensemble side: what several trained networks have in common, and a trial matched in confidence.

Neither trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from kdbench.component import unpack
from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import PREDICTIONS, WEIGHTS, Effort, Finished, Stage, Work
from kdbench.stages.splits import splits_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdbench.data.base import Split
    from kdbench.training import Recipe

__all__ = ["Decompose", "MatchConfidence"]


class Decompose(Stage, frozen=True):
    """Bias, variance and agreement of networks on the test split: :mod:`kdbench_orthogonality.decomposition`.

    Inputs ``0``, ``1``, ...: two trained networks or more, each of a training set of its own. Leaves

    - ``test.single``, ``test.ensemble`` (percent) and ``test.gain`` (points): mean accuracy of the networks, accuracy
      of the mean of their probabilities, and the difference;
    - ``test.bias``, ``test.variance`` and their sum ``test.total``: Brier score, summed over classes, its parts
      corrected for the number of networks;
    - ``test.plain-bias`` and ``test.plain-variance``: not corrected, with the same sum;
    - ``test.disagreement`` (share of the examples, mean over pairs) and ``test.confidence`` (largest probability).

    There is nothing to set: the test split is the same whatever the networks were trained on.
    """

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        return _forward(data, networks, data.sizes["test"])

    def run(self, work: Work) -> Outcome:
        import numpy as np

        from kdbench_orthogonality.decomposition import decompose

        members = _numbered(work)
        if len(members) < 2:
            raise StageError(
                f"{len(members)} networks have no variance", cure="give two or more, as the inputs 0, 1, ..."
            )
        test = splits_of(work, 0.0)["test"]
        probabilities = np.stack([_probabilities(work, member, test) for member in members])
        found = decompose(probabilities, test.labels.cpu().numpy())
        metrics = {f"test.{name.replace('_', '-')}": value for name, value in found._asdict().items()}
        return Outcome(metrics=metrics, notes={"networks": len(members), "examples": len(test.labels)})


class MatchConfidence(Stage, frozen=True):
    """Pick the trial that is as sure of its answers as the targets are, on validation splits.

    Inputs ``0``, ``1``, ...: the trials, for instance students on labels smoothed more and more; ``target`` or
    ``target0``, ``target1``, ...: the networks to match. The confidence of a network is the mean of its largest
    probability on the validation split of the recipe that it was trained by; the trial nearest to the mean over the
    targets wins, the first of equals.

    Leaves the chosen network, with its record's metrics and notes, as a choice by accuracy does, and

    - ``validation.confidence`` and ``validation.target-confidence``, which it is to match;
    - the notes ``chosen`` (its position), ``chosen_label``, ``confidences`` (of all trials) and ``outside``: ``above``
      or ``below`` where the target lies beyond all trials, so that the nearest is no match; else empty.
    """

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        # How much is held out stands in the recipes of the networks, not known here: roughly as much as is tested.
        return _forward(data, networks, data.sizes["test"])

    def run(self, work: Work) -> Outcome:
        trials = _numbered(work)
        targets = [work.input(role) for role in sorted(work.spec.inputs) if role.startswith("target")]
        if not trials or not targets:
            raise StageError(
                f"{len(trials)} trials cannot be matched with {len(targets)} targets",
                cure="give trials as the inputs 0, 1, ... and the networks to match as target0, target1, ...",
            )
        confidences = [_confidence(work, trial) for trial in trials]
        target = fmean(_confidence(work, each) for each in targets)
        gaps = [abs(confidence - target) for confidence in confidences]
        chosen = gaps.index(min(gaps))
        record = trials[chosen].record
        for name in (WEIGHTS, PREDICTIONS):
            if name in record.files:  # a stage of a plugin may leave no predictions
                work.save_tensors(name, trials[chosen].tensors(name))
        matched = {"validation.confidence": confidences[chosen], "validation.target-confidence": target}
        notes = {
            "chosen": chosen,
            "chosen_label": record.label,
            "confidences": confidences,
            "outside": "above" if target > max(confidences) else "below" if target < min(confidences) else "",
        }
        return Outcome(metrics={**record.metrics, **matched}, notes={**record.notes, **notes})


def _numbered(work: Work) -> list[Finished]:
    """The inputs whose roles are numbers, which must be 0, 1, ... without a gap."""
    roles = [role for role in work.spec.inputs if role.isdecimal()]
    if sorted(roles, key=int) != [str(number) for number in range(len(roles))]:
        raise StageError(f"the inputs {', '.join(roles)} are not numbered 0, 1, ...", cure="leave no number out")
    return [work.input(str(number)) for number in range(len(roles))]


def _probabilities(work: Work, finished: Finished, split: Split) -> NDArray[np.float64]:
    """``[N, C]``, in float64 from the logits on."""
    from kdbench.training.evaluate import predict

    logits = predict(finished.model(work), split.inputs).cpu().double()  # on the CPU: not every device has float64
    probabilities: NDArray[np.float64] = logits.softmax(1).numpy()
    return probabilities


def _confidence(work: Work, finished: Finished) -> float:
    recipe: Recipe = unpack(finished.record.notes["recipe"])
    if not recipe.holdout:
        raise StageError(
            f"'{finished.record.label}' was trained on all there is, so no validation split says how sure it is",
            cure="hold out a share of the training split in its recipe",
        )
    validation = splits_of(work, recipe.holdout, sample=recipe.sample)["validation"]
    return float(_probabilities(work, finished, validation).max(1).mean())


def _forward(data: DataRef, networks: Mapping[str, Network], images: float) -> Effort:
    """One pass of every network over so many images; no optimiser makes a step."""
    each = (network.cost(data.input_shape, data.num_classes).macs for network in networks.values())
    return Effort(0, float(sum(each)) * images)

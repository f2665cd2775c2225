"""The stages of the ensemble side: what several trained networks have in common, as they are and as sure as others.

Neither trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from kdbench.component import unpack
from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import Effort, Finished, Stage, Work
from kdbench.stages.splits import splits_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdbench.data.base import Split
    from kdbench.training import Recipe

__all__ = ["Decompose", "DecomposeMatched", "matching_temperature"]

LOG_TEMPERATURES = (-5.0, 5.0)
"""Between which the logarithm of a temperature is looked for: T from .0067 to 148."""


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
        return _decomposition(work, _several(work), 1.0)


class DecomposeMatched(Stage, frozen=True):
    """:class:`Decompose` of networks that are made as sure of their answers as others are, on held-out examples.

    Inputs ``0``, ``1``, ...: two trained networks or more, each of a training set of its own; ``target0``,
    ``target1``, ...: the networks to match. The confidence of a network is the mean of its largest probability on the
    validation split of the recipe that it was trained by. One temperature, by which the logits of all of ``0``, ``1``,
    ... are divided, makes the mean of their confidences that of the targets, whose own logits stay as they are; the
    decomposition is of the probabilities of the test split at that temperature.

    Leaves what :class:`Decompose` leaves, of which ``test.single`` and ``test.disagreement`` are the same at any
    temperature, and

    - ``temperature``: below 1 where the networks had to be sharpened;
    - ``validation.confidence``, at that temperature, and ``validation.target-confidence``, which it is to equal;
    - the note ``outside``: ``above`` or ``below`` where the targets are surer or less sure than the networks are at any
      temperature of the range (:data:`LOG_TEMPERATURES`), whose nearest end is then taken; else empty.
    """

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        # How much is held out stands in the recipes of the networks, not known here: little beside what is tested.
        members = {role: network for role, network in networks.items() if role.isdecimal()}
        return _forward(data, members, data.sizes["test"])

    def run(self, work: Work) -> Outcome:
        members, targets = _several(work), _numbered(work, "target")
        if not targets:
            raise StageError(
                "there is no network whose confidence is to be matched",
                cure="give one or more, as the inputs target0, target1, ...",
            )
        held = [_logits(work, member, _validation(work, member)) for member in members]
        target = fmean(_confidence(_logits(work, each, _validation(work, each)), 1.0) for each in targets)
        temperature, outside = matching_temperature(held, target)
        outcome = _decomposition(work, members, temperature)
        matched = {
            "temperature": temperature,
            "validation.confidence": fmean(_confidence(logits, temperature) for logits in held),
            "validation.target-confidence": target,
        }
        return Outcome(metrics={**outcome.metrics, **matched}, notes={**outcome.notes, "outside": outside})


def matching_temperature(logits: Sequence[NDArray[np.float64]], target: float) -> tuple[float, str]:
    """The temperature at which networks are as sure of their answers as ``target`` says.

    Their confidence falls as the temperature rises, so there is one at most.

    Parameters
    ----------
    logits : ``[n, C]`` of each network; networks weigh the same, however many examples each has.
    target : mean of the largest probability, in [0, 1].

    Returns
    -------
    The temperature, and ``above`` or ``below`` where the target is beyond what the networks come to at the ends of the
    range of temperatures, the nearest of which it then is; else an empty word.
    """
    from scipy.optimize import brentq

    def excess(log_temperature: float) -> float:
        return fmean(_confidence(each, math.exp(log_temperature)) for each in logits) - target

    coldest, hottest = LOG_TEMPERATURES
    if excess(coldest) < 0:
        return math.exp(coldest), "above"
    if excess(hottest) > 0:
        return math.exp(hottest), "below"
    return math.exp(brentq(excess, coldest, hottest)), ""


def _several(work: Work) -> list[Finished]:
    members = _numbered(work)
    if len(members) < 2:
        raise StageError(f"{len(members)} networks have no variance", cure="give two or more, as the inputs 0, 1, ...")
    return members


def _numbered(work: Work, prefix: str = "") -> list[Finished]:
    """The inputs whose roles are numbers behind ``prefix``, which must be 0, 1, ... without a gap."""
    roles = [role for role in work.spec.inputs if role.startswith(prefix) and role[len(prefix) :].isdecimal()]
    wanted = [f"{prefix}{number}" for number in range(len(roles))]
    if set(roles) != set(wanted):
        raise StageError(
            f"the inputs {', '.join(roles)} are not numbered {prefix}0, {prefix}1, ...", cure="leave no number out"
        )
    return [work.input(role) for role in wanted]


def _validation(work: Work, finished: Finished) -> Split:
    """What was held out of the training set of a network."""
    recipe: Recipe = unpack(finished.record.notes["recipe"])
    if not recipe.holdout:
        raise StageError(
            f"'{finished.record.label}' was trained on all there is, so no validation split says how sure it is",
            cure="hold out a share of the training split in its recipe",
        )
    return splits_of(work, recipe.holdout, sample=recipe.sample)["validation"]


def _decomposition(work: Work, members: Sequence[Finished], temperature: float) -> Outcome:
    """Of the probabilities of the test split, at a temperature."""
    import numpy as np

    from kdbench_orthogonality.decomposition import decompose

    test = splits_of(work, 0.0)["test"]
    p = np.stack([_softmax(_logits(work, member, test), temperature) for member in members])
    found = decompose(p, test.labels.cpu().numpy())
    metrics = {f"test.{name.replace('_', '-')}": value for name, value in found._asdict().items()}
    return Outcome(metrics=metrics, notes={"networks": len(members), "examples": len(test.labels)})


def _logits(work: Work, finished: Finished, split: Split) -> NDArray[np.float64]:
    """``[N, C]``, in float64 from here on."""
    from kdbench.training.evaluate import predict

    # On the CPU: not every device has float64.
    logits: NDArray[np.float64] = predict(finished.model(work), split.inputs).cpu().double().numpy()
    return logits


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    from scipy.special import softmax

    probabilities: NDArray[np.float64] = softmax(logits / temperature, axis=1)
    return probabilities


def _confidence(logits: NDArray[np.float64], temperature: float) -> float:
    return float(_softmax(logits, temperature).max(1).mean())


def _forward(data: DataRef, networks: Mapping[str, Network], images: float) -> Effort:
    """One pass of every network over so many images; no optimiser makes a step."""
    each = (network.cost(data.input_shape, data.num_classes).macs for network in networks.values())
    return Effort(0, float(sum(each)) * images)

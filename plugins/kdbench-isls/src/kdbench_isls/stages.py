"""The stages of this study: how well networks are calibrated, and how the predictions of teachers spread.

Neither trains. Both take any number of trained networks, by roles that the study chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from kdbench.data.base import DataRef
from kdbench.errors import KdbenchError
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import Effort, Stage, Work
from kdbench.stages.splits import splits_of

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.data.base import Split

__all__ = ["Calibrate", "TeacherStatistics"]


class Calibrate(Stage, frozen=True):
    """NLL, calibration error and reliability of networks on the test split, and again after temperature scaling.

    Inputs: trained networks; the role is the arm's name. Leaves, by role,

    - ``test.accuracy.ROLE`` (top-1, percent), ``test.nll.ROLE`` (nats), ``test.ece.ROLE`` (15 bins, percent) and
      ``test.ece20.ROLE`` (20 bins, as released);
    - ``temperature.ROLE``, which makes the NLL of the validation split smallest, and at this temperature
      ``test.scaled-nll.ROLE`` and ``test.scaled-ece.ROLE`` (15 bins);
    - the curves ``test.reliability.ROLE.count``, ``.confidence`` and ``.correct``: of each of the 15 bins how many
      examples it has, the sum of their confidence, and how many of them are correct.

    The notes name the roles whose temperature stands at a bound of the search.

    Attributes
    ----------
    holdout, label_noise : as in the recipe that the networks were trained by. Validation labels have no noise.
    """

    holdout: float
    label_noise: float

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise KdbenchError(
                f"with a holdout of {self.holdout} there is no validation split to fit a temperature on",
                where="Calibrate",
                cure="hold out a share of the training split, between 0 and 1, in the recipe and here",
            )

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        return _forward(data, networks, data.sizes["train"] * self.holdout + data.sizes["test"])

    def run(self, work: Work) -> Outcome:
        from kdbench_isls import calibration

        splits = splits_of(work, self.holdout, self.label_noise)
        metrics: dict[str, float] = {}
        curves: dict[str, list[float]] = {}
        bounds: dict[str, str] = {}
        for role in work.spec.inputs:
            validation, test = _answers(work, role, splits["validation"], splits["test"])
            fit = calibration.fit_temperature(*validation)
            if fit.bound:
                bounds[role] = fit.bound
            metrics |= {f"{name}.{role}": value for name, value in _calibration(*test, fit.temperature).items()}
            bins = calibration.reliability(*calibration.answers(*test))
            curves |= {f"test.reliability.{role}.{name}": sums for name, sums in msgspec.structs.asdict(bins).items()}
        notes = {
            "bins": [calibration.BINS, calibration.RELEASED_BINS],
            "temperature at a bound": bounds,
            "torchmetrics": version("torchmetrics"),
        }
        return Outcome(metrics=metrics, curves=curves, notes=notes)


class TeacherStatistics(Stage, frozen=True):
    """How the predictions of teachers spread over the training split: in eval mode, without augmentation.

    Inputs: trained networks; the role is the teacher's name. With p the probability that softmax(logits / T) gives the
    label that the students are trained on, it leaves, by role,

    - ``train.uncertainty.ROLE``: mean entropy of the softmax, nats;
    - ``train.diversity.ROLE``: differential entropy of p, nats, and ``train.floored.ROLE``, the share of the distances
      in it that are at the floor (:func:`kdbench_isls.dispersion.diversity`);
    - ``train.variance.ROLE`` and ``train.confidence.ROLE``: variance and mean of p.

    These are over the examples whose label noise did not replace, since a teacher that has not fitted a wrong label
    gives it little: with them the spread of p is mostly that between right and wrong labels. The same over all
    examples is under ``train.uncertainty-all.ROLE`` and so on.

    Attributes
    ----------
    temperature : T, that of the distillation.
    holdout, label_noise : as in the recipe that the students are trained by.
    neighbours : k of the entropy's estimator.
    """

    temperature: float
    holdout: float
    label_noise: float
    neighbours: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise KdbenchError(f"temperature {self.temperature} is not a positive number", where="TeacherStatistics")
        if self.neighbours < 1:
            raise KdbenchError(
                f"{self.neighbours} neighbours are none", where="TeacherStatistics", cure="ask for 1 or more"
            )

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        return _forward(data, networks, data.sizes["train"] * (1 - self.holdout))

    def run(self, work: Work) -> Outcome:
        from kdbench_isls.dispersion import DISTANCE_FLOOR

        train = splits_of(work, self.holdout, self.label_noise)["train"]
        right = (train.labels == splits_of(work, self.holdout)["train"].labels).cpu()
        metrics: dict[str, float] = {}
        for role in work.spec.inputs:
            ((logits, labels),) = _answers(work, role, train)
            spread = _spread(logits[right], labels[right], self.temperature, self.neighbours)
            over_all = _spread(logits, labels, self.temperature, self.neighbours)
            metrics |= {f"train.{name}.{role}": value for name, value in spread.items()}
            metrics |= {f"train.{name}-all.{role}": value for name, value in over_all.items()}
        notes = {"distance floor": DISTANCE_FLOOR, "examples": len(right), "rightly labelled": int(right.sum())}
        return Outcome(metrics=metrics, notes=notes)


def _answers(work: Work, role: str, *splits: Split) -> list[tuple[Tensor, Tensor]]:
    """Logits of a network on each split, with the split's labels, on the CPU: not every device has float64."""
    from kdbench.training.evaluate import predict

    model = work.input(role).model(work)
    return [(predict(model, split.inputs).cpu(), split.labels.cpu()) for split in splits]


def _calibration(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    from kdbench_isls import calibration

    plain = calibration.answers(logits, labels)
    scaled = calibration.answers(logits, labels, temperature)
    return {
        "test.accuracy": calibration.accuracy(logits, labels),
        "test.nll": calibration.nll(logits, labels),
        "test.ece": calibration.calibration_error(*plain),
        "test.ece20": calibration.calibration_error(*plain, bins=calibration.RELEASED_BINS),
        "test.scaled-nll": calibration.nll(logits, labels, temperature),
        "test.scaled-ece": calibration.calibration_error(*scaled),
        "temperature": temperature,
    }


def _spread(logits: Tensor, labels: Tensor, temperature: float, neighbours: int) -> dict[str, float]:
    from kdbench_isls import dispersion

    p = dispersion.label_probability(logits, labels, temperature)
    diversity = dispersion.diversity(p, neighbours)
    return {
        "uncertainty": dispersion.uncertainty(logits, temperature),
        "diversity": diversity.entropy,
        "floored": diversity.floored,
        "variance": dispersion.variance(p),
        "confidence": float(p.mean()),
    }


def _forward(data: DataRef, networks: Mapping[str, Network], images: float) -> Effort:
    """One pass of every network over so many images; no optimiser makes a step."""
    each = (network.cost(data.input_shape, data.num_classes).macs for network in networks.values())
    return Effort(0, float(sum(each)) * images)

"""The losses of the arms. Teachers are softened by their temperature, the student never, and nothing is scaled by T^2.

Notation: ``y`` the label, ``p`` the student's softmax, ``q`` the teacher's at its temperature, ``C`` the classes,
``alpha`` the weight of the soft term. A target that is b on the label and ``(1 - b) / (C - 1)`` elsewhere mixes with
the hard label into ``(1 - alpha) + alpha b`` on it, so hard and soft term are one fused call and no target is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdbench.training import Objective
from kdbench_isls.ranking import Ranking, draws, quantiles, shares

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from kdbench.training.batch import Batch
    from kdbench.training.followers import Follower, Fresh

__all__ = [
    "BetaSmoothing",
    "EntropyPenalty",
    "FlatTarget",
    "FlooredSmoothing",
    "MatchedSmoothing",
    "SelfDistillation",
]


class EntropyPenalty(Objective, frozen=True):
    """``CE(p, y) - weight * H(p)``, as the released code has it: confident predictions cost."""

    weight: float

    @property
    def label(self) -> str:
        return f" (entropy {self.weight:g})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import cross_entropy

        log_p = logits.log_softmax(1)
        return cross_entropy(logits, batch.labels) + self.weight * (log_p.exp() * log_p).sum(1).mean()

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        import torch

        p = torch.softmax(logits, dim=1)
        hard = -p.gather(1, batch.labels[:, None]).log().mean()
        return hard - self.weight * _entropy(p)


class FlooredSmoothing(Objective, frozen=True):
    """Label smoothing as the released code computes it: ``1 - epsilon`` on the label, the rest even on the others.

    The logarithm is of ``p + log_floor``; with a floor of 0 it is :class:`kdbench.training.LabelSmoothing` over
    ``others``.
    """

    epsilon: float
    log_floor: float

    @property
    def label(self) -> str:
        return f" (smoothed by {self.epsilon:g} over others, floor {self.log_floor:g})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        share = logits.new_tensor(1 - self.epsilon).expand(len(logits))
        return _floored_share(logits, batch.labels, share, self.log_floor)

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        import torch

        target = torch.full_like(logits, self.epsilon / (logits.shape[1] - 1)).detach()
        target = target.scatter(1, batch.labels[:, None], 1 - self.epsilon)
        return -(target * (torch.softmax(logits, dim=1) + self.log_floor).log()).sum(1).mean()

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"target": logits.new_tensor(1 - self.epsilon)}


class SelfDistillation(Objective, frozen=True):
    """``(1 - alpha) CE(p, y) + alpha KL(q || p)``: its gradient is that of a cross-entropy with the teacher's answer.

    Attributes
    ----------
    temperature : of the teacher alone.
    confidence : ``own``, or ``permuted``: each example takes the teacher's probability of the label from another of
        its batch, and the other classes share the rest as the teacher has them.
    log_floor : added to the student's probability inside the logarithm of the soft term (1e-8 in the released code).
    """

    temperature: float
    alpha: float
    confidence: Literal["own", "permuted"] = "own"
    log_floor: float = 0.0

    @property
    def label(self) -> str:
        permuted = ", confidence permuted" if self.confidence == "permuted" else ""
        return f" (T {self.temperature:g}, alpha {self.alpha:g}{permuted})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import cross_entropy, distillation_loss

        teacher = self._teacher(batch)
        if self.log_floor:
            soft = _floored(teacher.softmax(1), logits, self.log_floor)
            return (1 - self.alpha) * cross_entropy(logits, batch.labels) + self.alpha * soft
        return distillation_loss(logits, teacher, batch.labels, temperature=1.0, alpha=self.alpha)

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        import torch
        from torch.nn import functional

        q = torch.softmax(batch.teacher_logits.detach() / self.temperature, dim=1)
        if self.confidence == "permuted":
            label = functional.one_hot(batch.labels, logits.shape[1]).bool()
            other = q[label][_partners(len(q), batch.seed).to(q.device)]
            rest = q.masked_fill(label, 0.0)
            q = (1 - other)[:, None] * rest / rest.sum(1, keepdim=True) + torch.where(label, other[:, None], 0.0)
        log_p = functional.log_softmax(logits, dim=1)
        if self.log_floor:
            soft = -(q * (torch.softmax(logits, dim=1) + self.log_floor).log()).sum(1).mean() - _entropy(q)
        else:
            soft = -(q * log_p).sum(1).mean() - _entropy(q)
        return (1 - self.alpha) * functional.nll_loss(log_p, batch.labels) + self.alpha * soft

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        confidence = _confidence(batch, self.temperature)
        return {"target": 1 - self.alpha + self.alpha * confidence.mean()}

    def _teacher(self, batch: Batch) -> Tensor:
        """The logits whose softmax is the target, ``[N, C]``."""
        scaled = batch.teacher_logits.detach() / self.temperature
        if self.confidence == "own":
            return scaled
        # The label's logit that gives it the probability of another example, whatever the other classes share.
        odds, rest = _log_odds(scaled, batch.labels)
        odds = odds[_partners(len(odds), batch.seed).to(odds.device)]
        return scaled.scatter(1, batch.labels[:, None], (rest + odds)[:, None])


class FlatTarget(Objective, frozen=True):
    """Self-distillation without what the teacher says of other classes: q on the label, the rest spread evenly.

    ``temperature`` is the teacher's, ``alpha`` the weight of the soft term.
    """

    temperature: float
    alpha: float

    @property
    def label(self) -> str:
        return f" (flat, T {self.temperature:g}, alpha {self.alpha:g})"

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import soft_label_cross_entropy

        return soft_label_cross_entropy(logits, batch.labels, self._share(batch).to(logits.dtype))

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        import torch

        q = torch.softmax(batch.teacher_logits.detach() / self.temperature, dim=1)
        b = self._mixed(q.gather(1, batch.labels[:, None])[:, 0])
        return _against_label_share(logits, batch.labels, b)

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"target": self._share(batch).mean()}

    def _share(self, batch: Batch) -> Tensor:
        return self._mixed(_confidence(batch, self.temperature))

    def _mixed(self, confidence: Tensor) -> Tensor:
        return 1 - self.alpha + self.alpha * confidence


class MatchedSmoothing(FlatTarget, frozen=True):
    """Label smoothing at the mean target of self-distillation: every example of a batch gets the batch's mean share.

    Equal over the batch, so nothing of an instance is left in it; and it needs no smoothing that only a finished
    teacher could tell.
    """

    @property
    def label(self) -> str:
        return f" (smoothed as T {self.temperature:g}, alpha {self.alpha:g})"

    def _mixed(self, confidence: Tensor) -> Tensor:
        return super()._mixed(confidence).mean().expand_as(confidence)


class BetaSmoothing(Objective, frozen=True):
    """Beta smoothing: label shares drawn from Beta(a, 1) and given out by rank of confidence within the batch.

    Attributes
    ----------
    a : first parameter of the distribution; the mean share is ``a / (a + 1)``.
    alpha : weight of the soft term.
    ranking : whose confidence ranks; see :data:`kdbench_isls.ranking.Ranking`.
    values : ``draws``, or the ``quantiles`` in their place.
    cap : largest share that the averaged network keeps of itself in a step (.999 in the released code).
    log_floor : as in :class:`SelfDistillation`.
    """

    a: float
    alpha: float
    ranking: Ranking = "average"
    values: Literal["draws", "quantiles"] = "draws"
    cap: float = 0.999
    log_floor: float = 0.0

    @property
    def label(self) -> str:
        ranking = "" if self.ranking == "average" else f", ranking {self.ranking}"
        values = "" if self.values == "draws" else f", {self.values}"
        return f" (Beta {self.a:g}, alpha {self.alpha:g}{ranking}{values})"

    def follower(self, fresh: Fresh) -> Follower | None:
        if self.ranking in ("none", "student"):
            return None
        from kdbench.training.followers import WeightAverage

        return WeightAverage(fresh(), self.cap)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        from kdbench.losses import cross_entropy, soft_label_cross_entropy

        b = self._drawn(logits, batch).to(logits.dtype)
        if self.log_floor:
            soft = _floored_share(logits, batch.labels, b, self.log_floor)
            return (1 - self.alpha) * cross_entropy(logits, batch.labels) + self.alpha * soft
        return soft_label_cross_entropy(logits, batch.labels, 1 - self.alpha + self.alpha * b)

    def reference(self, logits: Tensor, batch: Batch) -> Tensor:
        import numpy as np
        import torch
        from torch.nn import functional

        n = len(batch.labels)
        values = draws(self.a, n, batch.seed) if self.values == "draws" else quantiles(self.a, n)
        if self.ranking != "none":
            log_p = functional.log_softmax(
                logits if self.ranking == "student" else batch.teacher_logits, dim=1
            ).detach()
            label = functional.one_hot(batch.labels, logits.shape[1]).bool()
            key = log_p[label] - log_p.masked_fill(label, float("-inf")).logsumexp(1)
            order = np.argsort(key.float().numpy(), kind="stable")
            ascending = np.sort(values)
            values = np.empty(n)
            values[order] = ascending[::-1] if self.ranking == "reversed" else ascending
        b = torch.from_numpy(values).to(logits.dtype)
        if not self.log_floor:
            return _against_label_share(logits, batch.labels, 1 - self.alpha + self.alpha * b)
        log_p = (torch.softmax(logits, dim=1) + self.log_floor).log()
        target = torch.full_like(log_p, 1.0) * ((1 - b) / (logits.shape[1] - 1))[:, None]
        target = target.scatter(1, batch.labels[:, None], b[:, None])
        hard = functional.cross_entropy(logits, batch.labels)
        return (1 - self.alpha) * hard - self.alpha * (target * log_p).sum(1).mean()

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        # Whoever gets which, their mean is that of the values.
        mean = float(self._values(batch).mean())
        return {"target": logits.new_tensor(1 - self.alpha + self.alpha * mean)}

    @property
    def forwards(self) -> float:
        return 0.0 if self.ranking in ("none", "student") else 1.0

    def _values(self, batch: Batch) -> NDArray[np.float64]:
        """What is given out, in no order of the examples, ``[N]``."""
        n = len(batch.labels)
        return draws(self.a, n, batch.seed) if self.values == "draws" else quantiles(self.a, n)

    def _drawn(self, logits: Tensor, batch: Batch) -> Tensor:
        """b for every example, ``[N]`` float64."""
        values = self._values(batch)
        if self.ranking == "none":
            return shares(values, None).to(logits.device)
        ranker = logits if self.ranking == "student" else batch.teacher_logits
        # The order of log-odds is that of probabilities, and does not tie where those round to 1.
        key, _ = _log_odds(ranker.detach(), batch.labels)
        return shares(values, key, reverse=self.ranking == "reversed")


def _confidence(batch: Batch, temperature: float) -> Tensor:
    """The teacher's probability of the label at its temperature, ``[N]`` float64."""
    scaled = batch.teacher_logits.detach().double() / temperature
    return scaled.softmax(1).gather(1, batch.labels[:, None])[:, 0]


def _log_odds(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``log(p / (1 - p))`` of the label's probability, ``[N]``, and the log-sum-exp of the other classes' logits."""
    index = labels[:, None]
    rest = logits.scatter(1, index, float("-inf")).logsumexp(1)
    return logits.gather(1, index)[:, 0] - rest, rest


def _partners(n: int, seed: int) -> Tensor:
    """A random order of a batch, by which confidences change places."""
    import torch

    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _floored_share(logits: Tensor, labels: Tensor, b: Tensor, floor: float) -> Tensor:
    """Cross-entropy with b on the label, the logarithm taken of ``p + floor``."""
    log_p = (logits.softmax(1) + floor).log()
    label = log_p.gather(1, labels[:, None])[:, 0]
    others = (log_p.sum(1) - label) / max(logits.shape[1] - 1, 1)
    return -(b * label + (1 - b) * others).mean()


def _floored(target: Tensor, logits: Tensor, floor: float) -> Tensor:
    """``KL(target || p + floor)``, mean over rows."""
    return -(target * (logits.softmax(1) + floor).log()).sum(1).mean() - _entropy(target)


def _entropy(q: Tensor) -> Tensor:
    """Mean entropy of the rows, nats."""
    import torch

    entropy: Tensor = torch.special.entr(q).sum(1).mean()
    return entropy


def _against_label_share(logits: Tensor, labels: Tensor, b: Tensor) -> Tensor:
    """Cross-entropy with b on the label, by the formula: what references hold the fused call against."""
    log_p = logits.log_softmax(1)
    label = log_p.gather(1, labels[:, None])[:, 0]
    others = (log_p.sum(1) - label) / (logits.shape[1] - 1)
    return -(b * label + (1 - b) * others).mean()

"""Random cases over everything at once: operator, dtype, layout, masks, temperature, reduction, options per row.

``KDBENCH_RANDOM_CASES`` says how many (a few hundred by default, 10,000 in a nightly run), ``KDBENCH_RANDOM_SEED``
where to begin. A failure names its seed; ``KDBENCH_RANDOM_SEED=<seed> KDBENCH_RANDOM_CASES=1`` runs that case alone.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from loss_oracle import Exact, assert_close, exact, exact_ensemble, exact_topk
from torch import Tensor

from kdbench.losses import (
    cross_entropy,
    distillation_loss,
    ensemble_distillation_loss,
    kl,
    soft_label_cross_entropy,
    teacher_log_sum_exp,
    topk_distillation_loss,
)

FIRST = int(os.environ.get("KDBENCH_RANDOM_SEED", "0"))
CASES = int(os.environ.get("KDBENCH_RANDOM_CASES", "400"))
BLOCK = 50

OPERATORS = ["distillation", "distillation", "kl", "cross-entropy", "soft labels", "ensemble", "top-k"]
DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLASSES = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 1023, 1024, 1025, 4096, 4097]
LAYOUTS = ["contiguous", "contiguous", "offset", "padded", "every other row", "every other column", "transposed"]


class Case:
    """One random case: tensors by their layouts, and the keywords of a call."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        pick = self.pick
        self.name = pick.choice(OPERATORS)
        self.dtype = pick.choice(DTYPES)
        self.rows = pick.choice([0, 1, 2, 3, 5, 8, 12, 70])
        self.classes = pick.choice(CLASSES) if pick.random() < 0.5 else pick.randint(1, 200)
        self.spread = pick.choice([0.1, 1.0, 1.0, 5.0, 30.0])
        self.listed = pick.randint(1, self.classes)
        self.reduction = pick.choice(["batchmean", "mean", "sum", "none"])
        self.labelled = self.name in ("cross-entropy", "soft labels") or pick.random() < 0.8
        self.labels = self._labels()
        self.excluded = self._excluded()
        self.temperature = self._number_or_rows("temperature")
        self.alpha = self._number_or_rows("alpha")
        self.weighting: dict[str, Any] = {"reduction": self.reduction}
        if pick.random() < 0.3:
            self.weighting["row_weight"] = (self.uniform() * 3 - 0.5).clamp(min=0)
        self.inplace = pick.random() < 0.2

    def uniform(self) -> Tensor:
        return torch.rand(self.rows, generator=self.generator, dtype=torch.float64)

    def _number_or_rows(self, what: str) -> float | Tensor:
        if what == "temperature":
            rows = 10 ** (6 * self.uniform() - 3)
            number = self.pick.choice([10 ** self.pick.uniform(-3, 3), 1.0, 2.0, 4.0])
        else:
            rows = (1.6 * self.uniform() - 0.3).clamp(0, 1)
            number = self.pick.choice([0.0, 1.0, self.pick.random()])
        if self.pick.random() < 0.7:
            return number
        return rows.float() if self.pick.random() < 0.5 else rows

    def _labels(self) -> Tensor:
        labels = torch.randint(0, self.classes, (self.rows,), generator=self.generator)
        if self.pick.random() < 0.5:
            labels[torch.rand(self.rows, generator=self.generator) < self.pick.choice([0.2, 0.6, 1.0])] = -100
        labels = labels.int() if self.pick.random() < 0.3 else labels
        return torch.stack([labels] * 2, dim=1)[:, 0] if self.pick.random() < 0.2 else labels

    def _excluded(self) -> Tensor:
        """Classes that every teacher excludes: never the label's nor the one after it."""
        excluded = torch.rand(self.rows, self.classes, generator=self.generator) < self.pick.choice([0, 0, 0.1, 0.6])
        kept = self.labels.long().clamp(min=0)[:, None]
        return excluded.scatter(1, torch.cat([kept, (kept + 1) % self.classes], dim=1), False)

    def logits(self, *, masked: bool) -> Tensor:
        """Random logits in a random layout."""
        values = self.spread * torch.randn(self.rows, self.classes, generator=self.generator)
        if masked:
            values = values.masked_fill(self.excluded, -torch.inf)
        return self.laid_out(values.to(self.dtype))

    def laid_out(self, values: Tensor) -> Tensor:
        """The same numbers with other strides."""
        layout, (rows, columns) = self.pick.choice(LAYOUTS), values.shape
        if layout == "offset":
            laid = values.new_zeros(rows * columns + 3)[3:].view(rows, columns)
        elif layout == "padded":
            laid = values.new_zeros(rows, columns + 5)[:, 2 : columns + 2]
        elif layout == "every other row":
            laid = values.new_zeros(2 * rows, columns)[::2]
        elif layout == "every other column":
            laid = values.new_zeros(rows, 2 * columns)[:, ::2]
        elif layout == "transposed":
            laid = values.new_zeros(columns, rows).T
        else:
            return values
        return laid.copy_(values)

    def against_teacher(self) -> dict[str, Any]:
        """The keywords of whatever has a teacher."""
        options = {"temperature": self.temperature, **self.weighting}
        if self.labelled:
            options |= {"alpha": self.alpha, "kl_rows": self.pick.choice(["all", "valid"])}
        return options

    def evaluate(self) -> tuple[tuple[Tensor, Tensor], Exact, bool]:
        """Loss and gradient, the truth, and whether kernels subtract rounded logarithms."""
        student_masked = self.name not in ("cross-entropy", "soft labels") and self.pick.random() < 0.5
        student = self.logits(masked=student_masked)
        call, truth, subtracts = getattr(self, "_" + self.name.replace("-", "_").replace(" ", "_"))()
        kept = student.clone()
        leaf = student.detach().requires_grad_()
        given = leaf * 1.0 if self.inplace else leaf
        loss = call(given, inplace=self.inplace)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert torch.equal(student, kept), "the student logits were changed"
        return (loss.detach(), gradient), truth(student), subtracts

    def _distillation(self) -> tuple[Any, Any, bool]:
        teacher, options = self.logits(masked=True), self.against_teacher()
        labels = self.labels if self.labelled else None
        kept = {}
        if self.pick.random() < 0.3:
            kept["teacher_lse"] = teacher_log_sum_exp(teacher, temperature=self.temperature)
        return (
            lambda s, **o: distillation_loss(s, teacher, labels, **options, **kept, **o),
            lambda s: exact(s, teacher, labels, **options),
            bool(kept),
        )

    def _kl(self) -> tuple[Any, Any, bool]:
        teacher, options = self.logits(masked=True), {"temperature": self.temperature, **self.weighting}
        return (
            lambda s, **o: kl(s, teacher, **options, **o),
            lambda s: exact(s, teacher, None, squared=False, **options),
            False,
        )

    def _cross_entropy(self) -> tuple[Any, Any, bool]:
        return (
            lambda s, **o: cross_entropy(s, self.labels, **self.weighting, **o),
            lambda s: exact(s, None, self.labels, **self.weighting),
            False,
        )

    def _soft_labels(self) -> tuple[Any, Any, bool]:
        share = self.alpha
        return (
            lambda s, **o: soft_label_cross_entropy(s, self.labels, share, **self.weighting, **o),
            lambda s: exact(s, None, self.labels, label_share=share, **self.weighting),
            True,
        )

    def _ensemble(self) -> tuple[Any, Any, bool]:
        count = self.pick.choice([1, 2, 3, 4, 7, 16])
        teachers = [self.logits(masked=True) for _ in range(count)]
        raw = [self.pick.uniform(0.05, 1) for _ in teachers]
        options = self.against_teacher() | {
            "combine": self.pick.choice(["probabilities", "losses"]),
            "teacher_weights": [weight / sum(raw) for weight in raw],
        }
        labels = self.labels if self.labelled else None
        return (
            lambda s, **o: ensemble_distillation_loss(s, teachers, labels, **options, **o),
            lambda s: exact_ensemble(s, teachers, labels, **({"alpha": 1.0} | options)),
            True,
        )

    def _top_k(self) -> tuple[Any, Any, bool]:
        teacher, options = self.logits(masked=True), self.against_teacher()
        tail = self.pick.choice(["renormalise", "unnormalised", "bucket"])
        # excluded classes come late, and last one that is not: there is something both in the list and outside it
        order = torch.rand(teacher.shape, generator=self.generator).add(self.excluded)
        last = (self.labels.long().clamp(min=0) + self.pick.randint(0, 1)) % self.classes
        order = order.scatter(1, last[:, None], 9.0).argsort(dim=1)
        indices = order[:, : self.listed]
        listed = self.laid_out(teacher.gather(1, indices))
        lse = None if tail == "renormalise" else teacher_log_sum_exp(teacher, temperature=self.temperature)
        options |= {"tail": tail, "teacher_lse": lse}
        labels = self.labels if self.labelled else None
        given = indices.int() if self.pick.random() < 0.3 else self.laid_out(indices)
        return (
            lambda s, **o: topk_distillation_loss(s, listed, given, labels, **options, **o),
            lambda s: exact_topk(s, listed, indices, labels, **({"alpha": 1.0} | options)),
            True,
        )

    def __str__(self) -> str:
        kind = f"{self.name}, {self.rows} x {self.classes} {self.dtype}, spread {self.spread}, {self.weighting}"
        return f"{kind}, temperature {self.temperature}, alpha {self.alpha}, inplace {self.inplace}"


@pytest.mark.parametrize("block", range((CASES + BLOCK - 1) // BLOCK))
def test_random_cases(implementation, block):
    for seed in range(FIRST + block * BLOCK, FIRST + min((block + 1) * BLOCK, CASES)):
        case = Case(seed)
        try:
            got, want, subtracts = case.evaluate()
            assert_close(got, want, implementation, subtracts=subtracts)
        except Exception as error:
            raise AssertionError(f"KDBENCH_RANDOM_SEED={seed} ({case}): {error}") from error

"""Who is compared, and on what: frozen descriptors. Imports no torch."""

from __future__ import annotations

import msgspec

from kdbench.errors import KdbenchError

__all__ = ["CONTENDERS", "DTYPES", "FLOOR", "Case", "Contender"]

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # bytes of an element

# The row that is no loss: two reads and one write of the same tensors, as fast as torch moves them.
FLOOR = "floor"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What contenders are measured on.

    Parameters
    ----------
    rows, classes : N and C of the logits.
    dtype : of the logits, a key of :data:`DTYPES`.
    device : ``cpu`` or ``cuda``.
    temperature, alpha : of the loss. With alpha 1 the loss is its soft term alone, and no contender computes another.
    """

    rows: int
    classes: int
    dtype: str
    device: str
    temperature: float
    alpha: float

    @property
    def label(self) -> str:
        """``128x1000 float32``."""
        return f"{self.rows}x{self.classes} {self.dtype}"

    @property
    def stream(self) -> int:
        """Bytes of one pass over one logit matrix."""
        return self.rows * self.classes * DTYPES[self.dtype]


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A way to compute ``(1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))``.

    Both terms are means over the N rows. Every contender is held against the formula in float64 before it is timed.

    Parameters
    ----------
    id : the name that ``--contenders`` takes.
    title : what it is, in a line.
    make : import path ``module:function`` of ``make(case: Case) -> loss``, where ``loss(student, teacher, labels)``
        takes ``[N, C]``, ``[N, C]`` and ``[N]`` int64 tensors and returns a scalar tensor; the gradient reaches
        ``student`` through autograd. Whatever can be prepared once belongs in ``make``, which is not timed.
    requires : import path of ``requires(case: Case) -> str | None``: why the contender cannot run there, or None.
        Empty: it runs everywhere.
    overwrites_student : the loss may write over the student logits. It is then given a non-leaf tensor, with fresh
        logits in it, for each call.
    """

    id: str
    title: str
    make: str
    requires: str = ""
    overwrites_student: bool = False

    def __post_init__(self) -> None:
        if not self.id or self.id == FLOOR or "," in self.id:
            raise KdbenchError(
                f"a contender cannot be called '{self.id}'",
                cure=f"'{FLOOR}' is taken by the measured copy, and names are written with commas between them",
            )


_RIVALS = "kdbench.bench.rivals"

CONTENDERS = (
    Contender(id="eager", title="torch: F.kl_div(log_softmax, softmax) + F.cross_entropy", make=f"{_RIVALS}:textbook"),
    Contender(
        id="eager-log",
        title="torch: F.kl_div(log_softmax, log_softmax, log_target=True) + F.cross_entropy",
        make=f"{_RIVALS}:log_target",
    ),
    Contender(id="compile", title="torch.compile of eager, static shapes", make=f"{_RIVALS}:compiled_textbook"),
    Contender(
        id="compile-log", title="torch.compile of eager-log, static shapes", make=f"{_RIVALS}:compiled_log_target"
    ),
    Contender(
        id="liger",
        title="Liger-Kernel's KL over torch's log_softmax + F.cross_entropy",
        make=f"{_RIVALS}:liger_kl",
        requires=f"{_RIVALS}:why_no_liger",
    ),
    Contender(
        id="liger-jsd",
        title="Liger-Kernel's JSD at beta 0, which is the KL, over torch's log_softmax + F.cross_entropy",
        make=f"{_RIVALS}:liger_jsd",
        requires=f"{_RIVALS}:why_no_liger",
    ),
    Contender(id="kdbench", title="kdbench.losses.distillation_loss", make=f"{_RIVALS}:kdbench_loss"),
    Contender(
        id="kdbench-inplace",
        title="kdbench.losses.distillation_loss(inplace=True): the gradient overwrites the student logits",
        make=f"{_RIVALS}:kdbench_inplace",
        overwrites_student=True,
    ),
)

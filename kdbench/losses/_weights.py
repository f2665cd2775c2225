"""From temperature, alpha and reduction to the factors of the two terms: scalars in a LossSpec, the rest per row."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from torch import Tensor

from kdbench.errors import unknown
from kdbench.losses import _checks
from kdbench.losses._checks import error
from kdbench.ops.spec import (
    CE_MEAN_VALID,
    KL_MEAN_CLASSES,
    KL_MEAN_ROWS,
    KL_VALID_ROWS,
    PER_ROW,
    LossSpec,
)

__all__ = ["KlRows", "Reduction", "RowFactors", "build_spec", "cached_spec", "flags_of", "scaled", "weigh"]

Reduction = Literal["batchmean", "mean", "sum", "none"]
KlRows = Literal["all", "valid"]

_REDUCTIONS = {
    "batchmean": CE_MEAN_VALID | KL_MEAN_ROWS,
    "mean": CE_MEAN_VALID | KL_MEAN_ROWS | KL_MEAN_CLASSES,
    "sum": 0,
    "none": PER_ROW,
}
_KL_ROWS = {"all": 0, "valid": KL_VALID_ROWS}


class RowFactors(NamedTuple):
    """What varies from row to row, each ``[N]`` float64 or None; fields of LossInputs by the same names."""

    temperature: Tensor | None = None
    ce_weight: Tensor | None = None
    kl_weight: Tensor | None = None


def flags_of(reduction: str, kl_rows: str = "all", *, labelled: bool = True) -> int:
    """The flags of a reduction.

    Raises
    ------
    KdbenchError : a name is unknown, or ``kl_rows="valid"`` without labels.
    """
    if reduction not in _REDUCTIONS:
        raise unknown("reduction", str(reduction), _REDUCTIONS)
    if kl_rows not in _KL_ROWS:
        raise unknown("value of kl_rows", str(kl_rows), _KL_ROWS)
    if kl_rows == "valid" and not labelled:
        raise error("kl_rows='valid' means nothing without labels", "leave it out, or give labels")
    return (_REDUCTIONS[reduction] & ~(0 if labelled else CE_MEAN_VALID)) | _KL_ROWS[kl_rows]


def build_spec(
    temperature: float | None, alpha: float | None, reduction: str, ignore_index: int, kl_rows: str, labelled: bool
) -> LossSpec:
    """The whole of a distillation loss whose temperature and alpha are numbers: ``(1 - alpha) CE + alpha T^2 KL``.

    Raises
    ------
    KdbenchError : a value is missing, out of range, unknown, or given where it means nothing.
    """
    flags = flags_of(reduction, kl_rows, labelled=labelled)
    degrees = checked_temperature(temperature)
    share = checked_alpha(alpha, labelled=labelled)
    return LossSpec(degrees, 1.0 - share, share * degrees**2, flags, int(ignore_index))


# A training loop asks for one spec again and again; building it costs as much as a small kernel. Python numbers only:
# a tensor would be hashed by identity and kept alive.
cached_spec = lru_cache(maxsize=512)(build_spec)


def weigh(
    student: Tensor,
    *,
    temperature: float | Tensor | None,
    alpha: float | Tensor | None,
    reduction: str,
    ignore_index: int,
    kl_rows: str,
    row_weight: Tensor | None,
    labelled: bool,
) -> tuple[LossSpec, RowFactors]:
    """The same where temperature, alpha or a weight may be given per row; ``student`` says how many rows, and where.

    Raises
    ------
    KdbenchError : as :func:`build_spec`, or a tensor does not fit.
    """
    row_alpha = row_temperature = ce_weight = kl_weight = None
    if isinstance(alpha, Tensor) and labelled:
        row_alpha, alpha = _checks.row_alpha(alpha, student), None
        ce_weight, kl_weight = 1.0 - row_alpha, row_alpha
    if isinstance(temperature, Tensor):
        row_temperature, temperature = _checks.row_temperature(temperature, student), 1.0
        kl_weight = scaled(row_temperature.square(), kl_weight)
    if row_weight is not None:
        weights = _checks.row_weights(row_weight, student)
        ce_weight, kl_weight = scaled(weights, ce_weight), scaled(weights, kl_weight)
    if row_alpha is None:
        spec = build_spec(temperature, alpha, reduction, ignore_index, kl_rows, labelled)  # type: ignore[arg-type]
    else:
        degrees = checked_temperature(temperature)
        spec = LossSpec(degrees, 1.0, degrees**2, flags_of(reduction, kl_rows), int(ignore_index))
    return spec, RowFactors(row_temperature, ce_weight if labelled else None, kl_weight)


def scaled(factor: Tensor, weight: Tensor | None) -> Tensor:
    """Product of two factors of a term, the second of which may be 1."""
    return factor if weight is None else weight * factor


def checked_temperature(temperature: float | None) -> float:
    """A temperature that is one number."""
    if temperature is None:
        raise error("temperature is missing", "there is no default: give the recipe's own")
    least, most = _checks.WIDEST
    if not least <= temperature <= most:
        raise error(f"temperature is {temperature}", _checks.TEMPERATURE_RULE)
    return float(temperature)


def checked_alpha(alpha: float | None, *, labelled: bool) -> float:
    """Alpha where it is one number; 1 where there are no labels to weigh against."""
    if not labelled:
        if alpha is not None:
            raise error("alpha means nothing without labels", "leave it out: the result is T^2 * KL")
        return 1.0
    if alpha is None:
        raise error("alpha is missing", "there is no default: give the weight of the soft term, in [0, 1]")
    if not 0 <= alpha <= 1:
        raise error(f"alpha is {alpha}", _checks.ALPHA_RULE)
    return float(alpha)

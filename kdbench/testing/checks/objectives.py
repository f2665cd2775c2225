"""Objectives: the loss that trains is the loss of the formula, and no gradient reaches the teacher."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from unittest import mock

import msgspec

from kdbench.component import load_object, pack, unpack
from kdbench.errors import KdbenchError
from kdbench.plugins import registry
from kdbench.stage import Spec
from kdbench.testing.checks.components import parts
from kdbench.testing.checks.subject import Subject, one_thread
from kdbench.training import Objective, ObjectiveInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["objectives", "published", "unfaithful", "unfaithful_anywhere", "used"]

Shape = tuple[int, int, int]

ROWS = (4, 2, 7)  # not 1: a loss of pairs has none there
SIGNAL: Shape = (1, 1, 8)
OTHERS = ((SIGNAL, 10), (SIGNAL, 2), (SIGNAL, 17))
"""Inputs and classes that a published objective is tried with beside those of the known data sets."""


class _Verdict(NamedTuple):
    """What is wrong with an objective on one kind of data; ``refused`` where it could not be evaluated on it at all."""

    text: str
    refused: bool = False


def objectives(subject: Subject) -> list[str]:
    """Every objective of the smoke plan on its data, and every one that the plugin publishes, against its reference.

    One that is published for other data than these is held to what it does on those that it takes.
    """
    findings: list[str] = []
    data = subject.data
    for objective, label in used(list(subject.smoke.specs.values())):
        where = f"objective {type(objective).__name__} of stage '{label}'"
        findings += unfaithful(objective, where, [(rows, data.num_classes) for rows in ROWS], data.input_shape)
    for name in subject.plugin.provides.get("objectives", []):
        made = published(registry().objectives[name])
        if isinstance(made, str):
            findings.append(made)
        else:
            findings += unfaithful_anywhere(made, f"objective '{name}'", [*subject.shapes(), *OTHERS])
    return findings


def used(specs: Sequence[Spec]) -> list[tuple[Objective, str]]:
    """The objectives in a plan's stages, each once, with the label of a stage that trains on it."""
    found: dict[bytes, tuple[Objective, str]] = {}
    for spec in specs:
        for objective in parts(spec.stage, Objective):
            found.setdefault(msgspec.json.encode(pack(objective)), (objective, spec.label))
    return list(found.values())


def published(info: ObjectiveInfo) -> Objective | str:
    """The objective that a plugin publishes, built with its example; or what is wrong with that."""
    try:
        made = load_object(info.create)(**info.example)
    except (KdbenchError, TypeError, ValueError) as error:
        return (
            f"objective '{info.id}' cannot be built from its example {info.example!r}: {error}; correct one of the two"
        )
    if not isinstance(made, Objective):
        return f"objective '{info.id}' is a {type(made).__name__}; '{info.create}' must name an Objective"
    return made


def unfaithful(
    objective: Objective, where: str, shapes: Sequence[tuple[int, int]], input_shape: Shape = SIGNAL
) -> list[str]:
    """What is wrong with one objective's loss: its value, its gradient, a gradient that reaches the teacher.

    Parameters
    ----------
    where : names the objective in a finding.
    shapes : pairs of rows and classes.
    input_shape : of one input in the batch.
    """
    verdict = _judge(msgspec.json.encode(pack(objective)), tuple(shapes), tuple(input_shape))
    return [f"{where} {verdict.text}"] if verdict.text else []


def unfaithful_anywhere(objective: Objective, where: str, kinds: Sequence[tuple[Shape, int]]) -> list[str]:
    """The same on whatever data it takes, given as input shape and number of classes; it must take one kind."""
    packed = msgspec.json.encode(pack(objective))
    verdicts = [_judge(packed, tuple((rows, classes) for rows in ROWS), shape) for shape, classes in kinds]
    wrong = [verdict.text for verdict in verdicts if verdict.text and not verdict.refused]
    if not wrong and all(verdict.refused for verdict in verdicts):
        wrong = [verdicts[0].text]
    return [f"{where} {wrong[0]}"] if wrong else []


@cache  # papers share the framework's own objectives
def _judge(packed: bytes, shapes: tuple[tuple[int, int], ...], input_shape: Shape) -> _Verdict:
    import torch

    from kdbench.testing.parity import Disparity, assert_loss_parity

    objective: Objective = unpack(msgspec.json.decode(packed))
    reference = _AsLoss(objective, "reference", input_shape)
    for shape in shapes:
        try:
            with one_thread():
                assert_loss_parity(
                    _AsLoss(objective, "loss", input_shape),
                    reference,
                    shapes=[shape],
                    dtypes=[torch.float32],  # as it trains; the reference computes in float64 all the same
                    temperatures=_temperatures(objective),
                )
        except _NoReference:
            return _Verdict("has no reference(): write the formula in plain torch, for its loss to be held against")
        except _Circular as error:
            return _Verdict(
                f"has a reference() that calls {error}, so that its loss is held against itself; write the formula in "
                "plain torch operations"
            )
        except Disparity as error:
            return _Verdict(f"is not what its reference says: {error}")
        except Exception as error:
            return _Verdict(f"cannot be evaluated on logits of {shape}: {_told(error)}", refused=True)
    if not reference.finite:
        return _Verdict(f"is not finite on any of the logits of {shapes}, so nothing could be compared", refused=True)
    return _Verdict("")


def _told(error: Exception) -> str:
    """Type and text, or the line where there is no text."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error) or f'{last.line} (at {Path(last.filename).name}:{last.lineno})'}"


class _NoReference(Exception):
    """The objective leaves ``reference`` to its base."""


class _Circular(Exception):
    """The reference calls what it is the reference of."""


def _temperatures(objective: Objective) -> list[float]:
    """Those that the objective takes of a few, and its own; 1 where it has none."""
    if not _has_temperature(objective):
        return [1.0]
    taken: list[float] = []
    for temperature in (1.0, 4.0, 2.5, float(objective.temperature)):  # type: ignore[attr-defined]
        with suppress(Exception):  # it refuses that one, in whatever way
            unpack(pack(msgspec.structs.replace(objective, temperature=temperature)))
            taken.append(temperature)
    return list(dict.fromkeys(taken))


def _has_temperature(objective: Objective) -> bool:
    return (
        isinstance(getattr(objective, "temperature", None), (int, float))
        and "temperature" in type(objective).__struct_fields__
    )


class _AsLoss:
    """The objective as the parity check calls a loss: by logits of both, labels and a temperature.

    Attributes
    ----------
    finite : whether any value was finite so far.
    """

    def __init__(self, objective: Objective, method: str, input_shape: Shape) -> None:
        self.objective = objective
        self.method = method
        self.input_shape = input_shape
        self.finite = False

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        import torch

        from kdbench.training.batch import Batch

        chosen = self.objective
        if _has_temperature(chosen):
            chosen = msgspec.structs.replace(chosen, temperature=temperature)
        rows = len(labels)
        # Between 0 and 1, as any inputs may be; rounded alike for the reference, which gets them in float64.
        inputs = torch.rand(rows, *self.input_shape, generator=torch.Generator().manual_seed(rows))
        batch = Batch(inputs.to(student_logits.dtype), labels, torch.arange(rows), teacher_logits, 0)
        if self.method == "loss":
            return chosen.loss(student_logits, batch)
        with _loss_forbidden(chosen):
            try:
                value = chosen.reference(student_logits, batch)
            except NotImplementedError:
                raise _NoReference from None
        self.finite = self.finite or bool(torch.as_tensor(value).isfinite().any())
        return value


@contextmanager
def _loss_forbidden(objective: Objective) -> Iterator[None]:
    """While it lasts, the ``loss`` of an objective and of those in it raises, and so does :mod:`kdbench.losses`."""
    import kdbench.losses

    def own(*given: object, **named: object) -> NoReturn:
        raise _Circular("loss()")

    def fused(*given: object, **named: object) -> NoReturn:
        frame = sys._getframe(1)
        while frame.f_code.co_name not in kdbench.losses.__all__ and frame.f_back is not None:
            frame = frame.f_back
        raise _Circular(f"kdbench.losses.{frame.f_code.co_name}")

    kinds = {kind for each in parts(pack(objective), Objective) for kind in type(each).__mro__}
    with ExitStack() as stack:
        for kind in kinds:
            if issubclass(kind, Objective) and "loss" in vars(kind):
                stack.enter_context(mock.patch.object(kind, "loss", own))
        for name, module in list(sys.modules.items()):
            if name.startswith("kdbench.losses."):
                for entrance in ("fast_loss", "softened_loss", "log_sum_exp", "in_chunks", "traced_in_chunks"):
                    if hasattr(module, entrance):  # where every one of its functions leaves Python
                        stack.enter_context(mock.patch.object(module, entrance, fused))
        yield

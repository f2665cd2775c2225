"""The clean reading: no choice on the test split, and the true KL divergence."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.component import unpack
from kdbench.errors import KdbenchError
from kdbench.paper import TIERS
from kdbench.stage import Spec
from kdbench.stages import Choose
from kdbench.testing.checks.components import parts
from kdbench.testing.checks.subject import Subject
from kdbench.training import Distillation, Recipe

__all__ = ["everywhere", "unclean"]


def everywhere(subject: Subject) -> list[str]:
    """What the stages of every tier do that no clean reading does; of one fault, the first tier that has it."""
    findings: dict[str, str] = {}
    for tier in TIERS:
        try:
            plan = subject.plan("clean", "all", tier)
        except KdbenchError:  # a study may refuse a tier; that it plans at smoke is another test's promise
            continue
        for text in unclean(plan.specs.values()):
            findings.setdefault(text, text if tier == "smoke" else f"{text} (tier {tier})")
    return list(findings.values())


def unclean(specs: Iterable[Spec]) -> list[str]:
    """What the stages of a plan at protocol ``clean`` do that no clean reading does, each once a stage."""
    findings: list[str] = []
    for spec in specs:
        stage = unpack(spec.stage)
        if isinstance(stage, Choose) and stage.by == "test":
            findings.append(
                f"selection on test at protocol clean: stage '{spec.label}' picks a trial by its test accuracy; "
                "choose by 'validation'"
            )
        if any(recipe.selection == "test" for recipe in parts(spec.stage, Recipe)):
            findings.append(
                f"selection on test at protocol clean: stage '{spec.label}' keeps the epoch that is best on the test "
                "split; select 'last', or on 'validation' with a holdout"
            )
        if any(loss.reduction == "mean" for loss in parts(spec.stage, Distillation)):
            findings.append(
                f"the 'mean' KL at protocol clean: stage '{spec.label}' divides its KL term by the number of classes "
                "as well as by the batch; take reduction 'batchmean'"
            )
    return findings

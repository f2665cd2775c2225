"""ISLS for kdbench: self-distillation as instance-specific label smoothing (Zhang and Sabuncu, NeurIPS 2020)."""

from collections.abc import Iterator

from kdbench import Paper, hookimpl
from kdbench.training import ObjectiveInfo
from kdbench_isls.study import reproduce

KDBENCH_API = 1

_CODE = "ZhiluZhang123/neurips_2020_distillation at f913a07 (Zhang and Sabuncu, NeurIPS 2020)"


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce, figures="kdbench_isls.figures:figures")


@hookimpl
def kdbench_objectives() -> Iterator[ObjectiveInfo]:
    yield ObjectiveInfo(
        id="beta-smoothing",
        title="cross-entropy with label shares drawn from Beta(a, 1), the largest for the most confident",
        source=_CODE,
        create="kdbench_isls.objectives:BetaSmoothing",
        example={"a": 3.0, "alpha": 0.6},
    )
    yield ObjectiveInfo(
        id="self-distillation",
        title="cross-entropy with the labels and with a teacher that alone is softened, without T^2",
        source=_CODE,
        create="kdbench_isls.objectives:SelfDistillation",
        example={"temperature": 4.0, "alpha": 0.4},
    )
    yield ObjectiveInfo(
        id="flat-self-distillation",
        title="the same with the teacher's probability of the label alone, the rest spread evenly",
        source="our control",
        create="kdbench_isls.objectives:FlatTarget",
        example={"temperature": 4.0, "alpha": 0.4},
    )
    yield ObjectiveInfo(
        id="matched-smoothing",
        title="label smoothing at the mean target of self-distillation, batch by batch",
        source="our control",
        create="kdbench_isls.objectives:MatchedSmoothing",
        example={"temperature": 4.0, "alpha": 0.4},
    )
    yield ObjectiveInfo(
        id="entropy-penalty",
        title="cross-entropy with the labels, less the entropy of the predictions",
        source=_CODE,
        create="kdbench_isls.objectives:EntropyPenalty",
        example={"weight": 0.1},
    )

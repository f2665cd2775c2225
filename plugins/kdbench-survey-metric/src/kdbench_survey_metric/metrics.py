"""The metrics that every report shows once this plugin is installed; :mod:`kdbench_survey_metric.subjects` computes."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench import hookimpl
from kdbench.metric import Metric

__all__ = ["kdbench_metrics"]

_SURVEY = "Alkhulaifi, Alsahli, Ahmad 2021, its formula through public notes on it (third-party)"
_OURS = "derived; kdbench-survey-metric"


@hookimpl
def kdbench_metrics() -> Iterator[Metric]:
    yield Metric(
        id="DS",
        title="distillation score under its own teacher: .5 size_S/size_T + .5 (1 - acc_S/acc_T), size in parameters",
        unit="",
        better="lower",
        source=_SURVEY,
        compute="kdbench_survey_metric.subjects:score",
    )
    yield Metric(
        id="DS-chance",
        title="DS with (acc - c)/(1 - c) for acc, c being the rate of the test split's largest class",
        unit="",
        better="lower",
        source=_OURS,
        compute="kdbench_survey_metric.subjects:chance_adjusted_score",
    )
    yield Metric(
        id="DS-worst",
        title="DS with min_k acc[k] for acc, each network's accuracy on its own worst class",
        unit="",
        better="lower",
        source=_OURS,
        compute="kdbench_survey_metric.subjects:worst_class_score",
    )
    yield Metric(
        id="dDS",
        title="what distillation takes off DS: DS(without teacher) - DS = .5 (acc_S - acc_plain)/acc_T",
        unit="",
        better="higher",
        source=_OURS,
        compute="kdbench_survey_metric.subjects:score_gain",
    )
    yield Metric(
        id="gap-closed",
        title="share of the gap to the teacher that distillation closed: (acc_S - acc_plain)/(acc_T - acc_plain)",
        unit="",
        better="higher",
        source=_OURS,
        compute="kdbench_survey_metric.subjects:gap_closed",
    )

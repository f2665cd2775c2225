"""The survey's distillation score for kdbench (Alkhulaifi, Alsahli and Ahmad, PeerJ Computer Science 2021)."""

from kdbench_survey_metric.command import kdbench_register_commands
from kdbench_survey_metric.metrics import kdbench_metrics
from kdbench_survey_metric.paper import kdbench_papers

KDBENCH_API = 1

__all__ = ["kdbench_metrics", "kdbench_papers", "kdbench_register_commands"]

"""The one training loop and the values that describe a run of it. Importing this package does not import torch."""

from kdbench.training.objectives import (
    CrossEntropy,
    Distillation,
    EnsembleDistillation,
    LabelSmoothing,
    Objective,
    ObjectiveInfo,
    SmoothedDistillation,
)
from kdbench.training.recipe import SGD, Constant, Milestones, Mixing, OneCycle, Recipe, Sample, Schedule

__all__ = [
    "SGD",
    "Constant",
    "CrossEntropy",
    "Distillation",
    "EnsembleDistillation",
    "LabelSmoothing",
    "Milestones",
    "Mixing",
    "Objective",
    "ObjectiveInfo",
    "OneCycle",
    "Recipe",
    "Sample",
    "Schedule",
    "SmoothedDistillation",
]

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
from kdbench.training.recipe import (
    SGD,
    AdamW,
    Constant,
    Milestones,
    Mixing,
    OneCycle,
    Optimizer,
    Recipe,
    Sample,
    Schedule,
    WarmupLinear,
)

__all__ = [
    "SGD",
    "AdamW",
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
    "Optimizer",
    "Recipe",
    "Sample",
    "Schedule",
    "SmoothedDistillation",
    "WarmupLinear",
]

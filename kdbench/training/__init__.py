"""The one training loop and the values that describe a run of it. Importing this package does not import torch."""

from kdbench.training.objectives import CrossEntropy, Distillation, LabelSmoothing, Objective, ObjectiveInfo
from kdbench.training.recipe import SGD, Constant, Milestones, OneCycle, Recipe, Schedule

__all__ = [
    "SGD",
    "Constant",
    "CrossEntropy",
    "Distillation",
    "LabelSmoothing",
    "Milestones",
    "Objective",
    "ObjectiveInfo",
    "OneCycle",
    "Recipe",
    "Schedule",
]

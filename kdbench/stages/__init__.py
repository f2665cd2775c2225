"""The kinds of stage that every study can use. Importing them does not import torch."""

from kdbench.stages.agreement import Agreement
from kdbench.stages.choose import Choose
from kdbench.stages.teacher import Teacher
from kdbench.stages.train import Train

__all__ = ["Agreement", "Choose", "Teacher", "Train"]

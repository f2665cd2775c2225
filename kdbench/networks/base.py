"""What every network description offers: a name, a size and a way to build it. Torch is imported only by ``build``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kdbench.component import Component

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cost", "Network"]


class Cost(msgspec.Struct, frozen=True):
    """Size of a network for one input: trainable parameters, and multiply-accumulates of one forward pass."""

    parameters: int
    macs: int


class Network(Component, frozen=True):
    """A network's description: plain values that hash. Subclasses add the fields that define the architecture."""

    @property
    def name(self) -> str:
        """Short name in the field's words, for instance ``plain10`` or ``resnet110``."""
        raise NotImplementedError

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module that maps ``[N, C, H, W]`` float inputs to ``[N, num_classes]`` logits.

        The caller seeds torch's global generator first.
        """
        raise NotImplementedError

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs, counted without torch."""
        raise NotImplementedError

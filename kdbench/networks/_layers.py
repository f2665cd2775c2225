"""Torch layers that several networks share; imported only when one is built."""

from __future__ import annotations

import math

from torch import nn

from kdbench.networks._counting import spatial

__all__ = ["conv3x3", "start_convolutions"]


def conv3x3(inputs: int, filters: int, height: int, *, stride: tuple[int, int] = (1, 1)) -> nn.Conv2d:
    """A padded 3x3 convolution without bias; 1x3 over signals."""
    padding = (0 if height == 1 else 1, 1)
    return nn.Conv2d(inputs, filters, spatial(3, height), stride=stride, padding=padding, bias=False)


def start_convolutions(module: nn.Module) -> None:
    """Draw every convolution from He et al.'s normal, of std ``sqrt(2 / (k * k * filters))``."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))

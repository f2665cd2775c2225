"""The torch module behind :class:`kdbench.networks.resnet.CifarResNet`; imported only when one is built."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdbench.networks._counting import spatial

__all__ = ["ResNetModule"]


class Block(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``, with a projection where shapes differ."""

    def __init__(self, inputs: int, filters: int, *, stride: int, height: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, filters, height, stride=spatial(stride, height))
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = _conv(filters, filters, height)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != filters:
            projection = nn.Conv2d(inputs, filters, 1, stride=spatial(stride, height), bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(filters))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        output: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))
        return output


class ResNetModule(nn.Module):
    """Maps ``[N, C, H, W]`` to ``[N, classes]`` logits; ``stages`` are the three groups of blocks."""

    def __init__(self, input_shape: tuple[int, int, int], widths: Sequence[int], blocks: int, num_classes: int) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.stem = nn.Sequential(_conv(channels, widths[0], height), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        inputs = widths[0]
        for filters in widths:
            stage: list[nn.Module] = []
            for _ in range(blocks):
                stage.append(Block(inputs, filters, stride=1 if inputs == filters else 2, height=height))
                inputs = filters
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        # The global mean: on 32x32 inputs the published 8x8 average pool.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.stages(self.stem(inputs))).flatten(1))
        return logits


def _conv(inputs: int, filters: int, height: int, *, stride: tuple[int, int] = (1, 1)) -> nn.Conv2d:
    padding = (0 if height == 1 else 1, 1)
    return nn.Conv2d(inputs, filters, spatial(3, height), stride=stride, padding=padding, bias=False)

"""The torch module behind the ResNets of basic blocks, CIFAR's and the others; imported only when one is built."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdbench.networks._counting import spatial
from kdbench.networks._layers import conv3x3, start_convolutions

__all__ = ["ResNetModule"]


class Block(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``, with a projection where shapes differ."""

    def __init__(self, inputs: int, filters: int, *, stride: int, height: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, filters, height, stride=spatial(stride, height))
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv3x3(filters, filters, height)
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
    """Maps ``[N, C, H, W]`` to ``[N, classes]`` logits; ``stages`` are the groups of blocks, one a width."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        *,
        he_start: bool = True,
    ) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.stem = nn.Sequential(
            conv3x3(channels, widths[0], height), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        stages: list[nn.Module] = []
        inputs = widths[0]
        for filters, count in zip(widths, blocks, strict=True):
            stage: list[nn.Module] = []
            for _ in range(count):
                stage.append(Block(inputs, filters, stride=1 if inputs == filters else 2, height=height))
                inputs = filters
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        # The global mean: on 32x32 inputs the published average pool, 8x8 after three stages and 4x4 after four.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        if he_start:
            start_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.stages(self.stem(inputs))).flatten(1))
        return logits

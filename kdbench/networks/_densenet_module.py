"""The torch module behind :class:`kdbench.networks.densenet.DenseNet`; imported only when one is built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.networks._counting import spatial
from kdbench.networks._layers import conv3x3, start_convolutions

__all__ = ["DenseNetModule"]


class Bottleneck(nn.Module):
    """``cat(x, conv3x3(relu(bn(conv1x1(relu(bn(x)))))))``: the input, and ``growth`` channels more."""

    def __init__(self, inputs: int, growth: int, *, height: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth, height)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv1(self.relu(self.bn1(inputs)))
        return torch.cat((inputs, self.conv2(self.relu(self.bn2(hidden)))), 1)


class DenseNetModule(nn.Module):
    """Maps ``[N, C, H, W]`` to ``[N, classes]`` logits; ``features`` are the dense blocks and the transitions."""

    def __init__(
        self, input_shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]], growth: int, num_classes: int
    ) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.stem = conv3x3(channels, blocks[0][0], height)
        features: list[nn.Module] = []
        inputs = blocks[0][0]
        for number, (entering, leaving) in enumerate(blocks):
            if number > 0:
                features.append(_transition(inputs, entering, height))
            features.append(
                nn.Sequential(*(Bottleneck(each, growth, height=height) for each in range(entering, leaving, growth)))
            )
            inputs = leaving
        self.features = nn.Sequential(*features)
        # The global mean: on 32x32 inputs the published 8x8 average pool.
        self.head = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(inputs, num_classes)
        start_convolutions(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.head(self.features(self.stem(inputs))).flatten(1))
        return logits


def _transition(inputs: int, outputs: int, height: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.AvgPool2d(spatial(2, height)),
    )

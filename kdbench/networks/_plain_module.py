"""The torch module behind :class:`kdbench.networks.plain.Plain`; imported only when one is built."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdbench.networks._counting import spatial
from kdbench.networks.plain import Layer

__all__ = ["PlainModule"]


class PlainModule(nn.Module):
    """Maps ``[N, C, H, W]`` to ``[N, classes]`` logits; ``features`` holds the convolutions, ``classifier`` the FCs."""

    def __init__(self, layers: Sequence[Layer], *, height: int) -> None:
        super().__init__()
        kernel, padding, pool = spatial(3, height), (0 if height == 1 else 1, 1), spatial(2, height)
        features: list[nn.Module] = []
        classifier: list[nn.Module] = []
        for kind, inputs, outputs, _ in layers:
            if kind == "conv":
                features.append(nn.Conv2d(inputs, outputs, kernel, padding=padding))
                features += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            elif kind == "pool":
                features.append(nn.MaxPool2d(pool))
            else:
                classifier.append(nn.Linear(inputs, outputs))
                if kind == "hidden":
                    classifier.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(inputs).flatten(1))
        return logits

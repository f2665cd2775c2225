"""A network together with its input normalisation, so that whoever loads the weights feeds it raw inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.data.base import DataRef
from kdbench.data.transforms import normalise
from kdbench.networks.base import Network

__all__ = ["Normalised", "build_model"]


class Normalised(nn.Module):
    """``net((x - mean) / std)`` for raw inputs ``[N, C, H, W]``: uint8 images (scaled to 0-1 first) or floats."""

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.mean = mean
        self.std = std

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(normalise(inputs, self.mean, self.std))
        return logits


def build_model(network: Network, data: DataRef, mean: list[float], std: list[float]) -> Normalised:
    """The network for this data, freshly initialised from torch's global generator, in channels-last layout."""
    net = network.build(data.input_shape, data.num_classes)
    model = Normalised(net, mean, std)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model

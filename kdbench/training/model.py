"""A network together with its input normalisation, so that whoever loads the weights feeds it raw inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.data.base import DataRef
from kdbench.data.transforms import normalise, resize
from kdbench.networks.base import Network

__all__ = ["Normalised", "build_model", "sizes_of"]


class Normalised(nn.Module):
    """``net((x - mean) / std)`` for raw inputs ``[N, C, H, W]``: uint8 images (scaled to 0-1 first) or floats.

    With ``size``, height and width that the network takes, larger inputs are resized to it first.
    """

    def __init__(
        self, net: nn.Module, mean: list[float], std: list[float], size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.mean = mean
        self.std = std
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        if self.size is not None and (inputs.shape[2] > self.size[0] or inputs.shape[3] > self.size[1]):
            inputs = resize(inputs, self.size)
        logits: Tensor = self.net(normalise(inputs, self.mean, self.std))
        return logits


def build_model(network: Network, data: DataRef, mean: list[float], std: list[float]) -> Normalised:
    """The network for this data, freshly initialised from torch's global generator, in channels-last layout."""
    net = network.build(data.input_shape, data.num_classes)
    model = Normalised(net, mean, std, data.input_shape[1:])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def sizes_of(model: nn.Module, network: Network, data: DataRef) -> dict[str, int]:
    """How large a network is, in each unit that a paper may mean; they differ once it is pruned or quantised.

    Returns
    -------
    dict
        ``parameters`` (trainable), ``nonzero_parameters`` (of these), ``bytes`` (parameters and buffers as stored) and
        ``macs`` (of one forward pass, by formula).
    """
    parameters = list(model.parameters())
    stored = [*parameters, *model.buffers()]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "nonzero_parameters": sum(int(p.count_nonzero()) for p in parameters),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
        "macs": network.cost(data.input_shape, data.num_classes).macs,
    }

"""Parameters and MACs of a module as it is built and run: what the formulas of networks are held against."""

from __future__ import annotations

import torch
from torch import nn


def parameters(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters() if tensor.requires_grad)


def counted_macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of the layers that really run, from the shapes that hooks see."""
    macs = []

    def see(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        # Every output number of a conv or FC costs as many MACs as one filter or row has weights.
        macs.append(output.numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(see)
    module.eval()
    with torch.no_grad():
        module(torch.zeros(1, *shape))
    return sum(macs)

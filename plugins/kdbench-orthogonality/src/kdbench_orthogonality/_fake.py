"""Fake quantisation of weights: a parametrisation that rounds them in every forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench_orthogonality._pruning import weighted

__all__ = ["Rounded", "make_permanent", "parametrise", "weights"]


class Rounded(nn.Module):
    """Each output channel of a weight ``[F, ...]`` on its own symmetric grid; the gradient passes straight through.

    Parameters
    ----------
    bits : of a weight; the levels are the integers of magnitude ``2**(bits - 1) - 1`` and less.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().flatten(1).amax(1) / self.most
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)  # a channel of zeros has a scale too
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.most, self.most)


def parametrise(net: nn.Module, bits: int) -> None:
    """Round the weights of every convolution and fully connected layer from now on."""
    for layer in weighted(net).values():
        parametrize.register_parametrization(layer, "weight", Rounded(bits))


def make_permanent(net: nn.Module) -> None:
    """Put the rounded weights in the place of what they were rounded from."""
    for layer in weighted(net).values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def weights(net: nn.Module) -> list[Tensor]:
    """The weights that are rounded, of a finished network."""
    return [layer.weight for layer in weighted(net).values()]

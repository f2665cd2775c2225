"""CIFAR ResNets of depth 6n + 2 (He et al., CVPR 2016), as the teacher-assistant paper's released code builds them.

Post-activation basic blocks, 16/32/64 filters, and, unlike He et al.'s CIFAR networks, a projection (1x1 convolution
and batch norm, "option B") where the stage changes, which adds a few parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError
from kdbench.networks import _counting as counting
from kdbench.networks.base import Cost, Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RESNET_DEPTHS", "CifarResNet", "residual_cost"]

RESNET_DEPTHS = (8, 14, 20, 26, 32, 44, 56, 110)
WIDTHS = (16, 32, 64)


class CifarResNet(Network, frozen=True, kw_only=True):
    """A ResNet for small images: stem 3x3-16, three stages of ``n`` blocks, global average pool, FC.

    Inputs of height 1, ``[N, C, 1, L]``, are signals and take 1x3 kernels.

    Parameters
    ----------
    depth : 6n + 2, for instance 8, 14, 20, 26, 32, 44, 56 or 110.
    """

    depth: int

    def __post_init__(self) -> None:
        if self.depth < 8 or self.depth % 6 != 2:
            raise KdbenchError(f"a CIFAR ResNet of depth {self.depth} does not exist", cure="depths are 6n + 2, from 8")

    @property
    def name(self) -> str:
        """``resnet`` and the depth."""
        return f"resnet{self.depth}"

    @property
    def blocks(self) -> int:
        """Residual blocks in each of the three stages."""
        return (self.depth - 2) // 6

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module; convolutions are normal with std ``sqrt(2 / (k * k * filters))``."""
        from kdbench.networks._resnet_module import ResNetModule

        return ResNetModule(input_shape, WIDTHS, [self.blocks] * len(WIDTHS), num_classes)

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula, projections included."""
        return residual_cost(input_shape, WIDTHS, [self.blocks] * len(WIDTHS), num_classes)


def residual_cost(
    input_shape: tuple[int, int, int], widths: Sequence[int], blocks: Sequence[int], num_classes: int
) -> Cost:
    """Cost of ``blocks[i]`` basic blocks of ``widths[i]`` filters for each i, with stem, projections and FC."""
    channels, height, width = input_shape
    kernel = counting.spatial(3, height)

    def conv_bn(inputs: int, outputs: int, size: tuple[int, int]) -> list[Cost]:
        return [
            counting.conv(inputs, outputs, size, height * width, bias=False),
            counting.batch_norm(outputs),
        ]

    costs = conv_bn(channels, widths[0], kernel)
    channels = widths[0]
    for filters, count in zip(widths, blocks, strict=True):
        if filters != channels:
            height, width = -(-height // 2), -(-width // 2)
            costs += conv_bn(channels, filters, (1, 1))
        for _ in range(count):
            costs += conv_bn(channels, filters, kernel) + conv_bn(filters, filters, kernel)
            channels = filters
    return counting.total([*costs, counting.linear(channels, num_classes)])

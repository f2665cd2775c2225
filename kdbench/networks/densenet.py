"""DenseNet-BC for small images (Huang et al., CVPR 2017), as its authors' released code lays it out.

The code is github.com/liuzhuang13/DenseNet at 6d4c8da, models/densenet.lua. The self-distillation paper's released code
(github.com/ZhiluZhang123/neurips_2020_distillation at 1446530, models/densenet.py) has the same layers and the same
initialisation, and uses depth 100, growth 12 and reduction .5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kdbench.errors import KdbenchError
from kdbench.networks import _counting as counting
from kdbench.networks.base import Cost, Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DenseNet"]


class DenseNet(Network, frozen=True, kw_only=True):
    """Three dense blocks of bottleneck layers between a 3x3 stem and an FC, with transitions that compress.

    The stem has ``2 * growth`` filters. A bottleneck layer is BN-ReLU-1x1 convolution to ``4 * growth`` channels, then
    BN-ReLU-3x3 convolution to ``growth`` channels, which join the layer's input. A transition is BN-ReLU-1x1
    convolution-2x2 average pool; before the FC come BN-ReLU and a global average pool. Inputs of height 1,
    ``[N, C, 1, L]``, are signals and take 1x3 kernels and 1x2 pools.

    Parameters
    ----------
    depth : 6n + 4: the stem, two convolutions in each of 3n bottleneck layers, two transitions and the FC.
    growth : channels that every layer adds.
    reduction : share of its channels that a transition keeps, rounded down, at least 1 channel.
    """

    depth: int = 100
    growth: int = 12
    reduction: float = 0.5

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise KdbenchError(f"a DenseNet-BC of depth {self.depth} does not exist", cure="depths are 6n + 4, from 10")
        if self.growth < 1:
            raise KdbenchError(f"a DenseNet cannot grow by {self.growth} channels a layer", cure="growth is at least 1")
        if not 0 < self.reduction <= 1:
            raise KdbenchError(
                f"reduction {self.reduction} of {self.name} is not a share of channels to keep",
                cure="it is more than 0 and at most 1",
            )
        # reduction=1 and reduction=1.0 are one network, so they must hash alike.
        msgspec.structs.force_setattr(self, "reduction", float(self.reduction))

    @property
    def name(self) -> str:
        """``densenet100-12``: depth and growth, then ``-r`` and the reduction where it is not .5."""
        return f"densenet{self.depth}-{self.growth}" + ("" if self.reduction == 0.5 else f"-r{self.reduction:g}")

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Channels that enter and leave each of the three dense blocks."""
        grown = (self.depth - 4) // 6 * self.growth
        entering = 2 * self.growth
        blocks: list[tuple[int, int]] = []
        for _ in range(3):
            blocks.append((entering, entering + grown))
            entering = max(1, int((entering + grown) * self.reduction))
        return tuple(blocks)

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module.

        As in both released codes, convolutions are normal with std ``sqrt(2 / (k * k * filters))``, batch norms start
        at scale 1 and shift 0 and the FC's bias at 0; the FC's weights are drawn by the library's default.
        """
        from kdbench.networks._densenet_module import DenseNetModule

        self._sizes(input_shape)
        return DenseNetModule(input_shape, self.blocks, self.growth, num_classes)

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula."""
        kernel = counting.spatial(3, input_shape[1])
        sizes = self._sizes(input_shape)
        channels = self.blocks[0][0]
        costs = [counting.conv(input_shape[0], channels, kernel, sizes[0], bias=False)]
        for number, (entering, leaving) in enumerate(self.blocks):
            if number > 0:  # the transition convolves before it pools
                costs.append(counting.batch_norm(channels))
                costs.append(counting.conv(channels, entering, (1, 1), sizes[number - 1], bias=False))
            for inputs in range(entering, leaving, self.growth):
                costs.append(counting.batch_norm(inputs))
                costs.append(counting.conv(inputs, 4 * self.growth, (1, 1), sizes[number], bias=False))
                costs.append(counting.batch_norm(4 * self.growth))
                costs.append(counting.conv(4 * self.growth, self.growth, kernel, sizes[number], bias=False))
            channels = leaving
        return counting.total([*costs, counting.batch_norm(channels), counting.linear(channels, num_classes)])

    def _sizes(self, input_shape: tuple[int, int, int]) -> list[int]:
        """Pixels of one channel in each dense block; refuses inputs that the pools would leave without any."""
        _, height, width = input_shape
        pool = counting.spatial(2, height)
        sizes: list[int] = []
        for _ in self.blocks:
            sizes.append(height * width)
            height, width = height // pool[0], width // pool[1]
        if sizes[-1] < 1:
            raise KdbenchError(
                f"inputs of shape {tuple(input_shape)} are too small for {self.name}",
                cure="its two pools halve height and width; both need at least 4 pixels, of a signal the length alone",
            )
        return sizes

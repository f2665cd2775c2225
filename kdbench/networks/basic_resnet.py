"""ResNet-18 and ResNet-34 (He et al., CVPR 2016) with a stem for small images.

The layers are those of the self-distillation paper's released code, github.com/ZhiluZhang123/neurips_2020_distillation
at 1446530. The stem is a 3x3 convolution of stride 1 without a max-pool: 32x32 inputs reach the last stage as 4x4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdbench.errors import KdbenchError
from kdbench.networks.base import Cost, Network
from kdbench.networks.resnet import residual_cost

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BASIC_RESNET_DEPTHS", "BasicResNet"]

WIDTHS = (64, 128, 256, 512)
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BASIC_RESNET_DEPTHS = tuple(_BLOCKS)


class BasicResNet(Network, frozen=True, kw_only=True):
    """A ResNet of post-activation basic blocks: stem 3x3-64, four stages, global average pool, FC.

    The stages have 64, 128, 256 and 512 filters; all but the first start with stride 2 and a projection (1x1
    convolution and batch norm). Inputs of height 1, ``[N, C, 1, L]``, are signals and take 1x3 kernels.

    Parameters
    ----------
    depth : 18 or 34.
    start : initial weights of the convolutions: ``he``, normal with std ``sqrt(2 / (k * k * filters))`` as in the other
        ResNets here, or ``torch``, the library's default, which the released code keeps.
    """

    depth: int
    start: Literal["he", "torch"] = "he"

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise KdbenchError(
                f"there is no ResNet of basic blocks of depth {self.depth}",
                cure=f"depths: {', '.join(map(str, BASIC_RESNET_DEPTHS))}; CifarResNet has those of 6n + 2",
            )

    @property
    def name(self) -> str:
        """``resnet`` and the depth."""
        return f"resnet{self.depth}"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks in each of the four stages."""
        return _BLOCKS[self.depth]

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module."""
        from kdbench.networks._resnet_module import ResNetModule

        return ResNetModule(input_shape, WIDTHS, self.blocks, num_classes, he_start=self.start == "he")

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula, projections included."""
        return residual_cost(input_shape, WIDTHS, self.blocks, num_classes)

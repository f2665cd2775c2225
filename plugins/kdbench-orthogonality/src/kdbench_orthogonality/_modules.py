"""The torch modules behind :mod:`kdbench_orthogonality.networks`; imported only when one is built."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdbench.networks._layers import start_convolutions
from kdbench.networks._plain_module import PlainModule
from kdbench.networks._resnet_module import Block
from kdbench.networks.plain import Layer

__all__ = ["DropoutPlainModule", "SeparablePlainModule", "separable_resnet"]


class SeparablePlainModule(PlainModule):
    """The plain module with every convolution but the first made separable; each is a group in ``features``."""

    def __init__(self, layers: Sequence[Layer], *, height: int) -> None:
        super().__init__(layers, height=height)
        convolutions = [place for place, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        for place in convolutions[1:]:
            self.features[place] = _separable(self.features[place])


class DropoutPlainModule(PlainModule):
    """The plain module with dropout between ``features`` and ``classifier``."""

    def __init__(self, layers: Sequence[Layer], *, height: int, rate: float) -> None:
        super().__init__(layers, height=height)
        self.dropout = nn.Dropout(rate)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.features(inputs).flatten(1)))
        return logits


def separable_resnet(net: nn.Module) -> nn.Module:
    """The ResNet with the 3x3 convolutions of its blocks made separable, drawn anew as ResNets are."""
    for block in [module for module in net.modules() if isinstance(module, Block)]:
        for name in ("conv1", "conv2"):
            setattr(block, name, _separable(getattr(block, name)))
    start_convolutions(net)
    return net


def _separable(conv: nn.Module) -> nn.Sequential:
    """Depthwise (with the kernel, stride and padding of ``conv``), batch norm, ReLU, pointwise."""
    assert isinstance(conv, nn.Conv2d)
    channels = conv.in_channels
    depthwise = nn.Conv2d(
        channels,
        channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        groups=channels,
        bias=False,
    )
    pointwise = nn.Conv2d(channels, conv.out_channels, 1, bias=conv.bias is not None)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), pointwise)

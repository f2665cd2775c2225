"""The networks of this study beside the shared ones: cheap convolutions, dropout, and what structured pruning leaves.

All are variations of the shared plain networks and CIFAR ResNets: the same layer lists, the same places, and where the
layers are the same also the same module names, so that weights can move between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError
from kdbench.networks import CifarResNet, Plain
from kdbench.networks import _counting as counting
from kdbench.networks.base import Cost
from kdbench.networks.plain import Layer
from kdbench.networks.resnet import WIDTHS, residual_cost

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "DropoutPlain",
    "SeparablePlain",
    "SeparableResNet",
    "SlimPlain",
    "SlimResNet",
    "SlimSeparablePlain",
    "SlimSeparableResNet",
]


class SeparablePlain(Plain, frozen=True, kw_only=True):
    """A plain network of depthwise-separable convolutions (Howard et al. 2017, MobileNets).

    Each convolution but the first is a depthwise 3x3 (1x3 over signals) without bias, batch norm, ReLU, and a pointwise
    1x1 in the place of the full one: with bias, batch norm and ReLU as there. Pools and fully connected layers are
    those of :class:`kdbench.networks.Plain` of the same size and width.
    """

    @property
    def name(self) -> str:
        """``plain4-separable``, or ``plain4-x0.5-separable`` at half width."""
        return f"{Plain(size=self.size, width=self.width).name}-separable"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module (PyTorch's default initialisation)."""
        from kdbench_orthogonality._modules import SeparablePlainModule

        return SeparablePlainModule(self.layers(input_shape, num_classes), height=input_shape[1])

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula."""
        kernel = counting.spatial(3, input_shape[1])
        convolutions = [layer for layer in self.layers(input_shape, num_classes) if layer.kind == "conv"]
        return counting.total(
            [
                super().cost(input_shape, num_classes),
                *(_saved(each.inputs, each.outputs, kernel, each.positions, bias=True) for each in convolutions[1:]),
            ]
        )


class DropoutPlain(Plain, frozen=True, kw_only=True):
    """A plain network with dropout before its fully connected layers; modules are named as in the plain one.

    Parameters
    ----------
    rate : probability with which an input of the first fully connected layer is dropped in training.
    """

    rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate < 1:
            raise KdbenchError(f"dropout of {self.rate} leaves nothing to train", cure="rates are from 0 to below 1")

    @property
    def name(self) -> str:
        """``plain4-dropout0.1``, with the width as in the plain network's name."""
        return f"{Plain(size=self.size, width=self.width).name}-dropout{self.rate:g}"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module; under one torch seed its weights are the plain network's."""
        from kdbench_orthogonality._modules import DropoutPlainModule

        return DropoutPlainModule(self.layers(input_shape, num_classes), height=input_shape[1], rate=self.rate)


class SlimPlain(Plain, frozen=True, kw_only=True):
    """A plain network with as many filters in each convolution as ``channels`` says: what structured pruning leaves.

    ``size`` and ``width`` are those of the network it was cut from, whose hidden fully connected units stay.

    Parameters
    ----------
    channels : filters of each convolution, in order.
    """

    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) != self.size or min(self.channels, default=0) < 1:
            raise KdbenchError(
                f"{list(self.channels)} are not the filters of {self.size} convolutions",
                where=f"plain{self.size}",
                cure="give one positive number a convolution",
            )

    @property
    def name(self) -> str:
        """``plain2-slim5.10``: the plain network's name and the filters."""
        return f"{Plain(size=self.size, width=self.width).name}-slim{'.'.join(map(str, self.channels))}"

    def layers(self, input_shape: tuple[int, int, int], num_classes: int) -> tuple[Layer, ...]:
        """The plain network's layers with these filters.

        Raises
        ------
        KdbenchError : a pool would leave no pixel.
        """
        filters = iter(self.channels)
        whole = slim = input_shape[0]  # channels at this place, in the whole network and here
        layers: list[Layer] = []
        for layer in Plain(size=self.size, width=self.width).layers(input_shape, num_classes):
            if layer.kind == "conv":
                inputs, slim, whole = slim, next(filters), layer.outputs
                layers.append(layer._replace(inputs=inputs, outputs=slim))
            elif layer.kind == "pool":
                layers.append(layer._replace(inputs=slim, outputs=slim))
            else:  # the first fully connected layer reads channels times pixels; those after it are as they were
                layers.append(layer._replace(inputs=layer.inputs // whole * slim))
                whole = slim = 1
        return tuple(layers)


class SlimSeparablePlain(SlimPlain, SeparablePlain, frozen=True, kw_only=True):
    """A plain network of separable convolutions with other numbers of filters: what structured pruning leaves of one.

    ``channels`` are the filters of the first convolution and of every pointwise one; a depthwise convolution has as
    many as it has inputs.
    """

    @property
    def name(self) -> str:
        """``plain2-slim5.10-separable``: the slim plain network's name and what its convolutions are."""
        return f"{super().name}-separable"


class SlimResNet(CifarResNet, frozen=True, kw_only=True):
    """A CIFAR ResNet with other filters in its three stages: what structured pruning by one ratio leaves.

    Parameters
    ----------
    widths : filters of the three stages, increasing.
    """

    widths: tuple[int, int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two stages of equal width would have no projection, and so no stride, between them.
        if not 0 < self.widths[0] < self.widths[1] < self.widths[2]:
            raise KdbenchError(
                f"{list(self.widths)} are not the filters of three stages",
                where=f"resnet{self.depth}",
                cure="give three growing numbers",
            )

    @property
    def name(self) -> str:
        """``resnet20-slim10.21.42``: the depth and the filters."""
        return f"resnet{self.depth}-slim{'.'.join(map(str, self.widths))}"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module, by He et al.'s normal as the whole network."""
        from kdbench.networks._resnet_module import ResNetModule

        return ResNetModule(input_shape, self.widths, [self.blocks] * len(self.widths), num_classes)

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula, projections included."""
        return residual_cost(input_shape, self.widths, [self.blocks] * len(self.widths), num_classes)


class SeparableResNet(CifarResNet, frozen=True, kw_only=True):
    """A CIFAR ResNet whose blocks have depthwise-separable convolutions; stem, projections and FC are full ones.

    A 3x3 convolution of a block is a depthwise 3x3 (which has the stride), batch norm, ReLU, and a pointwise 1x1.
    """

    @property
    def name(self) -> str:
        """``resnet20-separable``."""
        return f"resnet{self.depth}-separable"

    @property
    def filters(self) -> tuple[int, int, int]:
        """Filters of the three stages."""
        return WIDTHS

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module, by He et al.'s normal as the full network."""
        from kdbench_orthogonality._modules import separable_resnet

        return separable_resnet(super().build(input_shape, num_classes))

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula."""
        channels, height, width = self.filters[0], *input_shape[1:]
        kernel = counting.spatial(3, height)
        costs = [super().cost(input_shape, num_classes)]
        for filters in self.filters:
            if filters != channels:
                height, width = -(-height // 2), -(-width // 2)
            for _ in range(self.blocks):
                costs += [_saved(inputs, filters, kernel, height * width, bias=False) for inputs in (channels, filters)]
                channels = filters
        return counting.total(costs)


class SlimSeparableResNet(SeparableResNet, SlimResNet, frozen=True, kw_only=True):
    """A CIFAR ResNet of separable convolutions with other filters in its three stages, ``widths``."""

    @property
    def name(self) -> str:
        """``resnet20-slim10.21.42-separable``."""
        return f"{SlimResNet(depth=self.depth, widths=self.widths).name}-separable"

    @property
    def filters(self) -> tuple[int, int, int]:
        """Filters of the three stages."""
        return self.widths


def _saved(inputs: int, outputs: int, kernel: tuple[int, int], positions: int, *, bias: bool) -> Cost:
    """What a separable convolution costs more than the full one in whose place it stands: less than nothing, mostly."""
    depthwise = inputs * kernel[0] * kernel[1]
    cheap = counting.total(
        [
            Cost(parameters=depthwise, macs=depthwise * positions),
            counting.batch_norm(inputs),
            counting.conv(inputs, outputs, (1, 1), positions, bias=bias),
        ]
    )
    full = counting.conv(inputs, outputs, kernel, positions, bias=bias)
    return Cost(parameters=cheap.parameters - full.parameters, macs=cheap.macs - full.macs)

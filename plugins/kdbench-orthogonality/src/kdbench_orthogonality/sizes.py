"""Bytes of networks by formula, before anything is trained: what lets stacks of techniques be compared at equal bytes.

They are the bytes that finished stages measure, of networks in single precision
(:func:`kdbench.training.model.sizes_of`) and as int8 programs (:class:`kdbench_orthogonality.techniques.Int8`).
"""

from __future__ import annotations

from kdbench.data.base import DataRef
from kdbench.networks import CifarResNet, Network, Plain
from kdbench.networks.resnet import WIDTHS
from kdbench_orthogonality.networks import (
    SeparablePlain,
    SeparableResNet,
    SlimPlain,
    SlimResNet,
    SlimSeparablePlain,
    SlimSeparableResNet,
)

__all__ = ["int8_bytes", "single_bytes", "without_filters"]


def single_bytes(network: Network, data: DataRef) -> int:
    """Bytes of parameters and buffers in single precision.

    A batch norm has a mean and a variance for every channel, and a counter of 8 bytes.
    """
    norms = _batch_norms(network, data)
    return 4 * network.cost(data.input_shape, data.num_classes).parameters + 8 * sum(norms) + 8 * len(norms)


def int8_bytes(network: Network, data: DataRef) -> int:
    """Bytes of the int8 program: one for a weight; for a channel or unit, a bias and a scale in single precision.

    Batch norms are folded into the convolutions, one into each, which all have a bias for that.
    """
    norms = sum(_batch_norms(network, data))
    units = sum(_units(network, data))
    biases = units + (sum(_filters(network, data)) if isinstance(network, Plain) else 0)
    weights = network.cost(data.input_shape, data.num_classes).parameters - 2 * norms - biases
    return weights + 8 * (norms + units)


def without_filters(network: Network, data: DataRef, ratio: float) -> Network:
    """What structured pruning by ``ratio`` leaves: of ``n`` filters the whole part of ``(1 - ratio) n``."""
    left = [int(filters * (1 - ratio)) for filters in _filters(network, data)]
    if isinstance(network, Plain):
        slim = SlimSeparablePlain if isinstance(network, SeparablePlain) else SlimPlain
        return slim(size=network.size, width=network.width, channels=tuple(left))
    assert isinstance(network, CifarResNet)
    slim_resnet = SlimSeparableResNet if isinstance(network, SeparableResNet) else SlimResNet
    return slim_resnet(depth=network.depth, widths=(left[0], left[1], left[2]))


def _filters(network: Network, data: DataRef) -> list[int]:
    """Filters of each convolution of a plain network (the depthwise ones apart), of each stage of a ResNet."""
    if isinstance(network, CifarResNet):
        return list(network.widths if isinstance(network, SlimResNet) else WIDTHS)
    assert isinstance(network, Plain)
    return [layer.outputs for layer in network.layers(data.input_shape, data.num_classes) if layer.kind == "conv"]


def _batch_norms(network: Network, data: DataRef) -> list[int]:
    """Channels of each batch norm; there is one behind every convolution."""
    filters = _filters(network, data)
    if not isinstance(network, CifarResNet):
        return filters + (filters[:-1] if isinstance(network, SeparablePlain) else [])
    norms, channels = filters[:1], filters[0]
    for width in filters:
        if width != channels:  # the projection
            norms.append(width)
        for _ in range(network.blocks):
            norms += [width, width]
            norms += [channels, width] if isinstance(network, SeparableResNet) else []
            channels = width
    return norms


def _units(network: Network, data: DataRef) -> list[int]:
    """Outputs of each fully connected layer."""
    if not isinstance(network, Plain):
        return [data.num_classes]
    layers = network.layers(data.input_shape, data.num_classes)
    return [layer.outputs for layer in layers if layer.kind in ("hidden", "logits")]

"""Shared networks, by name. Describing them imports no torch; ``build`` does."""

from __future__ import annotations

from kdbench import errors
from kdbench.networks.base import Cost, Network
from kdbench.networks.basic_resnet import BASIC_RESNET_DEPTHS, BasicResNet
from kdbench.networks.densenet import DenseNet
from kdbench.networks.plain import PLAIN_SIZES, Plain
from kdbench.networks.resnet import RESNET_DEPTHS, CifarResNet

__all__ = ["NETWORKS", "BasicResNet", "CifarResNet", "Cost", "DenseNet", "Network", "Plain", "network"]

NETWORKS: dict[str, Network] = {
    description.name: description
    for description in (
        *(Plain(size=size) for size in PLAIN_SIZES),
        *(CifarResNet(depth=depth) for depth in RESNET_DEPTHS),
        *(BasicResNet(depth=depth) for depth in BASIC_RESNET_DEPTHS),
        DenseNet(depth=100, growth=12, reduction=0.5),
    )
}


def network(name: str) -> Network:
    """The shared network of that name, for instance ``plain4`` or ``resnet20``.

    Raises
    ------
    KdbenchError : there is none; the message lists them and suggests the nearest.
    """
    try:
        return NETWORKS[name]
    except KeyError:
        raise errors.unknown("network", name, NETWORKS) from None

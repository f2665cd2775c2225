"""Parameters and multiply-accumulates of single layers, by formula; torch is not needed.

Conventions: a MAC is one multiplication of a weight with an activation, so convolutions and linear layers have them and
biases, batch norm, ReLU and pooling have none. A batch norm has two trainable parameters a channel.
"""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.networks.base import Cost

__all__ = ["batch_norm", "conv", "linear", "spatial", "total"]


def conv(inputs: int, outputs: int, kernel: tuple[int, int], positions: int, *, bias: bool) -> Cost:
    """A convolution evaluated at ``positions`` output pixels."""
    weights = inputs * outputs * kernel[0] * kernel[1]
    return Cost(parameters=weights + (outputs if bias else 0), macs=weights * positions)


def batch_norm(channels: int) -> Cost:
    """Scale and shift of a batch norm."""
    return Cost(parameters=2 * channels, macs=0)


def linear(inputs: int, outputs: int) -> Cost:
    """A fully connected layer with bias."""
    return Cost(parameters=(inputs + 1) * outputs, macs=inputs * outputs)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum over layers."""
    costs = list(costs)
    return Cost(parameters=sum(c.parameters for c in costs), macs=sum(c.macs for c in costs))


def spatial(size: int, height: int) -> tuple[int, int]:
    """``(size, size)`` over images; ``(1, size)`` over signals, which are inputs of height 1."""
    return (1 if height == 1 else size, size)

from math import prod

from kdbench.networks.base import Cost, Network


class Small(Network, frozen=True):
    """One hidden layer of 16 units with batch norm."""

    @property
    def name(self):
        return "healthy-small"

    def build(self, input_shape, num_classes):
        from torch import nn

        return nn.Sequential(
            nn.Flatten(), nn.Linear(prod(input_shape), 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes)
        )

    def cost(self, input_shape, num_classes):
        size = prod(input_shape)
        return Cost(parameters=(size + 1) * 16 + 32 + 17 * num_classes, macs=16 * (size + num_classes))

"""Small networks as techniques meet them, and a few steps of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.data import DATASETS
from kdbench.networks import Network, Plain
from kdbench.training.model import Normalised, build_model
from kdbench_orthogonality import _pruning
from kdbench_orthogonality.techniques import available

SIGNALS, IMAGES = DATASETS["mnist1d"].expected(), DATASETS["cifar10"].expected()
SMALL = Plain(size=4, width=0.5)

needs_extra = pytest.mark.skipif(
    not available(), reason="torch-pruning and torchao are missing: install kdbench-orthogonality[techniques]"
)


def inputs_of(data: Any, count: int = 64) -> Tensor:
    return torch.randn(count, *data.input_shape, generator=torch.Generator().manual_seed(1))


def model_of(network: Network, data: Any = SIGNALS) -> Normalised:
    """A network with batch norms as a trained one has them, each number its own."""
    torch.manual_seed(0)
    model = build_model(network, data, [0.1] * data.input_shape[0], [0.9] * data.input_shape[0])
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.normal_(layer.weight, mean=1.0, std=0.3)
            nn.init.normal_(layer.bias, std=0.3)
    return model.eval()


def all_weights(net: nn.Module) -> Tensor:
    """Every weight of convolutions and fully connected layers, in order."""
    return torch.cat([layer.weight.detach().reshape(-1) for layer in _pruning.weighted(net).values()])


def train(model: nn.Module, inputs: Tensor, steps: int = 5, **how: float) -> list[float]:
    """A few steps of the kind the loop takes; the loss of each."""
    labels = torch.arange(len(inputs)) % 10
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, fused=True, **{"lr": 0.05, **how})
    model.train()
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

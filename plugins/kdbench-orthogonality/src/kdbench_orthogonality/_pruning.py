"""Pruning by torch and torch-pruning, and what goes with it: masks that stay, and batch norms that fit what is left."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn

from kdbench.errors import StageError
from kdbench.networks import CifarResNet, Plain
from kdbench.networks.base import Network
from kdbench.quiet import quiet
from kdbench.training.model import Normalised
from kdbench_orthogonality.networks import (
    SeparablePlain,
    SeparableResNet,
    SlimPlain,
    SlimResNet,
    SlimSeparablePlain,
    SlimSeparableResNet,
)

__all__ = [
    "cut_filters",
    "estimate_statistics",
    "filters",
    "hold_zeros",
    "make_permanent",
    "mask_least",
    "sparsity",
    "weighted",
    "zeros",
]

DESCRIBED = (
    *(Plain, SlimPlain, SeparablePlain, SlimSeparablePlain),
    *(CifarResNet, SlimResNet, SeparableResNet, SlimSeparableResNet),
)
"""Networks of which what is left after structured pruning has a description too."""

BATCH = 500
"""Inputs a forward pass where no gradient is taken."""


def weighted(net: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and fully connected layers by name: those that have weights to prune or to quantise."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


def mask_least(net: nn.Module, amount: float) -> None:
    """Mask the share ``amount`` of all weights that is least in magnitude, and clear what lies under the masks."""
    layers = list(weighted(net).values())
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch ranks weights as flat views
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=amount
    )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for layer in layers:
            layer.get_parameter("weight_orig").mul_(layer.get_buffer("weight_mask"))


def make_permanent(net: nn.Module) -> None:
    """Put the masked weights in the place of weights and masks."""
    for layer in weighted(net).values():
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]


def sparsity(net: nn.Module) -> float:
    """Share of all weights that is zero."""
    found = [layer.weight for layer in weighted(net).values()]
    return 1 - sum(int(weight.count_nonzero()) for weight in found) / sum(weight.numel() for weight in found)


def zeros(net: nn.Module) -> dict[str, Tensor]:
    """Which weights are zero, by the layer's name: bool tensors of the weights' shapes."""
    return {name: layer.weight == 0 for name, layer in weighted(net).items()}


def hold_zeros(net: nn.Module, masks: dict[str, Tensor]) -> None:
    """Let weights that were pruned before stay zero in training: their gradient is zero, and so is their decay.

    Parameters
    ----------
    masks : what :func:`zeros` said of the network when it was pruned. Layers may be masked, parametrised or exported
        meanwhile, as long as names and shapes are the same.
    """
    for name, parameter in net.named_parameters():
        layer = (
            name.removeprefix("program.").removesuffix("_orig").replace(".parametrizations.weight.original", ".weight")
        )
        pruned = masks.get(layer.removesuffix(".weight")) if layer.endswith(".weight") else None
        if pruned is not None:
            hook = partial(_clear, pruned=pruned.to(parameter.device))
            parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def _clear(gradient: Tensor, pruned: Tensor) -> Tensor:
    return gradient.masked_fill(pruned, 0.0)


def estimate_statistics(model: Normalised, inputs: Tensor) -> None:
    """Mean and variance of every batch norm over the training inputs, as the network is now."""
    update_bn(torch.split(inputs, BATCH), model)


def cut_filters(model: Normalised, network: Network, inputs: Tensor, ratio: float, norm: int) -> Network:
    """Cut the share ``ratio`` of the filters out of every convolution; put what is left, built anew, into ``model``.

    Raises
    ------
    StageError : there is no description of what would be left.
    """
    with quiet():
        import torch_pruning

    if type(network) not in DESCRIBED:
        raise StageError(
            f"what structured pruning leaves of {network.name} has no description to rebuild it from",
            cure="prune a plain network or a CIFAR ResNet, of full or of separable convolutions",
        )
    net = model.net
    example = inner_inputs(model, inputs[:1])
    with quiet():
        pruner = torch_pruning.pruner.MagnitudePruner(
            net,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=norm),
            pruning_ratio=ratio,
            ignored_layers=[layer for layer in net.modules() if isinstance(layer, nn.Linear)],
        )
        pruner.step()
    slim = _description(network, filters(net))
    built = slim.build((example.shape[1], example.shape[2], example.shape[3]), _classes(net))
    built.to(device=example.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    built.load_state_dict(net.state_dict())
    model.net = built.train(net.training)
    return slim


def filters(net: nn.Module) -> list[int]:
    """Filters of each convolution, in order."""
    return [layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)]


def inner_inputs(model: Normalised, inputs: Tensor) -> Tensor:
    """What the network in ``model`` sees of raw ``inputs``: normalised, in single precision."""
    outside = Normalised(nn.Identity(), model.mean, model.std, model.size)
    return outside(inputs).contiguous(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _description(network: Network, left: Iterable[int]) -> Network:
    left = tuple(left)
    if isinstance(network, SeparablePlain):  # a full convolution, then depthwise and pointwise ones in turn
        return SlimSeparablePlain(size=network.size, width=network.width, channels=(left[0], *left[2::2]))
    if isinstance(network, Plain):
        return SlimPlain(size=network.size, width=network.width, channels=left)
    assert isinstance(network, CifarResNet)
    first, middle, last = sorted(set(left))
    slim = SlimSeparableResNet if isinstance(network, SeparableResNet) else SlimResNet
    return slim(depth=network.depth, widths=(first, middle, last))


def _classes(net: nn.Module) -> int:
    return [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)][-1]

"""Networks: they fit the data, they are as large as they say and as published, and a seed fixes their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.networks.base import Network
from kdbench.paper import ParameterCount
from kdbench.plugins import registry
from kdbench.testing.checks.subject import Subject, one_thread

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["counts", "misfits", "networks", "refusal", "uncounted"]

Shape = tuple[int, int, int]


def networks(subject: Subject) -> list[str]:
    """Every network of the smoke plan on its data, and every one that the plugin publishes on what it is for.

    That is the first data set of those known whose inputs it takes, smoke tier's before all, and then the paper's. One
    that another paper of the plugin trains is left to the tests of that paper.
    """
    smoke = subject.data
    findings: list[str] = []
    for network in subject.planned_networks():
        findings += misfits(network, smoke.input_shape, smoke.num_classes)
    elsewhere = [network for sibling in subject.siblings() for network in sibling.planned_networks()]
    for network in subject.published_networks():
        if network not in [*subject.planned_networks(), *elsewhere]:
            shape = next((each for each in subject.shapes() if not refusal(network, *each)), subject.shapes()[0])
            findings += misfits(network, *shape)
    return findings


def refusal(network: Network, input_shape: Shape, num_classes: int) -> str:
    """What the network raises on inputs of that shape; empty where it takes them."""
    asked = "build()"
    try:
        module = _build(network, input_shape, num_classes)
        asked = "its module"
        _logits(module, input_shape)
        asked = "cost()"
        network.cost(input_shape, num_classes)
    except Exception as error:
        return f"{asked} raises {type(error).__name__}: {error}"
    return ""


def misfits(network: Network, input_shape: Shape, num_classes: int) -> list[str]:
    """What is wrong with one network on one shape of inputs."""
    import torch

    where = f"network '{network.name}'"
    if refused := refusal(network, input_shape, num_classes):
        return [f"{where} does not take inputs of shape {input_shape}: {refused}"]
    module, cost = _build(network, input_shape, num_classes), network.cost(input_shape, num_classes)
    logits = _logits(module, input_shape)
    findings: list[str] = []
    if logits.shape != (2, num_classes):
        given = logits.shape[-1] if logits.dim() == 2 and len(logits) == 2 else f"{list(logits.shape)} for 2 inputs, as"
        findings.append(
            f"{where} gives {given} outputs for {num_classes} classes; build() must use its num_classes argument"
        )
    trainable = _trainable(module)
    if cost.parameters != trainable:
        findings.append(
            f"{where} says that it has {cost.parameters:,} trainable parameters for inputs of shape {input_shape}, "
            f"built it has {trainable:,}; correct cost() or build()"
        )
    again = _build(network, input_shape, num_classes).state_dict()
    for name, value in module.state_dict().items():
        if name not in again or not torch.equal(value, again[name]):
            findings.append(
                f"{where} is unseeded: built twice under one seed, '{name}' differs; draw from torch's global generator"
            )
            break
    return findings


def counts(subject: Subject) -> list[str]:
    """The networks have the numbers of parameters that the facts give as published."""
    known = {**registry().networks, **{network.name: network for network in subject.planned_networks()}}
    return [text for count in subject.paper.parameter_counts for text in uncounted(count, known)]


def uncounted(count: ParameterCount, known: dict[str, Network]) -> list[str]:
    """What is wrong with one published count."""
    where = f"parameter count of '{count.network}' on '{count.dataset}'"
    if count.network not in known:
        return [f"{where}: no network of that name is published or planned; known: {', '.join(sorted(known))}"]
    try:
        data = registry().dataset(count.dataset)
        module = _build(known[count.network], data.input_shape, data.num_classes)
    except Exception as error:  # of the network, or because nobody publishes that data set
        return [f"{where}: {error}"]
    trainable = _trainable(module)
    if trainable == count.parameters:
        return []
    return [
        f"network '{count.network}' has {trainable:,} trainable parameters on '{count.dataset}', published are "
        f"{count.parameters:,} ({count.source}): {trainable - count.parameters:+,}; it is another network"
    ]


def _build(network: Network, input_shape: Shape, num_classes: int) -> nn.Module:
    """Built as a stage builds it: from torch's global generator, whose state is put back."""
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return network.build(input_shape, num_classes)


def _logits(module: nn.Module, input_shape: Shape) -> Tensor:
    import torch

    with torch.no_grad(), one_thread():
        logits: Tensor = module.eval()(torch.zeros(2, *input_shape))
    return logits


def _trainable(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters() if each.requires_grad)

"""Stacks of techniques: separable networks without filters, bytes by formula against bytes measured, equal bytes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from orth_models import IMAGES, SIGNALS, inputs_of, model_of, needs_extra
from torch import nn

from kdbench.component import pack, unpack
from kdbench.data import DATASETS
from kdbench.data.base import DataRef
from kdbench.networks import CifarResNet, Network, Plain
from kdbench.training.model import build_model, sizes_of
from kdbench_orthogonality import _int8, _pruning
from kdbench_orthogonality.networks import (
    SeparablePlain,
    SeparableResNet,
    SlimPlain,
    SlimResNet,
    SlimSeparablePlain,
    SlimSeparableResNet,
)
from kdbench_orthogonality.recipes import FILTERS_PRUNED, STACKS, stack_bytes, stacked
from kdbench_orthogonality.sizes import int8_bytes, single_bytes, without_filters
from kdbench_orthogonality.techniques import Int8, Structured

HUNDRED = DATASETS["cifar100"].expected()
PLACES = [
    ("smoke", "mnist1d-pool"),
    ("laptop", "mnist1d-pool"),
    *product(("laptop", "full"), ("cifar10", "cifar100")),
]

WHOLE: list[tuple[Network, DataRef]] = [
    (Plain(size=4, width=0.5), SIGNALS),
    (Plain(size=8, width=0.25), IMAGES),
    (SeparablePlain(size=2), SIGNALS),
    (SeparablePlain(size=4, width=1.5), HUNDRED),
    (SeparablePlain(size=8, width=0.25), IMAGES),
    (CifarResNet(depth=8), IMAGES),
    (SeparableResNet(depth=8), HUNDRED),
]


def named(value: Any) -> str | None:
    return value.name if isinstance(value, Network) else getattr(value, "dataset", None)


# ------------------------------------------------------------------------------------------- separable, without filters


@needs_extra
@pytest.mark.parametrize(
    ("network", "left"),
    [
        (SeparablePlain(size=2, width=0.5), SlimSeparablePlain(size=2, width=0.5, channels=(5, 5))),
        (SeparablePlain(size=4), SlimSeparablePlain(size=4, channels=(10, 10, 21, 21))),
        (SeparableResNet(depth=8), SlimSeparableResNet(depth=8, widths=(10, 21, 42))),
    ],
    ids=named,
)
def test_a_third_of_the_filters_of_a_separable_network_goes(network: Network, left: Network) -> None:
    data = IMAGES if isinstance(network, CifarResNet) else SIGNALS
    model, inputs = model_of(network, data), inputs_of(data, 8)
    slim = _pruning.cut_filters(model, network, inputs, FILTERS_PRUNED, 2)
    assert slim == left == unpack(pack(left))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert slim.cost(data.input_shape, 10).parameters == counted < network.cost(data.input_shape, 10).parameters
    for layer in model.net.modules():  # depthwise stays depthwise
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            assert layer.groups == layer.in_channels == layer.out_channels


@needs_extra
@pytest.mark.parametrize("network", [SeparablePlain(size=4, width=0.5), SeparableResNet(depth=8)], ids=named)
def test_what_is_left_of_it_is_built_anew_bit_for_bit(network: Network) -> None:
    model, inputs = model_of(network, IMAGES), inputs_of(IMAGES)
    slim = Structured(ratio=FILTERS_PRUNED).apply(model, network, inputs)
    model.eval()
    torch.manual_seed(1)
    rebuilt = build_model(unpack(pack(slim)), IMAGES, model.mean, model.std)
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(inputs), model(inputs))


@needs_extra
@pytest.mark.parametrize("network", [SeparablePlain(size=4), SeparableResNet(depth=8)], ids=named)
def test_a_cut_separable_network_is_the_whole_one_with_the_cut_filters_silent(network: Network) -> None:
    whole, model, inputs = model_of(network, IMAGES), model_of(network, IMAGES), inputs_of(IMAGES, 8)
    _pruning.cut_filters(model, network, inputs, FILTERS_PRUNED, 2)
    for name, norm in whole.net.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            left = model.net.get_submodule(name).weight
            here = (norm.weight[:, None] == left[None]).any(1)
            assert here.sum() == len(left) < len(here)
            with torch.no_grad():
                norm.weight[~here], norm.bias[~here] = 0.0, 0.0
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), whole(inputs), rtol=1e-4, atol=1e-4)


@needs_extra
@pytest.mark.parametrize("filters", [2, 3, 5, 6, 9, 12, 18, 31])
def test_as_many_filters_are_left_as_the_formula_says(filters: int) -> None:
    for network in (SeparablePlain(size=2, width=filters / 16), Plain(size=2, width=filters / 16)):
        slim = _pruning.cut_filters(model_of(network), network, inputs_of(SIGNALS, 2), FILTERS_PRUNED, 2)
        assert slim == without_filters(network, SIGNALS, FILTERS_PRUNED)


def test_cutting_by_formula_gives_slim_networks_of_each_kind() -> None:
    assert without_filters(Plain(size=2), SIGNALS, 0.5) == SlimPlain(size=2, channels=(8, 8))
    assert without_filters(SeparablePlain(size=2), SIGNALS, 0.5) == SlimSeparablePlain(size=2, channels=(8, 8))
    assert without_filters(CifarResNet(depth=8), IMAGES, 0.5) == SlimResNet(depth=8, widths=(8, 16, 32))
    slim = SlimSeparableResNet(depth=8, widths=(8, 16, 32))
    assert without_filters(SeparableResNet(depth=8), IMAGES, 0.5) == slim
    assert without_filters(slim, IMAGES, 0.5) == SlimSeparableResNet(depth=8, widths=(4, 8, 16))


# ---------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(("network", "data"), WHOLE, ids=named)
def test_bytes_in_single_precision_by_formula_are_those_measured(network: Network, data: DataRef) -> None:
    for each in (network, without_filters(network, data, FILTERS_PRUNED)):
        model = build_model(each, data, [0.0] * data.input_shape[0], [1.0] * data.input_shape[0])
        assert single_bytes(each, data) == sizes_of(model, each, data)["bytes"]


@needs_extra
@pytest.mark.parametrize(("network", "data"), WHOLE, ids=named)
def test_bytes_at_8_bits_by_formula_are_those_measured(network: Network, data: DataRef) -> None:
    slim = without_filters(network, data, FILTERS_PRUNED)
    model, inputs = model_of(slim, data), inputs_of(data, 16)
    technique = Int8(training=False)
    technique.apply(model, slim, inputs)
    technique.finish(model, inputs)
    found = _int8.counts(model.net)
    assert found["quantised convolutions"] == found["convolutions"]
    assert int8_bytes(slim, data) == technique.sizes(model, slim, data)["bytes"]


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_pairs_come_near_the_bytes_of_three(tier: str, dataset: str) -> None:
    data = DATASETS[dataset].expected()
    networks = stacked(tier, data)
    assert list(networks) == list(STACKS) == ["triple", "separable+prune", "separable+int8", "prune+int8"]
    found = {name: stack_bytes(name, network, data) for name, network in networks.items()}
    for name, size in found.items():
        assert abs(size / found["triple"] - 1) <= 0.04, (name, found)  # as the note of H7 says
        separable = isinstance(networks[name], (SeparablePlain, SeparableResNet))
        assert separable == ("separable" in STACKS[name])


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_two_techniques_begin_narrower_than_three(tier: str, dataset: str) -> None:
    data = DATASETS[dataset].expected()
    networks = stacked(tier, data)
    triple = networks.pop("triple").cost(data.input_shape, data.num_classes)
    separable = [networks[name] for name in networks if "separable" in STACKS[name]]
    assert all(network.cost(data.input_shape, data.num_classes).macs < triple.macs for network in separable)
    without = stack_bytes("prune+int8", _full(tier), data)
    assert stack_bytes("prune+int8", networks["prune+int8"], data) < without


def _full(tier: str) -> Network:
    """The network of the stack of three with full convolutions."""
    return CifarResNet(depth=20) if tier == "full" else Plain(size=4, width=1.5)


def test_no_width_of_the_grid_of_factors_is_nearer() -> None:
    data = DATASETS["mnist1d-pool"].expected()
    networks = stacked("laptop", data)
    target = stack_bytes("triple", networks["triple"], data)
    for name, make in [("separable+prune", SeparablePlain), ("separable+int8", SeparablePlain), ("prune+int8", Plain)]:
        gaps = [abs(stack_bytes(name, make(size=4, width=k / 64), data) - target) for k in range(12, 97)]
        assert abs(stack_bytes(name, networks[name], data) - target) == min(gaps)

"""Techniques on small networks: what pruning and quantisation do to every weight, against the same by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from orth_models import IMAGES, SIGNALS, SMALL, all_weights, inputs_of, model_of, needs_extra, train
from torch import nn

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError, StageError
from kdbench.networks import CifarResNet, Network, Plain
from kdbench.training.model import Normalised, sizes_of
from kdbench_orthogonality import _fake, _pruning, techniques
from kdbench_orthogonality.networks import DropoutPlain, SlimPlain, SlimResNet
from kdbench_orthogonality.techniques import FakeQuantise, Int8, Prune, Structured, Technique, Untouched, available


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a stage runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Pruning by magnitude


@pytest.mark.parametrize("amount", [0.3, 0.5, 0.7, 0.8])
def test_exactly_the_least_weights_are_pruned(amount: float) -> None:
    model = model_of(SMALL)
    before = all_weights(model.net)
    count = round(amount * before.numel())
    kept = before.abs().topk(before.numel() - count).indices
    by_hand = torch.zeros_like(before)
    by_hand[kept] = before[kept]
    technique = Prune(amount=amount)
    assert technique.apply(model, SMALL, inputs_of(SIGNALS)) == SMALL
    technique.finish(model, inputs_of(SIGNALS))
    assert torch.equal(all_weights(model.net), by_hand)
    assert technique.findings(model)["sparsity"] == pytest.approx(count / before.numel(), abs=1e-12)
    assert abs(technique.findings(model)["sparsity"] - amount) <= 0.5 / before.numel()
    sizes = technique.sizes(model, SMALL, SIGNALS)
    whole = sizes_of(model_of(SMALL), SMALL, SIGNALS)
    assert sizes["nonzero_parameters"] == whole["nonzero_parameters"] - count
    assert {**sizes, "nonzero_parameters": 0} == {**whole, "nonzero_parameters": 0}  # stored densely
    assert model.net.state_dict().keys() == SMALL.build(SIGNALS.input_shape, 10).state_dict().keys()


def test_pruned_weights_stay_zero_under_decay_and_momentum() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    Prune(amount=0.8).apply(model, SMALL, inputs)
    layers = list(_pruning.weighted(model.net).values())
    masks = [layer.get_buffer("weight_mask").clone() for layer in layers]
    before = [layer.get_parameter("weight_orig").detach().clone() for layer in layers]
    train(model, inputs, steps=10, weight_decay=0.1)
    for layer, mask, start in zip(layers, masks, before, strict=True):
        under = layer.get_parameter("weight_orig").detach()
        assert torch.equal(layer.get_buffer("weight_mask"), mask)
        assert not under[mask == 0].any(), "what lies under a mask moved"
        assert (under != start)[mask == 1].all(), "what is kept is trained"
    Prune(amount=0.8).finish(model, inputs)
    found = torch.cat([layer.weight.reshape(-1) for layer in layers])
    assert torch.equal(found != 0, torch.cat([mask.reshape(-1) for mask in masks]) == 1)


@pytest.mark.parametrize("after", [Untouched(), FakeQuantise(bits=4)], ids=lambda technique: technique.label)
def test_what_was_pruned_before_stays_zero_whatever_comes_after(after: Technique) -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    first = Prune(amount=0.5)
    first.apply(model, SMALL, inputs)
    first.finish(model, inputs)
    zeros = _pruning.zeros(model.net)
    after.apply(model, SMALL, inputs)
    _pruning.hold_zeros(model.net, zeros)
    before = all_weights(model.net)
    train(model, inputs, weight_decay=0.1)
    after.finish(model, inputs)
    assert not torch.equal(all_weights(model.net), before)
    for name, layer in _pruning.weighted(model.net).items():
        assert zeros[name].any()
        assert not layer.weight[zeros[name]].any()


def test_zeros_are_not_held_without_asking() -> None:
    # What the test above shows is the work of hold_zeros: by itself a zero moves with the first step.
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    Prune(amount=0.5).apply(model, SMALL, inputs)
    Prune(amount=0.5).finish(model, inputs)
    zeros = _pruning.zeros(model.net)
    train(model, inputs)
    assert any(layer.weight[zeros[name]].any() for name, layer in _pruning.weighted(model.net).items())


@pytest.mark.parametrize("technique", [Prune(amount=0.5), FakeQuantise(bits=3)], ids=lambda each: each.label)
def test_statistics_of_batch_norms_are_estimated_anew(technique: Technique) -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS, 96)
    technique.apply(model, SMALL, inputs)
    assert not model.training
    convolution, norm = model.net.get_submodule("features.0"), model.net.get_submodule("features.1")
    with torch.no_grad():
        made = convolution((inputs - 0.1) / 0.9)
    torch.testing.assert_close(norm.running_mean, made.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, made.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_the_control_changes_nothing() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Untouched().apply(model, SMALL, inputs) == SMALL
    Untouched().finish(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert Untouched().sizes(model, SMALL, SIGNALS) == sizes_of(model, SMALL, SIGNALS)


# Pruning of filters


def silenced(model: Normalised, slim: nn.Module) -> list[int]:
    """Make the filters that ``slim`` lacks give zero in ``model``; how many each batch norm kept."""
    kept = []
    for name, norm in model.net.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            left = slim.get_submodule(name).weight
            here = (norm.weight[:, None] == left[None]).any(1)
            assert here.sum() == len(left), "a filter's batch norm goes with it, unchanged"
            kept.append(len(left))
            with torch.no_grad():
                norm.weight[~here], norm.bias[~here] = 0.0, 0.0
    return kept


@needs_extra
@pytest.mark.parametrize(
    ("network", "data"),
    [(SMALL, SIGNALS), (Plain(size=2), IMAGES), (Plain(size=8, width=0.5), IMAGES), (CifarResNet(depth=8), IMAGES)],
    ids=["signals", "flattened", "hidden", "resnet"],
)
def test_a_cut_network_is_the_whole_one_with_the_cut_filters_silent(network: Network, data: Any) -> None:
    whole, model, inputs = model_of(network, data), model_of(network, data), inputs_of(data, 8)
    slim = _pruning.cut_filters(model, network, inputs, 1 / 3, 2)
    kept = silenced(whole, model.net)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), whole(inputs), rtol=1e-4, atol=1e-4)
    assert isinstance(slim, (SlimPlain, SlimResNet))
    assert kept == [norm.num_features for norm in model.net.modules() if isinstance(norm, nn.BatchNorm2d)]
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert slim.cost(data.input_shape, 10).parameters == counted < network.cost(data.input_shape, 10).parameters
    assert unpack(pack(slim)) == slim


@needs_extra
def test_a_third_of_every_convolutions_filters_goes() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    slim = Structured(ratio=1 / 3).apply(model, SMALL, inputs)
    assert isinstance(slim, SlimPlain)
    assert slim.channels == (5, 5, 10, 10)  # of 8, 8, 16, 16: whole filters, never more than a third and one
    assert Structured(ratio=1 / 3).findings(model) == {"filters": [5, 5, 10, 10]}
    sizes = Structured(ratio=1 / 3).sizes(model, slim, SIGNALS)
    cost = slim.cost(SIGNALS.input_shape, 10)
    assert (sizes["parameters"], sizes["macs"]) == (cost.parameters, cost.macs)
    assert all(layer.weight.requires_grad for layer in _pruning.weighted(model.net).values())
    before = all_weights(model.net)
    train(model, inputs)
    assert not torch.equal(all_weights(model.net), before)


@needs_extra
def test_cutting_twice_keeps_the_head() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    once = Structured(ratio=0.25).apply(model, SMALL, inputs)
    twice = Structured(ratio=0.5, norm=1).apply(model, once, inputs)
    assert isinstance(twice, SlimPlain)
    assert twice.channels == (3, 3, 6, 6)
    assert model(inputs).shape == (64, 10)


@needs_extra
def test_a_network_without_a_slim_description_is_refused() -> None:
    network = DropoutPlain(size=4, rate=0.1)
    with pytest.raises(StageError, match=r"structured pruning leaves of .* has no description"):
        Structured(ratio=0.5).apply(model_of(network), network, inputs_of(SIGNALS))


# Weights of few bits


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_lie_on_a_symmetric_grid_a_channel(bits: int) -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    before = [layer.weight.detach().clone() for layer in _pruning.weighted(model.net).values()]
    technique = FakeQuantise(bits=bits)
    technique.apply(model, SMALL, inputs)
    technique.finish(model, inputs)
    most = 2 ** (bits - 1) - 1
    for weight, layer in zip(before, _pruning.weighted(model.net).values(), strict=True):
        assert isinstance(layer.weight, nn.Parameter)
        for whole, rounded in zip(weight, layer.weight.detach(), strict=True):
            scale = whole.abs().max() / most
            levels = (rounded / scale).double()
            torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
            assert levels.abs().max().round() == most, "the largest weight is the largest level"
            assert len(levels.round().unique()) <= min(2**bits - 1, whole.numel())
            assert (whole - rounded).abs().max() <= scale / 2 * 1.0001
    assert technique.findings(model) == {"bits": bits, "levels": 2 * most + 1, "quantised layers": 5}


def test_rounding_again_changes_nothing_and_a_channel_of_zeros_is_one() -> None:
    weight = torch.randn(6, 5, 1, 3)
    weight[2] = 0.0
    rounded = _fake.Rounded(3)
    once = rounded(weight)
    assert torch.equal(rounded(once), once)
    assert not once[2].any()
    assert torch.isfinite(once).all()


def test_the_gradient_passes_straight_through_and_scales_follow_the_weights() -> None:
    weight = torch.randn(4, 9, requires_grad=True)
    _fake.Rounded(2)(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    FakeQuantise(bits=4).apply(model, SMALL, inputs)
    layer = model.net.get_submodule("features.3")
    with torch.no_grad():
        before = layer.weight.clone()
        layer.parametrizations.weight.original.mul_(3.0)
        torch.testing.assert_close(layer.weight, 3.0 * before)


def test_few_bits_train_by_the_weights_under_them() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    FakeQuantise(bits=4).apply(model, SMALL, inputs)
    losses = train(model, inputs, steps=30)
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        trained = model.eval()(inputs)
        FakeQuantise(bits=4).finish(model, inputs)
        assert torch.equal(model(inputs), trained), "what is stored is what was trained"


def test_bytes_of_few_bits_by_hand() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    technique = FakeQuantise(bits=3)
    technique.apply(model, SMALL, inputs)
    technique.finish(model, inputs)
    channels = 8 + 8 + 16 + 16
    weights = 3 * (8 + 8 * 8 + 16 * 8 + 16 * 16) + 160 * 10
    biases, norms = channels + 10, channels * 4 + 4 * 2  # four numbers a channel, and a count (int64) a norm
    found = technique.sizes(model, SMALL, SIGNALS)
    assert found["bytes"] == math.ceil(3 * weights / 8) + 4 * (channels + 10) + 4 * (biases + norms)
    assert found["parameters"] == SMALL.cost(SIGNALS.input_shape, 10).parameters
    assert found["nonzero_parameters"] == sum(int(each.count_nonzero()) for each in model.parameters())


# What a technique needs and says


@pytest.mark.parametrize(
    ("technique", "library"), [(Structured(ratio=0.5), "torch_pruning"), (Int8(training=True), "torchao")]
)
def test_a_missing_library_is_named_with_its_cure(
    technique: Technique, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(techniques, "find_spec", lambda name: None)
    assert not available()
    with pytest.raises(StageError, match=library) as caught:
        technique.check()
    assert caught.value.cure == 'pip install "kdbench-orthogonality[techniques]"'
    for other in (Untouched(), Prune(amount=0.5), FakeQuantise(bits=4)):
        other.check()


def test_labels_tell_techniques_apart_and_all_travel() -> None:
    found: list[Technique] = [
        Untouched(),
        Prune(amount=0.5),
        Prune(amount=0.7),
        Structured(ratio=1 / 3),
        FakeQuantise(bits=4),
        FakeQuantise(bits=2),
        Int8(training=False),
        Int8(training=True),
    ]
    assert len({each.label for each in found}) == len(found)
    assert [unpack(pack(each)) for each in found] == found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(amount=0.0), "share of 0 cannot be pruned"),
        (lambda: Prune(amount=1.0), "share of 1 cannot be pruned"),
        (lambda: Structured(ratio=1.5), r"share of 1\.5 cannot be pruned"),
        (lambda: FakeQuantise(bits=1), "weights of 1 bits"),
        (lambda: Int8(training=False, calibration=0), "0 inputs do not calibrate"),
    ],
)
def test_what_cannot_be_done_says_so(make: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make()

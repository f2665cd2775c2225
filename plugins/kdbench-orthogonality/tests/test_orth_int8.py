"""Eight bits by torchao: convolutions that really are quantised, what is counted, and where ranges come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from orth_models import IMAGES, SIGNALS, SMALL, inputs_of, model_of, needs_extra, train
from torch import Tensor

from kdbench.errors import StageError
from kdbench.networks import CifarResNet, Network, Plain
from kdbench_orthogonality import _int8, _pruning
from kdbench_orthogonality.networks import SeparablePlain
from kdbench_orthogonality.techniques import Int8, Prune

pytestmark = needs_extra


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a stage runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_plain_torchao_leaves_convolutions_as_they_are() -> None:
    net = model_of(Plain(size=8, width=0.5), IMAGES).net
    assert _int8.quantised_by_default(net) == {"convolutions": 0, "linear": 2}
    assert all(type(layer.weight.data) is Tensor for layer in _pruning.weighted(net).values()), "a copy is changed"


@pytest.mark.parametrize(
    ("network", "data", "convolutions"),
    [(SMALL, SIGNALS, 4), (SeparablePlain(size=4, width=0.5), SIGNALS, 7), (CifarResNet(depth=8), IMAGES, 9)],
    ids=["plain", "separable", "resnet"],
)
def test_convolutions_really_are_int8(network: Network, data: Any, convolutions: int) -> None:
    model, inputs = model_of(network, data), inputs_of(data)
    with torch.no_grad():
        whole = model(inputs)
    technique = Int8(training=False, calibration=64)
    assert technique.apply(model, network, inputs) == network
    technique.finish(model, inputs)
    findings = technique.findings(model)
    assert findings["convolutions"] == findings["quantised convolutions"] == convolutions
    with torch.no_grad():
        rounded = model(inputs)
        for count in (1, 7):  # other batches than it was exported with
            torch.testing.assert_close(model(inputs[:count]), rounded[:count], rtol=1e-4, atol=1e-4)
    error = (rounded - whole).norm() / whole.norm()
    assert 0 < error < 0.1
    model.train()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(inputs), rounded)


def test_sizes_are_those_of_the_programs_tensors() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    technique = Int8(training=False)
    technique.finish(model, inputs)
    channels = 8 + 8 + 16 + 16 + 10
    weights = 3 * (8 + 8 * 8 + 16 * 8 + 16 * 16) + 160 * 10
    found = technique.sizes(model, SMALL, SIGNALS)
    assert found["parameters"] == weights + channels
    assert found["bytes"] == weights + 4 * channels + 4 * channels  # int8 weights, biases, scales
    assert found["macs"] == SMALL.cost(SIGNALS.input_shape, 10).macs
    stored = technique.tensors(model)
    assert sum(each.numel() for each in stored.values() if each.dtype == torch.int8) == weights
    assert not any(each.any() for each in stored.values() if each.dtype == torch.int64), "zero points of the weights"


def test_the_first_inputs_calibrate_and_no_others() -> None:
    def logits(inputs: Tensor, count: int) -> Tensor:
        model = model_of(SMALL)
        Int8(training=False, calibration=count).finish(model, inputs)
        with torch.no_grad():
            return model(inputs_of(SIGNALS, 4))  # type: ignore[no-any-return]

    inputs = inputs_of(SIGNALS, 32)
    other = torch.cat([inputs[:16], 50 * inputs[16:]])
    assert torch.equal(logits(inputs, 16), logits(other, 16))
    assert not torch.equal(logits(inputs, 32), logits(other, 32))
    assert torch.isfinite(logits(inputs, 1)).all()


def test_ranges_rest_while_a_network_is_evaluated() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    assert Int8(training=True).apply(model, SMALL, inputs) == SMALL

    def state() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items() if "activation_post_process" in name}

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one if not name.endswith("observer_enabled"))

    before = state()
    assert before
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(100 * inputs), model(100 * inputs))
    assert same(state(), before), "evaluating a network moved the ranges that it is converted with"
    losses = train(model, inputs, steps=10)
    assert losses[-1] < losses[0]
    assert not same(state(), before)


def test_what_was_pruned_stays_zero_while_it_is_trained_with_eight_bits() -> None:
    model, inputs = model_of(SMALL), inputs_of(SIGNALS)
    Prune(amount=0.5).apply(model, SMALL, inputs)
    Prune(amount=0.5).finish(model, inputs)
    zeros = _pruning.zeros(model.net)
    Int8(training=True).apply(model, SMALL, inputs)
    _pruning.hold_zeros(model.net, zeros)
    before = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    train(model, inputs, weight_decay=0.1)
    found = dict(model.net.named_parameters())
    for name, pruned in zeros.items():
        weight = f"program.{name}.weight"
        assert not found[weight][pruned].any()
        assert not torch.equal(found[weight], before[weight])


def test_a_network_without_quantised_convolutions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    # A quantizer that is told nothing leaves every layer as it is.
    monkeypatch.setattr(X86InductorQuantizer, "set_global", lambda self, config: self)
    model = model_of(SMALL)
    _int8.prepare(model, inputs_of(SIGNALS), training=False)
    with pytest.raises(StageError, match="none of 4 convolutions is quantised"):
        _int8.convert(model)

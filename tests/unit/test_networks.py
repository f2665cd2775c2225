"""Networks against the counts published for them, and against the layers they stand for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from network_counts import counted_macs, parameters
from torch import nn

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError
from kdbench.networks import NETWORKS, CifarResNet, Plain, network

IMAGE = (3, 32, 32)
SIGNAL = (1, 1, 40)

# name: parameters at 10 and at 100 classes, then MMACs at each as printed. Of a ResNet one figure is printed, which
# holds at 10 classes.
PUBLISHED = {
    "plain2": (13_082, 215_172, "1.04", "3.45"),
    "plain4": (37_338, 475_652, "6.36", "24.9"),
    "plain6": (82_778, 1_107_204, "9.89", "39.5"),
    "plain8": (327_962, 1_246_276, "13.5", "52.9"),
    "plain10": (2_487_850, 2_931_460, "71.8", "72.2"),
    "resnet8": (78_042, 83_892, "12.5", None),
    "resnet14": (175_258, 181_108, "26.7", None),
    "resnet20": (272_474, 278_324, "40.8", None),
    "resnet26": (369_690, 375_540, "55.0", None),
    "resnet32": (466_906, 472_756, "69.1", None),
    "resnet44": (661_338, 667_188, "97.4", None),
    "resnet56": (855_770, 861_620, "125.7", None),
    "resnet110": (1_730_714, 1_736_564, "253.1", None),
}
CELLS = [
    pytest.param(name, classes, row[column], row[2 + column], id=f"{name}-{classes}")
    for name, row in PUBLISHED.items()
    for column, classes in enumerate((10, 100))
]


def test_every_named_network_of_these_families_has_a_published_count() -> None:
    assert {name for name, each in NETWORKS.items() if isinstance(each, (Plain, CifarResNet))} == set(PUBLISHED)


@pytest.mark.parametrize(("name", "classes", "count", "mmac"), CELLS)
def test_counts_are_the_published_ones(name: str, classes: int, count: int, mmac: str | None) -> None:
    cost = network(name).cost(IMAGE, classes)
    module = network(name).build(IMAGE, classes)
    assert cost.parameters == count == parameters(module)
    assert cost.macs == counted_macs(module, IMAGE)
    if mmac is None:
        assert cost.macs == network(name).cost(IMAGE, 10).macs + 64 * 90  # the wider FC
    else:
        assert f"{cost.macs / 1e6:.{len(mmac.partition('.')[2])}f}" == mmac


@pytest.mark.parametrize("width", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shape", [SIGNAL, (2, 24, 40)], ids=["signal", "image"])
@pytest.mark.parametrize("size", [2, 6, 8, 10])
def test_plain_cost_is_that_of_the_module_at_any_shape(size: int, shape: tuple[int, int, int], width: float) -> None:
    description = Plain(size=size, width=width)
    module = description.build(shape, 7)
    cost = description.cost(shape, 7)
    assert (cost.parameters, cost.macs) == (parameters(module), counted_macs(module, shape))


@pytest.mark.parametrize("shape", [SIGNAL, (3, 17, 31)], ids=["signal", "odd image"])
def test_resnet_cost_is_that_of_the_module_at_any_shape(shape: tuple[int, int, int]) -> None:
    description = CifarResNet(depth=14)
    module = description.build(shape, 7)
    cost = description.cost(shape, 7)
    assert (cost.parameters, cost.macs) == (parameters(module), counted_macs(module, shape))


def conv1d_twin(module: nn.Module) -> nn.Sequential:
    """The same network written with 1-D layers, holding the same weights."""
    twin: list[nn.Module] = []
    for layer in [*module.features, nn.Flatten(), *module.classifier]:
        if isinstance(layer, nn.Conv2d):
            new: nn.Module = nn.Conv1d(layer.in_channels, layer.out_channels, 3, padding=1)
            new.weight.data, new.bias.data = layer.weight.data.squeeze(2), layer.bias.data
        elif isinstance(layer, nn.BatchNorm2d):
            new = nn.BatchNorm1d(layer.num_features)
            new.load_state_dict(layer.state_dict())
        else:
            new = nn.MaxPool1d(2) if isinstance(layer, nn.MaxPool2d) else layer
        twin.append(new)
    return nn.Sequential(*twin)


@pytest.mark.parametrize("size", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_signal_network_is_the_conv1d_network(size: int, training: bool) -> None:
    torch.manual_seed(size)
    module = Plain(size=size, width=0.5).build(SIGNAL, 10).train(training)
    twin = conv1d_twin(module).train(training)
    signals = torch.randn(16, 1, 40)
    assert parameters(module) == parameters(twin)
    torch.testing.assert_close(module(signals.unsqueeze(2)), twin(signals), rtol=1e-5, atol=1e-5)


def test_cifar100_size_6_lacks_the_last_pool() -> None:
    assert [layer.kind for layer in Plain(size=6).layers(IMAGE, 10)].count("pool") == 3
    assert [layer.kind for layer in Plain(size=6).layers(IMAGE, 100)].count("pool") == 2


def test_resnet_convolutions_start_with_the_papers_deviation() -> None:
    torch.manual_seed(0)
    module = CifarResNet(depth=8).build(IMAGE, 10)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)][-2:]
    for layer, kernel in zip(last, (9, 1), strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / (kernel * 64)) ** 0.5, rel=0.04)


def test_a_seed_decides_the_weights() -> None:
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(nn.utils.parameters_to_vector(network("plain2").build(IMAGE, 10).parameters()))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_width_scales_filters_and_hidden_units_but_keeps_one() -> None:
    half = Plain(size=8, width=0.5).layers(IMAGE, 10)
    assert [layer.outputs for layer in half if layer.kind in ("conv", "hidden")] == [8, 8, 16, 16, 32, 32, 64, 64, 32]
    assert {layer.outputs for layer in Plain(size=2, width=0.001).layers(IMAGE, 10)[:-1]} == {1}
    assert Plain(size=8, width=0.5).name == "plain8-x0.5"


def test_descriptions_survive_json_and_hash_by_value() -> None:
    assert pack(Plain(size=4, width=1)) == pack(NETWORKS["plain4"])
    for description in (Plain(size=4, width=0.5), CifarResNet(depth=20)):
        assert unpack(pack(description)) == description


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(KdbenchError, match=r"unknown network 'plane10'; did you mean 'plain10'\?"):
        network("plane10")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plain(size=3), "no plain network of size 3; sizes: 2, 4, 6, 8, 10"),
        (lambda: Plain(size=4, width=0), "width 0 of plain4-x0"),
        (lambda: CifarResNet(depth=18), "depth 18 does not exist"),
        (lambda: Plain(size=10).build((1, 1, 15), 10), "too small for plain10"),
    ],
    ids=["size", "width", "depth", "input"],
)
def test_impossible_networks_are_refused(make: object, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make()


def test_describing_networks_needs_no_torch() -> None:
    code = (
        "import sys; from kdbench.networks import NETWORKS; "
        "[n.cost((3, 32, 32), 10) for n in NETWORKS.values()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

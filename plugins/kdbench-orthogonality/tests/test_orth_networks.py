"""Cheap, slim and dropping-out networks: sizes by formula against the modules, and weights that move between them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError
from kdbench.networks import CifarResNet, Network, Plain
from kdbench_orthogonality.networks import (
    DropoutPlain,
    SeparablePlain,
    SeparableResNet,
    SlimPlain,
    SlimResNet,
    SlimSeparablePlain,
    SlimSeparableResNet,
)

SIGNAL, IMAGE = (1, 1, 40), (3, 32, 32)
NETWORKS: list[Network] = [
    SeparablePlain(size=2),
    SeparablePlain(size=4, width=0.5),
    SeparablePlain(size=8, width=0.25),
    DropoutPlain(size=4, width=0.5, rate=0.2),
    SlimPlain(size=2, channels=(5, 11)),
    SlimPlain(size=4, width=0.5, channels=(5, 4, 10, 9)),
    SlimResNet(depth=8, widths=(10, 21, 42)),
    SeparableResNet(depth=8),
    SeparableResNet(depth=14),
    SlimSeparablePlain(size=2, channels=(5, 11)),
    SlimSeparablePlain(size=4, width=0.5, channels=(1, 4, 10, 9)),
    SlimSeparableResNet(depth=8, widths=(10, 21, 42)),
    SlimSeparableResNet(depth=14, widths=(7, 14, 29)),
]
DEEP: list[Network] = [
    SeparablePlain(size=8),
    SlimPlain(size=8, channels=(9, 8, 7, 6, 5, 4, 3, 2)),
    SlimSeparablePlain(size=8, channels=(9, 8, 7, 6, 5, 4, 3, 2)),
]


def counted(module: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Trainable parameters, and MACs of the layers that really run: weights of a filter times numbers it gives."""
    macs: list[int] = []
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, _, out: macs.append(out.numel() * layer.weight[0].numel()))
    with torch.no_grad():
        module.eval()(torch.zeros(1, *shape))
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad), sum(macs)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("shape", [SIGNAL, IMAGE], ids=["signal", "image"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_cost_by_formula_is_that_of_the_module(network: Network, shape: tuple[int, int, int], classes: int) -> None:
    cost = network.cost(shape, classes)
    module = network.build(shape, classes)
    assert (cost.parameters, cost.macs) == counted(module, shape)
    assert module(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("network", DEEP, ids=lambda network: network.name)
def test_hidden_layers_are_counted_too(network: Network) -> None:
    cost = network.cost(IMAGE, 10)
    assert (cost.parameters, cost.macs) == counted(network.build(IMAGE, 10), IMAGE)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_network_travels_and_is_built_alike(network: Network) -> None:
    assert unpack(pack(network)) == network

    def built() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return network.build(SIGNAL, 10).state_dict()

    one, other = built(), built()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_names_tell_networks_apart() -> None:
    # The weights at the start are drawn from a network's name, so no two may share one.
    others = [Plain(size=2), Plain(size=4, width=0.5), Plain(size=8), CifarResNet(depth=8), CifarResNet(depth=14)]
    names = [network.name for network in [*NETWORKS, *DEEP, *others]]
    assert len(set(names)) == len(names)
    assert DropoutPlain(size=2, rate=0.1).name != DropoutPlain(size=2, rate=0.2).name


def test_separable_convolutions_by_hand() -> None:
    module = SeparablePlain(size=2).build(SIGNAL, 10)  # 16 and 16 filters, a pool after each, 40 samples
    first, second = module.get_submodule("features.0"), module.get_submodule("features.4")
    assert isinstance(first, nn.Conv2d)
    assert first.groups == 1
    assert [type(layer).__name__ for layer in second.children()] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    depthwise, pointwise = second.get_submodule("0"), second.get_submodule("3")
    assert (depthwise.groups, depthwise.kernel_size, depthwise.bias) == (16, (1, 3), None)
    assert (pointwise.groups, pointwise.kernel_size) == (1, (1, 1))
    cost = SeparablePlain(size=2).cost(SIGNAL, 10)
    norms, head = 3 * 2 * 16, (16 * 10 + 1) * 10
    assert cost.parameters == (3 * 16 + 16) + 16 * 3 + (16 * 16 + 16) + norms + head
    assert cost.macs == 3 * 16 * 40 + 16 * 3 * 20 + 16 * 16 * 20 + 16 * 10 * 10


def test_separable_networks_cost_less_where_there_are_filters_to_save() -> None:
    for cheap, full in ((SeparablePlain(size=4), Plain(size=4)), (SeparableResNet(depth=20), CifarResNet(depth=20))):
        assert cheap.cost(IMAGE, 10).parameters < full.cost(IMAGE, 10).parameters
        assert cheap.cost(IMAGE, 10).macs < full.cost(IMAGE, 10).macs / 2


def test_a_residual_block_keeps_its_stride_and_shortcut() -> None:
    module = SeparableResNet(depth=8).build(IMAGE, 10)
    block = module.get_submodule("stages.1.0")
    assert block.get_submodule("conv1.0").stride == (2, 2)
    assert block.get_submodule("conv1.3").stride == (1, 1)
    assert [name for name, layer in block.named_modules() if isinstance(layer, nn.Conv2d)] == [
        "conv1.0",
        "conv1.3",
        "conv2.0",
        "conv2.3",
        "shortcut.0",
    ]


def test_dropout_is_the_plain_network_but_for_training() -> None:
    torch.manual_seed(0)
    plain = Plain(size=4, width=0.5).build(SIGNAL, 10)
    torch.manual_seed(0)
    dropping = DropoutPlain(size=4, width=0.5, rate=0.5).build(SIGNAL, 10)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert DropoutPlain(size=4, rate=0.5).cost(IMAGE, 10) == Plain(size=4).cost(IMAGE, 10)
    inputs = torch.randn(64, *SIGNAL)
    assert torch.equal(plain.eval()(inputs), dropping.eval()(inputs))
    seen: list[Tensor] = []
    dropping.get_submodule("classifier.0").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    dropping(inputs)
    dropping.get_submodule("dropout").train()  # alone: batch norms in training mode would change zeros as well
    dropping(inputs)
    whole, dropped = seen
    kept = dropped != 0
    assert kept.sum().item() / (whole != 0).sum().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(dropped[kept], 2 * whole[kept])


def test_a_slim_network_with_all_filters_is_the_plain_one() -> None:
    for plain, channels in (
        (Plain(size=4, width=0.5), (8, 8, 16, 16)),
        (Plain(size=8), (16, 16, 32, 32, 64, 64, 128, 128)),
    ):
        slim = SlimPlain(size=plain.size, width=plain.width, channels=channels)
        assert slim.layers(IMAGE, 10) == plain.layers(IMAGE, 10)
        one, other = plain.build(IMAGE, 10).eval(), slim.build(IMAGE, 10).eval()
        other.load_state_dict(one.state_dict())
        inputs = torch.randn(2, *IMAGE)
        assert torch.equal(one(inputs), other(inputs))
    whole = SlimResNet(depth=14, widths=(16, 32, 64))
    assert whole.cost(IMAGE, 10) == CifarResNet(depth=14).cost(IMAGE, 10)
    names = CifarResNet(depth=14).build(IMAGE, 10).state_dict().keys()
    assert whole.build(IMAGE, 10).state_dict().keys() == names


def test_a_slim_network_has_the_filters_it_says() -> None:
    module = SlimPlain(size=8, channels=(9, 8, 7, 6, 5, 4, 3, 2)).build(IMAGE, 10)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [9, 8, 7, 6, 5, 4, 3, 2]
    assert [layer.in_channels for layer in convolutions] == [3, 9, 8, 7, 6, 5, 4, 3]
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(2 * 2 * 2, 64), (64, 10)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlimPlain(size=4, channels=(1, 2)), "not the filters of 4 convolutions"),
        (lambda: SlimPlain(size=2, channels=(0, 2)), "not the filters of 2 convolutions"),
        (lambda: SlimPlain(size=3, channels=(1, 2, 3)), "no plain network of size 3"),
        (lambda: SlimResNet(depth=8, widths=(8, 8, 16)), "not the filters of three stages"),
        (lambda: SlimResNet(depth=9, widths=(1, 2, 3)), "depth 9 does not exist"),
        (lambda: DropoutPlain(size=2, rate=1.0), "dropout of 1.0"),
    ],
)
def test_what_cannot_be_built_says_so(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(KdbenchError, match=message):
        make()


def test_describing_imports_neither_torch_nor_the_extra() -> None:
    code = (
        "import sys; from kdbench_orthogonality import compress, networks, techniques; techniques.available(); "
        "networks.SeparablePlain(size=4).cost((3, 32, 32), 10); techniques.Int8(training=True).label; "
        "print([name for name in ('torch', 'torchao', 'torch_pruning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

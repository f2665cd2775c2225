"""ResNets for small images with 18 and 34 layers, and DenseNet-BC: against counts written out from the architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from network_counts import counted_macs, parameters
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError
from kdbench.networks import NETWORKS, BasicResNet, CifarResNet, DenseNet, Network, Plain, network

IMAGE = (3, 32, 32)
LARGE = (3, 64, 64)
SIGNAL = (1, 1, 40)
NAMES = ("resnet18", "resnet34", "densenet100-12")
SMALL = [BasicResNet(depth=18), DenseNet(depth=22, growth=5, reduction=0.3)]
Shape = tuple[int, int, int]


def basic_resnet_parameters(blocks: Sequence[int], channels: int, kernel: int, classes: int) -> int:
    """Convolutions without bias, a batch norm of two parameters a filter after each; ``kernel`` is 9, of signals 3."""
    count = channels * 64 * kernel + 2 * 64
    count += blocks[0] * (2 * 64 * 64 * kernel + 2 * 2 * 64)
    for repeats, before, filters in zip(blocks[1:], (64, 128, 256), (128, 256, 512), strict=True):
        count += before * filters + 2 * filters  # the projection
        count += before * filters * kernel + 2 * filters
        count += (2 * repeats - 1) * (filters * filters * kernel + 2 * filters)
    return count + 512 * classes + classes


def dense_block_parameters(entering: int, kernel: int) -> int:
    """16 layers of growth 12 in closed form: layer i has ``entering + 12 i`` inputs, and 48 channels in its middle."""
    inputs = 16 * entering + 12 * (16 * 15 // 2)  # summed over the layers
    return inputs * (2 + 48) + 16 * (2 * 48 + 48 * 12 * kernel)


def densenet100_parameters(channels: int, kernel: int, classes: int) -> int:
    """24 channels grow by 192 to 216, are halved to 108, grow to 300, are halved to 150 and grow to 342."""
    count = channels * 24 * kernel
    count += sum(dense_block_parameters(entering, kernel) for entering in (24, 108, 150))
    count += 2 * 216 + 216 * 108 + 2 * 300 + 300 * 150  # transitions
    return count + 2 * 342 + 342 * classes + classes


def by_hand(name: str, shape: Shape, classes: int) -> int:
    kernel = 3 if shape[1] == 1 else 9
    if name == "densenet100-12":
        return densenet100_parameters(shape[0], kernel, classes)
    return basic_resnet_parameters(
        {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name], shape[0], kernel, classes
    )


def seeded(description: Network, shape: Shape, classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return description.build(shape, classes)


def test_every_other_named_network_is_counted_here() -> None:
    assert {name for name, each in NETWORKS.items() if not isinstance(each, (Plain, CifarResNet))} == set(NAMES)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("shape", [IMAGE, LARGE, SIGNAL], ids=["32x32", "64x64", "signal"])
@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_architecture_and_of_the_module(name: str, shape: Shape, classes: int) -> None:
    cost = network(name).cost(shape, classes)
    module = network(name).build(shape, classes)
    assert cost.parameters == by_hand(name, shape, classes) == parameters(module)
    assert cost.macs == counted_macs(module, shape)


@pytest.mark.parametrize("shape", [IMAGE, LARGE, SIGNAL], ids=["32x32", "64x64", "signal"])
@pytest.mark.parametrize("name", NAMES)
def test_every_example_gets_its_logits(name: str, shape: Shape) -> None:
    module = network(name).build(shape, 7).eval()
    inputs = torch.randn(3, *shape)
    with torch.no_grad():
        logits = module(inputs)
        assert logits.shape == (3, 7)
        torch.testing.assert_close(module(inputs[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 17, 31), (1, 1, 37)], ids=["odd image", "odd signal"])
@pytest.mark.parametrize("description", SMALL, ids=lambda each: each.name)
def test_cost_is_that_of_the_module_at_any_shape(description: Network, shape: Shape) -> None:
    module = description.build(shape, 7)
    cost = description.cost(shape, 7)
    assert (cost.parameters, cost.macs) == (parameters(module), counted_macs(module, shape))


class Read:
    """Plain functions that take a module's tensors one after the other, as its state lists them."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors: Iterator[Tensor] = iter(module.state_dict().values())

    def conv(self, inputs: Tensor, stride: int = 1) -> Tensor:
        weight = next(self.tensors)
        return F.conv2d(inputs, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, inputs: Tensor) -> Tensor:
        scale, shift, mean, variance, _ = (next(self.tensors) for _ in range(5))
        return F.batch_norm(inputs, mean, variance, scale, shift)

    def fc(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.mean((2, 3)), next(self.tensors), next(self.tensors))


def unsettle_norms(module: nn.Module) -> None:
    """Give every batch norm statistics, scale and shift of its own, so that none can be left out or moved unseen."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor, std=0.2)


def test_basic_resnet_computes_what_its_layers_say() -> None:
    module = seeded(BasicResNet(depth=18), IMAGE).eval()
    unsettle_norms(module)
    inputs, read = torch.randn(2, *IMAGE), Read(module)
    x = read.bn(read.conv(inputs)).relu()
    for number in range(8):
        stride = 2 if number in (2, 4, 6) else 1
        hidden = read.bn(read.conv(read.bn(read.conv(x, stride)).relu()))
        x = (hidden + (read.bn(read.conv(x, 2)) if stride == 2 else x)).relu()
    assert x.shape[1:] == (512, 4, 4)
    torch.testing.assert_close(module(inputs), read.fc(x), rtol=1e-4, atol=1e-4)
    assert next(read.tensors, None) is None


def test_densenet_computes_what_its_layers_say() -> None:
    module = seeded(DenseNet(depth=22, growth=5, reduction=0.3), IMAGE).eval()
    unsettle_norms(module)
    inputs, read = torch.randn(2, *IMAGE), Read(module)
    x = read.conv(inputs)
    for block in range(3):
        if block > 0:
            x = F.avg_pool2d(read.conv(read.bn(x).relu()), 2)
        for _ in range(3):
            x = torch.cat([x, read.conv(read.bn(read.conv(read.bn(x).relu())).relu())], 1)
    assert x.shape[1:] == (21, 8, 8)
    torch.testing.assert_close(module(inputs), read.fc(read.bn(x).relu()), rtol=1e-4, atol=1e-4)
    assert next(read.tensors, None) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_the_weights(name: str) -> None:
    first, again, other = (
        nn.utils.parameters_to_vector(seeded(network(name), SIGNAL, seed=seed).parameters()) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    module = seeded(network(name), (3, 16, 16))
    F.cross_entropy(module(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
    assert [name for name, each in module.named_parameters() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize("description", SMALL, ids=lambda each: each.name)
def test_training_and_evaluation_differ_by_batch_norm_alone(description: Network) -> None:
    module = seeded(description, (3, 16, 16))
    unsettle_norms(module)
    inputs = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        evaluated = module.eval()(inputs)
        module.train()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        assert torch.equal(module(inputs), evaluated)
        assert not torch.allclose(module.train()(inputs), evaluated, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_networks_start_as_their_docstrings_say(name: str) -> None:
    module = seeded(network(name), IMAGE, 100)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.weight.numel()
            std = (2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels)) ** 0.5
            # Five standard errors of a deviation estimated from so many draws.
            assert layer.weight.std().item() == pytest.approx(std, rel=5 / (2 * size) ** 0.5)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    assert bool(module.classifier.bias.any()) is not name.startswith("densenet")


# Of the networks as they were before the ResNets of four stages shared their module: the names in the state, and the
# sum of its numbers, each weighted with the cosine of its place. Of other draws, or of draws in another order, the sum
# is another by tens; the last bits of a normal draw are the machine's.
@pytest.mark.parametrize(
    ("depth", "shape", "seed", "names", "weighted"),
    [
        (8, IMAGE, 0, "f89a35896a7aa824", 7.7040136712069405),
        (8, SIGNAL, 7, "f89a35896a7aa824", 10.933512368585149),
        (14, IMAGE, 7, "82fa3301eb3546e6", 16.43148348881648),
        (20, IMAGE, 0, "a1b735d0173ee7e4", 11.32188167408947),
        (20, SIGNAL, 0, "a1b735d0173ee7e4", -7.223254808750712),
        (110, IMAGE, 0, "dae6ca1590b89e9a", -7.243433948321986),
    ],
)
def test_cifar_resnets_start_as_ever(depth: int, shape: Shape, seed: int, names: str, weighted: float) -> None:
    state = seeded(CifarResNet(depth=depth), shape, seed=seed).state_dict()
    assert hashlib.sha256("\n".join(state).encode()).hexdigest()[:16] == names
    numbers = torch.cat([tensor.double().flatten() for tensor in state.values()])
    places = torch.arange(1, len(numbers) + 1).double()
    assert (numbers * places.cos()).sum().item() == pytest.approx(weighted, abs=1e-3)


def test_a_densenet_grows_and_compresses_rounding_down_but_keeps_a_channel() -> None:
    assert DenseNet().blocks == ((24, 216), (108, 300), (150, 342))
    assert DenseNet(depth=22, growth=5, reduction=0.3).blocks == ((10, 25), (7, 22), (6, 21))
    assert DenseNet(depth=10, growth=1, reduction=0.1).blocks == ((2, 3), (1, 2), (1, 2))
    assert DenseNet(depth=10, growth=4, reduction=1).blocks == ((8, 12), (12, 16), (16, 20))


def test_names_tell_networks_apart() -> None:
    assert [BasicResNet(depth=depth).name for depth in (18, 34)] == ["resnet18", "resnet34"]
    assert DenseNet().name == DenseNet(depth=100, growth=12, reduction=0.5).name == "densenet100-12"
    assert DenseNet(depth=40, growth=24, reduction=1).name == "densenet40-24-r1"


def test_descriptions_survive_json_and_hash_by_value() -> None:
    assert pack(DenseNet(reduction=1)) == pack(DenseNet(reduction=1.0))
    for description in (*SMALL, *(NETWORKS[name] for name in NAMES)):
        assert unpack(pack(description)) == description


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasicResNet(depth=20), r"no ResNet of basic blocks of depth 20; depths: 18, 34; CifarResNet has"),
        (lambda: DenseNet(depth=99), r"DenseNet-BC of depth 99 does not exist; depths are 6n \+ 4, from 10"),
        (lambda: DenseNet(depth=97), r"depth 97 does not exist"),  # 3n + 4 with an odd n: not of bottlenecks
        (lambda: DenseNet(depth=4), r"depth 4 does not exist"),
        (lambda: DenseNet(growth=0), r"cannot grow by 0 channels"),
        (lambda: DenseNet(reduction=0), r"reduction 0 of densenet100-12-r0 is not a share"),
        (lambda: DenseNet(reduction=1.5), r"reduction 1.5 of densenet100-12-r1.5 is not a share"),
        (lambda: DenseNet(depth=10).build((3, 3, 32), 10), r"\(3, 3, 32\) are too small for densenet10-12"),
        (lambda: DenseNet(depth=10).cost((1, 1, 3), 10), r"\(1, 1, 3\) are too small for densenet10-12"),
    ],
    ids=["resnet", "depth", "odd n", "no block", "growth", "reduction", "reduction above 1", "image", "signal"],
)
def test_impossible_networks_are_refused(make: object, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make()


def test_a_resnet_may_start_from_the_library_s_own_initialisation() -> None:
    torch.manual_seed(0)
    module = BasicResNet(depth=18, start="torch").build((3, 32, 32), 10)
    layer = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d))
    bound = (layer.in_channels * 9) ** -0.5  # uniform within 1 / sqrt(fan in), which a normal would leave
    assert layer.weight.abs().max().item() <= bound
    assert pack(BasicResNet(depth=18, start="torch")) != pack(BasicResNet(depth=18))

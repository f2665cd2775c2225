"""The plain convolutional networks of the teacher-assistant paper, as its released code lays them out.

VGG-like: conv (with bias) - batch norm - ReLU, 2x2 max-pools, fully connected head, no dropout. The *size* is the
number of convolutions. The paper's appendix with the layer list was never published, so the code is the only source:
github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation at 0f8168f (Mirzadeh et al., AAAI 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from kdbench.errors import KdbenchError
from kdbench.networks import _counting as counting
from kdbench.networks.base import Cost, Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PLAIN_SIZES", "Layer", "Plain"]

# Numbers are filters, P a 2x2 max-pool, FCn a hidden fully connected layer; the FC to the classes is implied.
_CIFAR10 = {
    2: "16 P 16 P",
    4: "16 16 P 32 32 P",
    6: "16 16 P 32 32 P 64 64 P",
    8: "16 16 P 32 32 P 64 64 P 128 128 P FC64",
    10: "32 32 P 64 64 P 128 128 P 256 256 256 256 P FC128",
}
# Size 6 has no pool at its end: so it is released, and so sizes 6 and 8 nearly tie in parameters.
_CIFAR100 = {
    2: "32 P 32 P",
    4: "32 32 P 64 64 P",
    6: "32 32 P 64 64 P 128 128",
    8: "32 32 P 64 64 P 128 128 P 256 256 P FC64",
    10: "32 32 P 64 64 P 128 128 P 256 256 256 256 P FC512",
}
PLAIN_SIZES = tuple(_CIFAR10)


class Layer(NamedTuple):
    """One layer of the list: ``inputs`` and ``outputs`` are channels of a conv or pool, units of an FC.

    ``positions`` counts the output pixels of a conv.
    """

    kind: Literal["conv", "pool", "hidden", "logits"]
    inputs: int
    outputs: int
    positions: int = 1


class Plain(Network, frozen=True, kw_only=True):
    """A plain network of 2, 4, 6, 8 or 10 convolutions.

    Inputs of height 1, ``[N, C, 1, L]``, are signals: kernels become 1x3 and pools 1x2, which is the 1-D network
    with exactly its parameters (and faster on CPUs than ``Conv1d`` once inputs are channels-last).

    Parameters
    ----------
    size : number of convolutions.
    width : factor on the filters and hidden units, rounded to at least 1.

    Notes
    -----
    A task of 100 classes takes the CIFAR-100 layout, which is wider, and every other task the CIFAR-10 layout.
    """

    size: int
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.size not in PLAIN_SIZES:
            raise KdbenchError(
                f"there is no plain network of size {self.size}", cure=f"sizes: {', '.join(map(str, PLAIN_SIZES))}"
            )
        if not 0 < self.width < float("inf"):
            raise KdbenchError(f"width {self.width} of {self.name} is not a positive factor")
        # width=1 and width=1.0 are one network, so they must hash alike.
        msgspec.structs.force_setattr(self, "width", float(self.width))

    @property
    def name(self) -> str:
        """``plain10``, or ``plain10-x0.5`` at half width."""
        return f"plain{self.size}" + ("" if self.width == 1 else f"-x{self.width:g}")

    def layers(self, input_shape: tuple[int, int, int], num_classes: int) -> tuple[Layer, ...]:
        """The layer list for one input shape ``(C, H, W)``, in order.

        Raises
        ------
        KdbenchError : a pool would leave no pixel.
        """
        channels, height, width = input_shape
        pool = counting.spatial(2, height)
        features = 0  # inputs of the first FC, set when the convolutions end
        layers: list[Layer] = []
        for word in (_CIFAR100 if num_classes == 100 else _CIFAR10)[self.size].split():
            if word == "P":
                height, width = height // pool[0], width // pool[1]
                layers.append(Layer("pool", channels, channels))
            elif word.startswith("FC"):
                units = self._scaled(int(word[2:]))
                features = features or channels * height * width
                layers.append(Layer("hidden", features, units))
                features = units
            else:
                filters = self._scaled(int(word))
                layers.append(Layer("conv", channels, filters, height * width))
                channels = filters
        if height < 1 or width < 1:
            raise KdbenchError(
                f"inputs of shape {tuple(input_shape)} are too small for {self.name}",
                cure="its pools halve height and width until nothing is left; take a smaller size",
            )
        layers.append(Layer("logits", features or channels * height * width, num_classes))
        return tuple(layers)

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """A freshly initialised module (PyTorch's default initialisation)."""
        from kdbench.networks._plain_module import PlainModule

        return PlainModule(self.layers(input_shape, num_classes), height=input_shape[1])

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        """Parameters and MACs by formula."""
        kernel = counting.spatial(3, input_shape[1])
        costs: list[Cost] = []
        for layer in self.layers(input_shape, num_classes):
            if layer.kind == "conv":
                costs.append(counting.conv(layer.inputs, layer.outputs, kernel, layer.positions, bias=True))
                costs.append(counting.batch_norm(layer.outputs))
            elif layer.kind != "pool":
                costs.append(counting.linear(layer.inputs, layer.outputs))
        return counting.total(costs)

    def _scaled(self, units: int) -> int:
        return max(1, round(units * self.width))

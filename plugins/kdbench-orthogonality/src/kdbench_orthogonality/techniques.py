"""What is done to a trained network beside distillation: pruning and quantisation, each by the library made for it.

A technique is a component: plain values that hash. The stage :class:`kdbench_orthogonality.compress.Compress` takes a
trained network, lets the technique change it, trains it further by the one loop, and lets the technique finish it. What
a technique does is a function of the network and the training inputs alone, so that a stage which was killed does it
again and then loads its state.

Weights are those of convolutions and fully connected layers; biases and batch norms are left as they are by all
techniques, and counted as such.
"""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdbench.component import Component
from kdbench.errors import KdbenchError, StageError
from kdbench.networks.base import Network

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.data.base import DataRef
    from kdbench.training.model import Normalised

__all__ = ["EXTRA", "FakeQuantise", "Int8", "Prune", "Structured", "Technique", "Untouched", "available"]

EXTRA = "kdbench-orthogonality[techniques]"
"""What to install for the techniques that need a library beside torch."""


def available() -> bool:
    """Whether the libraries of the extra ``techniques`` are installed; none of them is imported."""
    return all(find_spec(library) is not None for library in ("torch_pruning", "torchao"))


class Technique(Component, frozen=True):
    """Base of the techniques. The methods are called in the order in which they stand here.

    Attributes
    ----------
    needs : the module of the extra ``techniques`` that it needs; empty where torch is enough.
    prunes : whether its zeros are meant: they stay zero in whatever is done to the network later.
    rebuilt : whether the finished network is what its description builds, so that its weights can be saved.
    """

    needs: ClassVar[str] = ""
    prunes: ClassVar[bool] = False
    rebuilt: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """What it does, in a stage's label."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise where the library that it needs is missing.

        Raises
        ------
        StageError : it is; the message says how to install it.
        """
        if self.needs and find_spec(self.needs) is None:
            raise StageError(f"{self.label} needs {self.needs}", cure=f'pip install "{EXTRA}"')

    @property
    def made_with(self) -> str:
        """The library that it needs, with the version installed here; empty where torch is enough or it is missing."""
        try:
            return f"{self.needs} {version(self.needs.replace('_', '-'))}" if self.needs else ""
        except PackageNotFoundError:
            return ""

    def apply(self, model: Normalised, network: Network, inputs: Tensor) -> Network:
        """Change the trained ``model`` in place, before it is trained further.

        Parameters
        ----------
        network : what ``model.net`` is built from.
        inputs : raw training inputs ``[N, C, H, W]``, on the model's device.

        Returns
        -------
        Network
            What it is built from now.
        """
        return network

    def finish(self, model: Normalised, inputs: Tensor) -> None:
        """Change the model in place into what is stored and evaluated, after it was trained further."""

    def findings(self, model: Normalised) -> dict[str, Any]:
        """What is to be said of the finished model, for the record's notes."""
        return {}

    def tensors(self, model: Normalised) -> dict[str, Tensor]:
        """What is stored of the finished model."""
        return model.state_dict()

    def sizes(self, model: Normalised, network: Network, data: DataRef) -> dict[str, int]:
        """Sizes of the finished model, as :func:`kdbench.training.model.sizes_of` has them; stored as it says there."""
        from kdbench.training.model import sizes_of

        return sizes_of(model, network, data)


class Untouched(Technique, frozen=True):
    """Nothing: the control that is trained further for as long as the others are."""

    @property
    def label(self) -> str:
        return "nothing"


class Prune(Technique, frozen=True):
    """Unstructured pruning: the weights of least magnitude, over all layers together, are zero for good.

    ``torch.nn.utils.prune.global_unstructured`` by L1. The masks are on during the further training, and what lies
    under them is zero as well, so that weight decay and momentum have nothing to act on. The statistics of the batch
    norms are estimated anew before it. Weights are stored densely: the bytes are the whole network's, and the non-zero
    parameters are counted beside them.

    Parameters
    ----------
    amount : share of the weights that is pruned, between 0 and 1.
    """

    prunes: ClassVar[bool] = True

    amount: float

    def __post_init__(self) -> None:
        _check_share(self.amount, "Prune")

    @property
    def label(self) -> str:
        return f"prune {100 * self.amount:g} %"

    def apply(self, model: Normalised, network: Network, inputs: Tensor) -> Network:
        from kdbench_orthogonality import _pruning

        _pruning.mask_least(model.net, self.amount)
        _pruning.estimate_statistics(model, inputs)
        return network

    def finish(self, model: Normalised, inputs: Tensor) -> None:
        from kdbench_orthogonality import _pruning

        _pruning.make_permanent(model.net)

    def findings(self, model: Normalised) -> dict[str, Any]:
        from kdbench_orthogonality import _pruning

        return {"sparsity": _pruning.sparsity(model.net), "stored": "densely, zeros included"}


class Structured(Technique, frozen=True):
    """Structured pruning: the filters of least magnitude go, the same share in every convolution.

    torch-pruning's ``MagnitudePruner``, which judges a filter together with what reads it, and filters that are added
    up (those of a residual stage) together. What reads a filter shrinks with it, the fully connected layer behind the
    flattening too. Fully connected layers lose no units of their own. What is left is built anew from its description,
    :class:`kdbench_orthogonality.networks.SlimPlain` or ``SlimResNet``, and the statistics of its batch norms are
    estimated anew before it is trained further.

    Parameters
    ----------
    ratio : share of the filters that goes, between 0 and 1.
    norm : of the weights, by which a filter is judged: 1 or 2.
    """

    needs: ClassVar[str] = "torch_pruning"

    ratio: float
    norm: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        _check_share(self.ratio, "Structured")

    @property
    def label(self) -> str:
        return f"prune {100 * self.ratio:.3g} % of the filters"

    def apply(self, model: Normalised, network: Network, inputs: Tensor) -> Network:
        from kdbench_orthogonality import _pruning

        slim = _pruning.cut_filters(model, network, inputs, self.ratio, self.norm)
        _pruning.estimate_statistics(model, inputs)
        return slim

    def findings(self, model: Normalised) -> dict[str, Any]:
        from kdbench_orthogonality import _pruning

        return {"filters": _pruning.filters(model.net)}


class FakeQuantise(Technique, frozen=True):
    """Weights of few bits by fake quantisation: rounded in every forward pass, with a straight-through gradient.

    ``torch.fake_quantize_per_channel_affine`` under ``torch.nn.utils.parametrize``, symmetric, with a scale for each
    output channel that is computed anew in every pass: the largest magnitude of its weights is the largest level. The
    levels are the integers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, an odd number of them with zero in the middle:
    at 2 bits -1, 0 and 1, at 4 bits -7 to 7. (With such a scale the lowest level of two's complement, -2 at 2 bits,
    would never be taken.) Activations, biases and batch norms stay in single precision. The statistics of the batch
    norms are estimated anew before the further training.

    The finished network has the rounded weights. Its bytes are counted as they would be packed: ``bits`` a weight, a
    single-precision scale a channel, and everything else as it is.

    Parameters
    ----------
    bits : of a weight, 2 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise KdbenchError(f"weights of {self.bits} bits", where="FakeQuantise", cure="bits are 2 to 8")

    @property
    def label(self) -> str:
        return f"{self.bits}-bit weights"

    def apply(self, model: Normalised, network: Network, inputs: Tensor) -> Network:
        from kdbench_orthogonality import _fake, _pruning

        _fake.parametrise(model.net, self.bits)
        _pruning.estimate_statistics(model, inputs)
        return network

    def finish(self, model: Normalised, inputs: Tensor) -> None:
        from kdbench_orthogonality import _fake

        _fake.make_permanent(model.net)

    def findings(self, model: Normalised) -> dict[str, Any]:
        from kdbench_orthogonality import _fake

        return {"bits": self.bits, "levels": 2**self.bits - 1, "quantised layers": len(_fake.weights(model.net))}

    def sizes(self, model: Normalised, network: Network, data: DataRef) -> dict[str, int]:
        from kdbench_orthogonality import _fake

        found = super().sizes(model, network, data)
        weights = _fake.weights(model.net)
        stored = sum(weight.numel() * weight.element_size() for weight in weights)
        packed = math.ceil(self.bits * sum(weight.numel() for weight in weights) / 8)
        scales = sum(len(weight) for weight in weights) * 4
        return {**found, "bytes": found["bytes"] - stored + packed + scales}


class Int8(Technique, frozen=True):
    """Weights and activations of 8 bits, convolutions included, by torchao's PT2E with its ``X86InductorQuantizer``.

    Weights are signed, symmetric, with a scale a channel; activations unsigned with a scale and zero point a tensor.
    Batch norms are folded into the convolutions. The normalisation of the inputs stays outside, in single precision:
    what is quantised is the network, which takes normalised inputs. (torchao's ``quantize_`` changes only fully
    connected layers and leaves convolutions as they are; so the quantised convolutions are counted, and a network with
    none of them is an error.)

    Without ``training``, the network is trained further in single precision, as long as the others are, then calibrated
    and converted. With it, it is trained with fake quantisation of weights and activations, batch norms working;
    converting that takes some 15 seconds however small the network is, the time that torchao needs for its patterns.
    Ranges of activations are seen in training mode only, so that nothing of a validation or test split reaches them.

    The converted program is not what a description builds, so there is no weights file. Sizes are those of the tensors
    that it reads: ``parameters`` are its weights and biases (batch norms are in them), ``bytes`` these and the weights'
    scales. Not counted are the weights' zero points, which are 0, and the scales and zero points of the activations,
    which are constants of the program.

    Parameters
    ----------
    training : whether it is trained while quantised (QAT) or only converted (PTQ).
    calibration : how many training inputs give the first ranges of the activations, and without training the only ones.
    """

    needs: ClassVar[str] = "torchao"
    rebuilt: ClassVar[bool] = False

    training: bool
    calibration: int = 512

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise KdbenchError(
                f"{self.calibration} inputs do not calibrate", where="Int8", cure="take 1 or more, for instance 512"
            )

    @property
    def label(self) -> str:
        return f"int8 {'with' if self.training else 'after'} training"

    def apply(self, model: Normalised, network: Network, inputs: Tensor) -> Network:
        from kdbench_orthogonality import _int8

        if self.training:
            _int8.prepare(model, inputs[: self.calibration], training=True)
        return network

    def finish(self, model: Normalised, inputs: Tensor) -> None:
        from kdbench_orthogonality import _int8

        if not self.training:
            _int8.prepare(model, inputs[: self.calibration], training=False)
        _int8.convert(model)

    def findings(self, model: Normalised) -> dict[str, Any]:
        from kdbench_orthogonality import _int8

        return {**_int8.counts(model.net), "calibration": self.calibration, "backend": "torchao PT2E, x86 Inductor"}

    def tensors(self, model: Normalised) -> dict[str, Tensor]:
        from kdbench_orthogonality import _int8

        return _int8.tensors(model.net)

    def sizes(self, model: Normalised, network: Network, data: DataRef) -> dict[str, int]:
        from kdbench_orthogonality import _int8

        macs = network.cost(data.input_shape, data.num_classes).macs
        return {**_int8.sizes(model.net), "macs": macs}


def _check_share(share: float, where: str) -> None:
    if not 0 < share < 1:
        raise KdbenchError(f"a share of {share:g} cannot be pruned", where=where, cure="it is between 0 and 1")

"""Int8 networks by torchao's PT2E: export, prepare, convert, and count what came out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from kdbench.errors import StageError
from kdbench.quiet import quiet
from kdbench.training.model import Normalised
from kdbench_orthogonality._pruning import BATCH, inner_inputs, weighted

__all__ = ["Observed", "convert", "counts", "prepare", "quantised_by_default", "sizes", "tensors"]


class Observed(nn.Module):
    """A network prepared for quantisation, as one to train: its observers rest in eval mode.

    Left alone they go on there, and whatever the network is evaluated on moves the ranges that it is converted with.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.program(inputs)
        return logits

    def train(self, mode: bool = True) -> Observed:
        from torchao.quantization.pt2e import disable_observer, enable_observer

        super().train(mode)
        self.program.apply(enable_observer if mode else disable_observer)
        return self


def prepare(model: Normalised, calibration: Tensor, *, training: bool) -> None:
    """Export the network in ``model`` and put observers into it; ``calibration`` gives their first ranges.

    Parameters
    ----------
    calibration : raw training inputs ``[n, C, H, W]``.
    training : with fake quantisation, to be trained; else only to be converted.
    """
    seen = inner_inputs(model, calibration)
    with quiet():
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=training))
        program = (prepare_qat_pt2e if training else prepare_pt2e)(
            _exported(model.net.train(training), seen), quantizer
        )
        if training:
            allow_exported_model_train_eval(program)
            program.eval()  # the ranges are first seen with the batch norms' own statistics
        with torch.no_grad():
            for block in torch.split(seen, BATCH):
                program(block)
    model.net = Observed(program)
    if training:
        model.train(model.training)


def convert(model: Normalised) -> None:
    """Put the int8 program in the place of the prepared network.

    Raises
    ------
    StageError : none of its convolutions is quantised.
    """
    assert isinstance(model.net, Observed)
    with quiet():
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        program = convert_pt2e(model.net.program)
        allow_exported_model_train_eval(program)
    model.net = program
    model.requires_grad_(False).eval()
    found = counts(program)
    if not found["quantised convolutions"]:
        raise StageError(
            f"none of {found['convolutions']} convolutions is quantised",
            cure="is torchao of the version that the plugin asks for? its quantizer must know the network's layers",
        )


def counts(program: nn.Module) -> dict[str, int]:
    """How many convolutions a converted program has, and how many whose weight is stored as int8."""
    convolutions = [node for node in _nodes(program) if node.target is torch.ops.aten.conv2d.default]
    quantised = [node for node in convolutions if _is_stored_int8(program, node.args[1])]
    return {"convolutions": len(convolutions), "quantised convolutions": len(quantised)}


def tensors(program: nn.Module) -> dict[str, Tensor]:
    """The tensors that a converted program reads, by name: weights, biases, and the weights' scales and zero points."""
    return {str(node.target): _tensor(program, node) for node in _read(program)}


def sizes(program: nn.Module) -> dict[str, int]:
    """``parameters``, ``nonzero_parameters`` and ``bytes`` of a converted program.

    Counted are the tensors that it reads: weights, biases and the weights' scales. Left out are the zero points of the
    weights, all 0 as they are symmetric, and the ranges of the activations, which are constants of the program.
    """
    steps = [node for node in _nodes(program) if _is_dequantise(node)]
    scales, zero_points = ({node.args[place] for node in steps} for place in (1, 2))
    read = set(_read(program))
    parameters = [_tensor(program, node) for node in read - scales - zero_points]
    stored = [_tensor(program, node) for node in read - zero_points]
    return {
        "parameters": sum(tensor.numel() for tensor in parameters),
        "nonzero_parameters": sum(int(tensor.count_nonzero()) for tensor in parameters),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
    }


def quantised_by_default(net: nn.Module) -> dict[str, int]:
    """How many layers torchao's plain ``quantize_`` changes in a copy of ``net``: ``convolutions`` and ``linear``.

    It is not used to quantise anything here. It leaves convolutions in single precision, which is why PT2E is.
    """
    with quiet():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        changed = copy.deepcopy(net)
        quantize_(changed, Int8WeightOnlyConfig())
    layers = [layer for layer in weighted(changed).values() if type(layer.weight.data) is not Tensor]
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    return {"convolutions": convolutions, "linear": len(layers) - convolutions}


def _exported(net: nn.Module, seen: Tensor) -> fx.GraphModule:
    """The network as a graph, for batches of any size."""
    example = seen[:2] if len(seen) > 1 else seen.repeat(2, 1, 1, 1)  # a dimension of 1 would be taken for fixed
    batch = torch.export.Dim("batch", min=1)
    # Strict, because only then does the quantizer tell the additions of residual blocks apart.
    exported = torch.export.export(net, (example,), dynamic_shapes=({0: batch},), strict=True).module()
    assert isinstance(exported, fx.GraphModule)
    return exported


def _nodes(program: nn.Module) -> Iterator[fx.Node]:
    assert isinstance(program, fx.GraphModule)
    yield from program.graph.nodes


def _read(program: nn.Module) -> list[fx.Node]:
    return [node for node in _nodes(program) if node.op == "get_attr" and node.users]


def _is_dequantise(node: object) -> bool:
    """Whether a node makes single precision of a weight's integers, channel by channel."""
    return isinstance(node, fx.Node) and node.target is torch.ops.quantized_decomposed.dequantize_per_channel.default


def _is_stored_int8(program: nn.Module, weight: object) -> bool:
    if not isinstance(weight, fx.Node) or not _is_dequantise(weight):
        return False
    stored = weight.args[0]
    return isinstance(stored, fx.Node) and stored.op == "get_attr" and _tensor(program, stored).dtype == torch.int8


def _tensor(program: nn.Module, node: fx.Node) -> Tensor:
    found: Tensor = attrgetter(str(node.target))(program)
    return found

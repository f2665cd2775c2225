"""The losses under whatever traces, replaces or rearranges operators: torch.compile, fake tensors, make_fx and such.

That each loss compiles without a graph break, ``test_loss_autograd.py`` asks already; here are shapes that vary, the
custom operator's own promises, and what must be refused.
"""

from __future__ import annotations

import pytest
import torch
from loss_oracle import batch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from kdbench.errors import KdbenchError
from kdbench.losses import (
    cross_entropy,
    distillation_loss,
    ensemble_distillation_loss,
    kl,
    linear_distillation_loss,
    soft_label_cross_entropy,
    teacher_log_sum_exp,
    topk_distillation_loss,
)
from kdbench.ops.compiled import log_sum_exp_operator, loss_operator
from kdbench.ops.spec import CE_MEAN_VALID, KL_MEAN_ROWS, MEAN_OF_LOSSES, PER_ROW, TAIL_BUCKET, TAIL_UNNORMALISED

BOTH = {"temperature": 2.0, "alpha": 0.6}


def gradient_of(loss_of, *tensors: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of these tensors, and the gradient with respect to ``leaf`` among them."""
    loss = loss_of(*tensors)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# ---- the operator's promises ----------------------------------------------------------------------------------------


def call(student: Tensor, teachers: list[Tensor], labels: Tensor | None = None, **fields) -> tuple:
    """Arguments of the operator, by the names of LossInputs and LossSpec."""
    tensors = ("indices", "teacher_lse", "row_temperature", "row_ce_weight", "row_kl_weight", "row_label_share")
    scalars = {
        "temperature": 2.0,
        "ce_weight": 0.4,
        "kl_weight": 2.4,
        "flags": CE_MEAN_VALID | KL_MEAN_ROWS,
        "ignore_index": -100,
        "label_share": 1.0,
        "tail": 0,
        "teacher_weights": [1.0],
        "want_gradient": True,
    }
    assert set(fields) <= {*tensors, *scalars}
    rest = [fields.get(name) for name in tensors] + [fields.get(name, value) for name, value in scalars.items()]
    return (student, teachers, labels, *rest)


def sample(name: str) -> tuple:
    """Arguments of one kind."""
    rows = 0 if name == "no rows" else 4
    student, teacher, labels = batch(rows, 1 if name == "one class" else 6)
    column = torch.linspace(0.5, 2, rows, dtype=torch.float64)
    listed, indices = teacher.topk(min(3, teacher.shape[1]), dim=1)
    lse = teacher_log_sum_exp(teacher, temperature=2.0)
    labels[:1] = -100
    kinds = {
        "transposed": lambda: call(torch.empty(6, 4).copy_(student.T).T, [teacher], labels),
        "sliced": lambda: call(torch.randn(4, 9)[:, 2:8], [torch.randn(8, 6)[::2]], labels),
        "expanded teacher": lambda: call(student, [teacher[:1].expand(4, 6)], labels),
        "int32 labels": lambda: call(student, [teacher], labels.int()),
        "no gradient": lambda: call(student, [teacher], labels, want_gradient=False),
        "row losses": lambda: call(student, [teacher], labels, flags=PER_ROW),
        "by row": lambda: call(
            student,
            [teacher],
            labels,
            row_temperature=column,
            row_ce_weight=column,
            row_kl_weight=column,
            flags=PER_ROW,
        ),
        "soft labels": lambda: call(student, [], labels, row_label_share=column / 2, kl_weight=0.0),
        "kept log-sum-exp": lambda: call(student, [teacher], labels, teacher_lse=lse),
        "several teachers": lambda: call(student, [teacher, -teacher], labels, teacher_weights=[0.3, 0.7]),
        "mean of losses": lambda: call(
            student, [teacher, -teacher], None, teacher_weights=[0.3, 0.7], flags=KL_MEAN_ROWS | MEAN_OF_LOSSES
        ),
        "bucket": lambda: call(student, [listed], labels, indices=indices, teacher_lse=lse, tail=TAIL_BUCKET),
        "sparse": lambda: call(
            student, [listed], None, indices=indices.int(), teacher_lse=lse, tail=TAIL_UNNORMALISED, flags=PER_ROW
        ),
        "float64": lambda: call(student.double(), [teacher.double()], labels),
        "bfloat16": lambda: call(student.bfloat16(), [teacher.bfloat16()], labels),
        "float16": lambda: call(student.half(), [teacher.half()], labels),
    }
    return kinds.get(name, lambda: call(student, [teacher], labels))()


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "contiguous",
        "transposed",
        "sliced",
        "expanded teacher",
        "no rows",
        "one class",
        "int32 labels",
        "no gradient",
        "row losses",
        "by row",
        "soft labels",
        "kept log-sum-exp",
        "several teachers",
        "mean of losses",
        "bucket",
        "sparse",
        "float64",
        "bfloat16",
        "float16",
    ],
)
def test_the_operator_keeps_its_promises(implementation, name, requires_grad):
    arguments = sample(name)
    if requires_grad:
        if not arguments[-1]:
            pytest.skip("a gradient that is not wanted is not differentiated")
        arguments[0].requires_grad_()
    outcome = torch.library.opcheck(loss_operator, arguments)
    assert set(outcome.values()) == {"SUCCESS"}, outcome


@pytest.mark.parametrize("by_row", [True, False])
def test_the_log_sum_exp_operator_keeps_its_promises(implementation, by_row):
    rows = torch.linspace(0.5, 2, 4, dtype=torch.float64) if by_row else None
    outcome = torch.library.opcheck(log_sum_exp_operator, (torch.randn(4, 6), rows, 2.0))
    assert set(outcome.values()) == {"SUCCESS"}, outcome


# ---- torch.compile --------------------------------------------------------------------------------------------------


class Counted:
    """A backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


@pytest.mark.parametrize("name", ["distillation", "per row", "ensemble", "top-k"])
@pytest.mark.parametrize("how", ["dynamic=True", "mark_dynamic"])
def test_one_graph_serves_every_number_of_rows(implementation, name, how):
    def loss_of(s: Tensor, t: Tensor, y: Tensor, degrees: Tensor) -> Tensor:
        if name == "per row":
            return distillation_loss(s, t, y, temperature=degrees, alpha=0.6)
        if name == "ensemble":
            return ensemble_distillation_loss(s, [t, -t], y, **BOTH, combine="losses")
        if name == "top-k":
            listed, indices = t.topk(3, dim=1)
            return topk_distillation_loss(s, listed, indices, y, **BOTH, tail="renormalise")
        return distillation_loss(s, t, y, **BOTH)

    torch._dynamo.reset()
    backend, graphs = Counted(), []
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend, dynamic=True if how == "dynamic=True" else None)
    for rows in (4, 7, 19, 3):
        student, teacher, labels = batch(rows, 6, seed=rows)
        tensors = (student.requires_grad_(), teacher, labels, torch.linspace(1, 3, rows))
        want = gradient_of(loss_of, *tensors, leaf=student)
        if how == "mark_dynamic":
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)
        got = gradient_of(compiled, *tensors, leaf=student)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        graphs.append(backend.graphs)
    assert graphs == [graphs[0]] * 4  # what the first call was given; it may have begun anew within


def test_inductor_compiles_it_within_a_model(implementation):
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 6)
    features, (_, teacher, labels) = torch.randn(5, 8), batch(5, 6)

    def step(x: Tensor) -> Tensor:
        return 3 * distillation_loss(network(x).relu(), teacher, labels, **BOTH)

    want = gradient_of(step, features, leaf=network.weight)
    torch._dynamo.reset()
    try:
        got = gradient_of(torch.compile(step, fullgraph=True, backend="inductor"), features, leaf=network.weight)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if "compiler" not in str(error):
            raise
        pytest.skip(f"inductor has no working C++ compiler: {error}")
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_half_precision(implementation, dtype):
    student, teacher, labels = batch(5, 40, dtype=dtype)
    student.requires_grad_()

    def step(s: Tensor) -> Tensor:
        return 1024 * distillation_loss(s, teacher, labels, **BOTH)

    torch._dynamo.reset()
    got = gradient_of(torch.compile(step, fullgraph=True, backend="aot_eager"), student, leaf=student)
    want = gradient_of(step, student, leaf=student)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    torch.testing.assert_close(got, want)


def test_compiled_under_autocast(implementation):
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 6)
    features, (_, teacher, labels) = torch.randn(5, 8), batch(5, 6)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x)
            assert logits.dtype == torch.bfloat16
            return distillation_loss(logits, teacher, labels, **BOTH)

    want = gradient_of(step, features, leaf=network.weight)
    torch._dynamo.reset()
    got = gradient_of(torch.compile(step, fullgraph=True, backend="aot_eager"), features, leaf=network.weight)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_compiled_without_a_gradient_computes_none(implementation):
    student, teacher, labels = batch(4, 6)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s: distillation_loss(s, teacher, labels, **BOTH), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        assert torch.equal(compiled(student), distillation_loss(student, teacher, labels, **BOTH))


def test_a_bad_label_is_an_error_in_a_compiled_loss_too(implementation):
    student, teacher, labels = batch(4, 6)
    labels[2] = 6
    torch._dynamo.reset()
    compiled = torch.compile(distillation_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(KdbenchError, match="label 6 in row 2"):
        compiled(student, teacher, labels, **BOTH)


# ---- tracers --------------------------------------------------------------------------------------------------------


def test_fake_tensors_get_fake_losses(implementation):
    with FakeTensorMode():
        student = torch.empty(5, 7, dtype=torch.bfloat16, requires_grad=True)
        loss = distillation_loss(student, torch.empty(5, 7, dtype=torch.bfloat16), torch.empty(5).long(), **BOTH)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        loss.backward()
        assert student.grad is not None
        assert student.grad.shape == (5, 7)
        assert student.grad.dtype == torch.bfloat16
        assert kl(student, student.detach(), temperature=2.0, reduction="none").shape == (5,)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_one_operator(implementation, mode):
    student, teacher, labels = batch(4, 6)

    def step(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        leaf = s.detach().requires_grad_()
        return torch.autograd.grad(distillation_loss(leaf, t, y, **BOTH), leaf)[0]

    traced = make_fx(step, tracing_mode=mode)(student, teacher, labels)
    calls = [node for node in traced.graph.nodes if node.target is torch.ops.kdbench.loss.default]
    assert len(calls) == 1
    assert torch.equal(traced(student, teacher, labels), step(student, teacher, labels))
    if mode == "symbolic":
        other = batch(9, 6, seed=1)
        assert torch.equal(traced(*other), step(*other))


def test_exported(implementation):
    class Step(torch.nn.Module):
        def forward(self, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return distillation_loss(s, t, y, **BOTH)

    tensors = batch(4, 6)
    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(Step(), tensors, dynamic_shapes=(rows, rows, rows))
    other = batch(9, 6, seed=1)
    assert torch.equal(program.module()(*other), Step()(*other))


# ---- torch.func -----------------------------------------------------------------------------------------------------

STUDENT, TEACHER, LABELS = batch(4, 6)
LISTED, INDICES = TEACHER.topk(3, dim=1)

PUBLIC = {
    "distillation_loss": lambda s: distillation_loss(s, TEACHER, LABELS, **BOTH),
    "distillation_loss by row": lambda s: distillation_loss(s, TEACHER, temperature=torch.ones(4)),
    "kl": lambda s: kl(s, TEACHER, temperature=2.0),
    "cross_entropy": lambda s: cross_entropy(s, LABELS),
    "soft_label_cross_entropy": lambda s: soft_label_cross_entropy(s, LABELS, 0.9),
    "ensemble_distillation_loss": lambda s: ensemble_distillation_loss(
        s, [TEACHER, -TEACHER], LABELS, **BOTH, combine="probabilities"
    ),
    "topk_distillation_loss": lambda s: topk_distillation_loss(s, LISTED, INDICES, LABELS, **BOTH, tail="renormalise"),
    "linear_distillation_loss": lambda s: linear_distillation_loss(
        s, torch.ones(5, 6), STUDENT, torch.ones(5, 6), temperature=2.0
    ),
}


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev", "jvp"])
@pytest.mark.parametrize("name", PUBLIC)
def test_torch_func_is_refused(implementation, name, transform):
    loss_of = PUBLIC[name]
    transforms = {
        "grad": lambda: torch.func.grad(loss_of)(STUDENT),
        "vmap": lambda: torch.func.vmap(loss_of)(STUDENT.expand(3, 4, 6)),
        "jacrev": lambda: torch.func.jacrev(loss_of)(STUDENT),
        "jvp": lambda: torch.func.jvp(loss_of, (STUDENT,), (STUDENT,)),
    }
    with pytest.raises(KdbenchError, match=r"torch\.func transforms"):
        transforms[transform]()
    assert loss_of(STUDENT).isfinite()  # and nothing stays behind


def test_vmap_over_a_cached_teacher_is_refused(implementation):
    with pytest.raises(KdbenchError, match=r"torch\.func transforms"):
        torch.func.vmap(lambda t: teacher_log_sum_exp(t, temperature=2.0))(TEACHER.expand(3, 4, 6))


# ---- graphs that are kept elsewhere ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "linear_distillation_loss"])
def test_checkpointed(implementation, name):
    loss_of = PUBLIC[name]
    leaf = STUDENT.clone().requires_grad_()

    def segment(s: Tensor) -> Tensor:
        return loss_of(s * 2.0)

    want = gradient_of(segment, leaf, leaf=leaf)
    got = gradient_of(lambda s: checkpoint(segment, s, use_reentrant=False), leaf, leaf=leaf)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("name", PUBLIC)
def test_saved_tensors_may_be_kept_elsewhere(implementation, name):
    loss_of = PUBLIC[name]
    leaf = STUDENT.clone().requires_grad_()
    want = gradient_of(loss_of, leaf, leaf=leaf)
    with torch.autograd.graph.save_on_cpu():
        got = gradient_of(loss_of, leaf, leaf=leaf)
    assert torch.equal(got[1], want[1])

    packed = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, packed.__getitem__):
        loss = loss_of(leaf)
    assert packed
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(4 * loss, leaf, retain_graph=True)
    assert torch.equal(first, want[1])
    torch.testing.assert_close(scaled, 4 * want[1])

"""Hidden states and output layers in chunks: the numbers of the unchunked loss, without its memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from linear_problem import NAMES, assert_same, problem, run, unchunked
from loss_oracle import batch, peak

from kdbench.errors import KdbenchError
from kdbench.losses import distillation_loss, linear_distillation_loss
from kdbench.losses._chunks_operator import linear_operator

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    rows=st.integers(1, 20),
    classes=st.sampled_from([1, 2, 9, 33, 100]),
    chunk_rows=st.integers(1, 25),
    temperature=st.sampled_from([0.5, 1.0, 4.0, None]),
    alpha=st.sampled_from([0.0, 0.4, 1.0, None]),
    reduction=st.sampled_from(["batchmean", "mean", "sum"]),
    kl_rows=st.sampled_from(["all", "valid"]),
    bias=st.booleans(),
    labelled=st.booleans(),
    wanted=st.sets(st.sampled_from(["hidden_s", "weight_s", "bias_s"])),
    seed=st.integers(0, 500),
)
@example(
    rows=7,
    classes=9,
    chunk_rows=3,
    temperature=None,
    alpha=None,
    reduction="mean",
    kl_rows="valid",
    bias=True,
    labelled=True,
    wanted={"hidden_s", "weight_s", "bias_s"},
    seed=0,
)
def test_any_chunks_give_the_numbers_of_the_whole(
    implementation, rows, classes, chunk_rows, temperature, alpha, reduction, kl_rows, bias, labelled, wanted, seed
):
    tensors, labels = problem(rows, classes, bias=bias, seed=seed)
    labels[torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.3] = -100
    wanted = wanted if bias else wanted - {"bias_s"}
    options = {
        "temperature": torch.linspace(0.5, 5, rows) if temperature is None else temperature,
        "alpha": (torch.linspace(0, 1, rows) if alpha is None else alpha) if labelled else None,
        "reduction": reduction,
        "kl_rows": kl_rows if labelled else "all",
    }
    labels = labels if labelled else None
    want = run(unchunked, tensors, labels, wanted, **options)
    got = run(linear_distillation_loss, tensors, labels, wanted, **options, chunk_bytes=chunk_rows * classes * 16)
    assert_same(got, want, 1e-11)


def test_gradients_in_float32(implementation):
    tensors, labels = problem(50, 200, dtype=torch.float32)
    options = {"temperature": 2.0, "alpha": 0.5}
    exact = run(unchunked, {k: v.double() for k, v in tensors.items()}, labels, **options)
    got = run(linear_distillation_loss, tensors, labels, **options, chunk_bytes=7 * 200 * 8)
    assert got[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
    for name in ("hidden_s", "weight_s", "bias_s"):
        torch.testing.assert_close(got[1][name].double(), exact[1][name], rtol=0, atol=3e-6 * peak(exact[1][name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_up_in_float32(implementation, dtype):
    """Many small chunks must not lose what one large one keeps."""
    tensors, labels = problem(400, 16, dtype=dtype)
    tensors["hidden_s"] = tensors["hidden_s"].abs()  # so that the sums grow
    options = {"temperature": 2.0, "alpha": 0.5, "reduction": "sum"}
    want = run(linear_distillation_loss, tensors, labels, **options)
    got = run(linear_distillation_loss, tensors, labels, **options, chunk_bytes=1)
    assert got[0].dtype == torch.float32
    assert got[0].item() == pytest.approx(want[0].item(), rel=1e-5)
    for name in ("hidden_s", "weight_s", "bias_s"):
        assert got[1][name].dtype == dtype
        torch.testing.assert_close(
            got[1][name].float(), want[1][name].float(), rtol=torch.finfo(dtype).eps, atol=1e-4 * peak(want[1][name])
        )
    exact = run(unchunked, {k: v.double() for k, v in tensors.items()}, labels, **options)
    assert got[0].item() == pytest.approx(exact[0].item(), rel=3 * torch.finfo(dtype).eps)
    for name in ("hidden_s", "weight_s", "bias_s"):
        torch.testing.assert_close(
            got[1][name].double(), exact[1][name], rtol=0, atol=8 * torch.finfo(dtype).eps * peak(exact[1][name])
        )


def test_autocast_is_that_of_a_linear_layer(implementation):
    tensors, labels = problem(30, 40, dtype=torch.float32)
    options = {"temperature": 2.0, "alpha": 0.5}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = run(unchunked, tensors, labels, **options)
        got = run(linear_distillation_loss, tensors, labels, **options, chunk_bytes=11 * 40 * 8)
    assert got[0].item() == pytest.approx(want[0].item(), rel=2e-3)
    for name in ("hidden_s", "weight_s", "bias_s"):
        assert got[1][name].dtype == torch.float32
        torch.testing.assert_close(got[1][name], want[1][name], rtol=0, atol=2e-2 * peak(want[1][name]))
    full = run(linear_distillation_loss, tensors, labels, **options)
    assert full[0].item() != got[0].item()  # autocast was heeded


def test_a_loss_scale_saves_float16(implementation):
    """One row's share of a mean is at the end of float16's range, before the loss scale lifts it."""
    tensors, _ = problem(2**15, 64, width_s=3, dtype=torch.float16)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    (linear_distillation_loss(**leaves, temperature=2.0) * 2.0**12).backward()
    exact = run(unchunked, {k: v.double() for k, v in tensors.items()}, None, temperature=2.0)[1]
    for name in ("hidden_s", "weight_s", "bias_s"):
        got = leaves[name].grad.double() / 2.0**12
        torch.testing.assert_close(got, exact[name], rtol=0, atol=1.5e-3 * peak(exact[name]))


def test_a_chunk_has_one_row_at_least(implementation):
    tensors, labels = problem(5, 9)
    want = run(unchunked, tensors, labels, temperature=2.0, alpha=0.5)
    assert_same(run(linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5, chunk_bytes=1), want, 1e-12)


def test_no_rows(implementation):
    tensors, labels = problem(0, 5)
    loss, gradients = run(linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5)
    assert loss.item() == 0
    assert gradients["hidden_s"].shape == (0, 6)
    assert not gradients["weight_s"].any()
    assert not gradients["bias_s"].any()


def test_all_rows_ignored(implementation):
    tensors, labels = problem(6, 5)
    labels[:] = -100
    loss, gradients = run(
        linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5, kl_rows="valid", chunk_bytes=1
    )
    assert loss.item() == 0
    assert not gradients["weight_s"].any()


def test_same_input_same_bits(implementation):
    tensors, labels = problem(40, 30, dtype=torch.float32)
    first, second = (
        run(linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5, chunk_bytes=2000) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in ("hidden_s", "weight_s", "bias_s"))


def test_inputs_are_left_alone_and_the_teacher_gets_no_gradient(implementation):
    tensors, labels = problem(6, 5)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    linear_distillation_loss(labels=labels, temperature=2.0, alpha=0.5, **leaves).backward()
    assert all(torch.equal(leaves[name], t) for name, t in tensors.items())
    assert all((leaves[name].grad is None) == name.endswith("_t") for name in NAMES)


def test_gradcheck(implementation):
    tensors, labels = problem(5, 4)
    labels[2] = -100
    wanted = [tensors[name].requires_grad_() for name in ("hidden_s", "weight_s", "bias_s")]

    def loss(hidden_s, weight_s, bias_s):
        return linear_distillation_loss(
            hidden_s, weight_s, tensors["hidden_t"], tensors["weight_t"], labels,
            temperature=2.0, alpha=0.6, bias_s=bias_s, bias_t=tensors["bias_t"], chunk_bytes=2 * 4 * 16,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, wanted)


def test_upstream_gradient_scales_and_a_retained_graph_stays(implementation):
    tensors, labels = problem(6, 5)
    unit = run(linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5)[1]
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    loss = linear_distillation_loss(labels=labels, temperature=2.0, alpha=0.5, **leaves)
    wanted = [leaves[name] for name in ("hidden_s", "weight_s", "bias_s")]
    for factor in (1.0, -3.0, 1.0):
        gradients = torch.autograd.grad(factor * loss, wanted, retain_graph=True)
        for name, gradient in zip(("hidden_s", "weight_s", "bias_s"), gradients, strict=True):
            torch.testing.assert_close(gradient, factor * unit[name])
            gradient.zero_()  # what the caller does with it must not reach the graph


def test_compiled_without_graph_breaks(implementation):
    tensors, labels = problem(12, 9, dtype=torch.float32)
    labels[3] = -100
    options = {"temperature": torch.linspace(1, 3, 12), "alpha": 0.5, "kl_rows": "valid", "chunk_bytes": 500}
    want = run(linear_distillation_loss, tensors, labels, **options)
    torch._dynamo.reset()
    compiled = torch.compile(linear_distillation_loss, fullgraph=True, backend="aot_eager")
    got = run(compiled, tensors, labels, **options)
    assert_same(got, want, 1e-6)
    labels[2] = 9
    with pytest.raises(KdbenchError, match="label 9 in row 2"):
        run(compiled, tensors, labels, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wanted", [("hidden_s", "weight_s", "bias_s"), ("weight_s",), ()])
def test_the_operator_is_registered_as_torch_wants_it(implementation, dtype, wanted):
    tensors, labels = problem(6, 5, dtype=dtype)
    heads = [t.requires_grad_(name in wanted) for name, t in tensors.items()]
    rows = (labels, None, None, torch.linspace(0, 1, 6).double())
    asked = (name in wanted for name in NAMES[:3])
    torch.library.opcheck(linear_operator, (*heads, *rows, 2.0, 0.5, 0.5, 7, -100, dtype, 50, *asked))


def test_transforms_are_refused(implementation):
    tensors, labels = problem(6, 5)
    rest = {name: t for name, t in tensors.items() if name != "hidden_s"}
    with pytest.raises(KdbenchError, match="func transforms"):
        torch.func.grad(lambda h: linear_distillation_loss(h, labels=labels, temperature=2.0, alpha=0.5, **rest))(
            tensors["hidden_s"]
        )


def test_second_derivatives_are_refused(implementation):
    tensors, labels = problem(6, 5)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    loss = linear_distillation_loss(labels=labels, temperature=2.0, alpha=0.5, **leaves)
    (gradient,) = torch.autograd.grad(loss, leaves["weight_s"], create_graph=True)
    with pytest.raises(KdbenchError, match="differentiable once only"):
        gradient.square().sum().backward()


def test_a_label_out_of_range_is_named_by_its_own_row(implementation):
    tensors, labels = problem(6, 5)
    labels[4] = 7
    with pytest.raises(KdbenchError, match=r"label 7 in row 4 is outside \[0, 5\)"):
        linear_distillation_loss(labels=labels, temperature=2.0, alpha=0.5, chunk_bytes=1, **tensors)


def test_it_trains(implementation):
    """A student's layer learns its teacher's answers, chunk by chunk."""
    tensors, _ = problem(64, 7, width_s=4, dtype=torch.float32, bias=False)
    hidden = tensors["hidden_t"]
    weight = tensors["weight_s"].requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=1.0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = linear_distillation_loss(hidden, weight, hidden, tensors["weight_t"], temperature=2.0, chunk_bytes=500)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


TENSORS, LABELS = problem(4, 5, dtype=torch.float32)
GIVEN = {**TENSORS, "labels": LABELS, "temperature": 2.0, "alpha": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "none"}, "reduction='none' is not offered here"),
        ({"reduction": "average"}, "unknown reduction 'average'"),
        ({"temperature": None}, "temperature is missing"),
        ({"alpha": None}, "alpha is missing"),
        ({"hidden_s": torch.zeros(4, 5)}, r"weight_s has shape \[5, 6\], hidden_s \[4, 5\]"),
        ({"hidden_t": torch.zeros(3, 4)}, r"hidden_t has shape \[3, 4\]"),
        ({"hidden_s": torch.zeros(2, 2, 6)}, r"hidden_s has shape \[2, 2, 6\]"),
        ({"weight_t": torch.zeros(6, 4), "bias_t": None}, "weight_t has 6 classes, weight_s 5"),
        ({"bias_s": torch.zeros(4)}, r"bias_s has shape \[4\], not \[5\]"),
        ({"hidden_t": TENSORS["hidden_t"].double()}, "hidden_t is torch.float64, hidden_s torch.float32"),
        ({"weight_s": TENSORS["weight_s"].bfloat16()}, "weight_s is torch.bfloat16, hidden_s torch.float32"),
        ({"weight_s": TENSORS["weight_s"].long()}, "weight_s is torch.int64"),
        ({"weight_t": TENSORS["weight_t"].to("meta")}, "weight_t are on meta"),
        ({"labels": LABELS[:2]}, "labels have shape"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"temperature": torch.ones(3)}, "temperature has shape"),
        ({"kl_rows": "valid", "labels": None, "alpha": None}, "kl_rows='valid' means nothing without labels"),
    ],
)
def test_refusals_name_the_fault(change, message):
    with pytest.raises(KdbenchError, match=message):
        linear_distillation_loss(**{**GIVEN, **change})


def test_it_is_what_it_says_in_a_network(implementation):
    """Two modules, gradients reaching below the output layers."""
    inputs, _, labels = batch(9, 8)
    body, head = torch.nn.Linear(8, 6), torch.nn.Linear(6, 10)
    teacher = torch.nn.Linear(8, 10)
    options = {"temperature": 3.0, "alpha": 0.8}
    linear_distillation_loss(
        body(inputs).relu(),
        head.weight,
        inputs,
        teacher.weight,
        labels,
        bias_s=head.bias,
        bias_t=teacher.bias,
        **options,
    ).backward()
    got = [parameter.grad.clone() for parameter in (*body.parameters(), *head.parameters())]
    for parameter in (*body.parameters(), *head.parameters()):
        parameter.grad = None
    distillation_loss(head(body(inputs).relu()), teacher(inputs), labels, **options).backward()
    for gradient, parameter in zip(got, (*body.parameters(), *head.parameters()), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())

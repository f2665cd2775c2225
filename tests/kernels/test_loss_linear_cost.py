"""What the chunked loss costs: memory of a chunk, and no work for gradients that nobody wants."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest
import torch
from linear_problem import problem, run, unchunked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.losses import _chunks, linear_distillation_loss
from kdbench.ops.autograd import loss_and_gradient


class Watch(TorchDispatchMode):
    """Follows what operators return: the largest tensor, the most that was alive at once, and the operators' names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.largest = self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given_in = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        self.calls.append(str(func).removeprefix("aten.").removesuffix(".default").removesuffix(".dim_IntList"))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage(), given_in)
        return result

    def _follow(self, storage, given_in) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in given_in:
            return
        self._seen.add(key)
        self.largest = max(self.largest, size)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@pytest.mark.parametrize("frozen", ["hidden_s", "weight_s", "bias_s"])
def test_no_work_for_a_gradient_that_nobody_wants(implementation, frozen):
    tensors, labels = problem(12, 9)
    wanted = {"hidden_s", "weight_s", "bias_s"} - {frozen}
    options = {"temperature": 2.0, "alpha": 0.5, "chunk_bytes": 1}

    def products(wanted):
        with Watch() as watch:
            run(linear_distillation_loss, tensors, labels, wanted, **options)
        return watch.calls

    every, fewer, none = products({"hidden_s", "weight_s", "bias_s"}), products(wanted), products(set())
    gone = {"hidden_s": "mm.out", "weight_s": "addmm_", "bias_s": "sum"}[frozen]
    assert every.count(gone) >= fewer.count(gone) + 12  # once a row
    assert none.count("mm.out") + none.count("addmm.out") == 24  # the logits of both
    assert none.count("addmm_") == 0


def test_without_grad_mode_nothing_is_differentiated(implementation):
    tensors, labels = problem(12, 9)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    with torch.no_grad(), Watch() as watch:
        loss = linear_distillation_loss(labels=labels, temperature=2.0, alpha=0.5, **leaves)
    assert not loss.requires_grad
    assert watch.calls.count("addmm_") == 0
    assert loss.item() == pytest.approx(unchunked(labels=labels, temperature=2.0, alpha=0.5, **leaves).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_bound_by_the_chunk(implementation, dtype):
    rows, classes = 2000, 500
    tensors, labels = problem(rows, classes, dtype=dtype)
    logits = rows * classes * dtype.itemsize
    chunk = logits // 20
    with Watch() as watch:
        run(linear_distillation_loss, tensors, labels, temperature=2.0, alpha=0.5, chunk_bytes=chunk)
    leaves = sum(2 * t.numel() * 4 for t in tensors.values())  # their copies and gradients, in float32
    per_row = 20 * 8 * rows
    # plain torch takes a dozen float32 temporaries of a chunk
    temporaries = 16 * chunk * (4 // dtype.itemsize) if implementation == "reference" else chunk
    assert watch.largest < 2 * max(chunk, leaves, per_row)
    assert watch.largest < logits / 4
    assert watch.most < chunk + leaves + per_row + temporaries
    with Watch() as watch:
        run(unchunked, tensors, labels, temperature=2.0, alpha=0.5)
    assert watch.most >= 2 * logits  # what the bound is worth


PEAK = """
import resource, sys, torch
from kdbench.losses import linear_distillation_loss
from kdbench.ops import forced
tensors = [torch.randn(rows, 16) for rows in (4096, 8192, 4096, 8192)]  # logits of 128 MiB each
def step(rows):
    hidden, weight = tensors[0][:rows].clone().requires_grad_(), tensors[1].clone().requires_grad_()
    loss = linear_distillation_loss(hidden, weight, tensors[2][:rows], tensors[3], temperature=2.0, chunk_bytes=2**22)
    loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with forced("native"):
    before = step(64)
    print(step(4096) - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="getrusage is not on Windows")
def test_a_process_grows_by_much_less_than_the_logits(native):
    """What the kernel itself takes is seen by the operating system only."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**25


def test_the_gradient_takes_the_place_of_the_logits(implementation, monkeypatch):
    asked = []

    def spy(inputs, spec, *, want_gradient, out):
        asked.append((want_gradient, out is inputs.student, inputs.student.data_ptr()))
        return loss_and_gradient(inputs, spec, want_gradient=want_gradient, out=out)

    monkeypatch.setattr(_chunks, "loss_and_gradient", spy)
    tensors, labels = problem(12, 9)
    options = {"temperature": 2.0, "alpha": 0.5, "chunk_bytes": 4 * 9 * 16}
    run(linear_distillation_loss, tensors, labels, **options)
    assert [call[:2] for call in asked] == [(True, True)] * 3
    assert len({call[2] for call in asked}) == 1  # and every chunk that of the last
    asked.clear()
    run(linear_distillation_loss, tensors, labels, (), **options)
    assert [call[:2] for call in asked] == [(False, False)] * 3

"""The pool of gradient buffers: memory of a megabyte and more is reused, and never while somebody holds it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loss_oracle import batch
from torch import Tensor

from kdbench.losses import cross_entropy, distillation_loss, kl
from kdbench.ops import native as kernels
from kdbench.ops import release_memory

MEGABYTE = 1 << 20
LIMIT = 2 << 30  # what the pool begins with


def statistics() -> dict[str, int]:
    return kernels.module().pool_statistics()


@pytest.fixture
def pool(native) -> Iterator[dict[str, int]]:
    """An empty pool, and what its counters say."""
    gc.collect()
    release_memory()
    before = statistics()
    assert before["idle_bytes"] == 0
    yield before
    kernels.module().pool_limit(LIMIT)
    release_memory()


def large(rows: int = 300, classes: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher whose gradient takes 1.2 MB."""
    student, teacher, _ = batch(rows, classes, seed=seed)
    return student.requires_grad_(), teacher


def gradient(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.autograd.grad(kl(student, teacher, temperature=2.0), student)[0]


def test_a_training_loop_uses_one_buffer(pool):
    student, teacher = large()
    addresses = set()
    for _ in range(10):
        student.grad = None
        kl(student, teacher, temperature=2.0).backward()
        addresses.add(student.grad.data_ptr())
    assert len(addresses) == 1
    after = statistics()
    assert after["reused"] - pool["reused"] == 9
    assert after["allocated"] - pool["allocated"] == 1
    assert after["used_bytes"] - pool["used_bytes"] == 2 * MEGABYTE  # the page that 1.2 MB lie on
    assert student.grad.data_ptr() % (2 * MEGABYTE) == 0


def test_small_gradients_do_not_come_from_it(pool):
    gradients = [gradient(*large(rows=200, seed=seed)) for seed in range(3)]  # 0.8 MB each
    assert statistics() == pool
    assert len({each.data_ptr() for each in gradients}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_reuse_changes_no_bit(pool, dtype):
    student, teacher, labels = batch(700, 1000, dtype=dtype)
    student.requires_grad_()

    def once(sign: int) -> tuple[Tensor, Tensor]:
        loss = distillation_loss(student, sign * teacher, labels, temperature=2.0, alpha=0.5)
        return loss.detach(), torch.autograd.grad(loss, student)[0].clone()

    first = once(1)
    other = once(-1)  # leaves its numbers in the buffer
    assert not torch.equal(other[1], first[1])
    again = once(1)
    assert statistics()["reused"] > pool["reused"]
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], first[1])


def test_live_gradients_do_not_share_memory(pool):
    problems = [large(seed=seed) for seed in range(4)]
    want = [gradient(*problem).clone() for problem in problems]
    losses = [kl(student, teacher, temperature=2.0) for student, teacher in problems]  # four at once, not yet asked for
    got = [torch.autograd.grad(loss, student)[0] for loss, (student, _) in zip(losses, problems, strict=True)]
    assert len({each.data_ptr() for each in got}) == 4
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_kept_gradient_is_never_handed_out_again(pool):
    student, teacher = large()
    kept = gradient(student, teacher)
    copy = kept.clone()
    row = kept[7]  # a view keeps the whole
    for seed in range(5):
        assert gradient(*large(seed=seed)).data_ptr() != kept.data_ptr()
    address = kept.data_ptr()
    del kept
    gc.collect()
    for seed in range(5):
        assert gradient(*large(seed=seed)).data_ptr() != address
    assert torch.equal(row, copy[7])
    del row
    gc.collect()
    held = [gradient(*large(seed=seed)) for seed in range(3)]
    assert address in [each.data_ptr() for each in held]  # now it may


def test_a_retained_graph_keeps_its_gradient(pool):
    student, teacher = large()
    loss = kl(student, teacher, temperature=2.0)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    copy = first.clone()
    del first
    for seed in range(3):
        gradient(*large(seed=seed))
    (second,) = torch.autograd.grad(loss, student)
    assert torch.equal(second, copy)


def test_a_loss_that_is_dropped_gives_its_buffer_back(pool):
    student, teacher = large()
    loss = kl(student, teacher, temperature=2.0)
    assert statistics()["used_bytes"] == pool["used_bytes"] + 2 * MEGABYTE
    del loss
    gc.collect()
    after = statistics()
    assert after["used_bytes"] == pool["used_bytes"]
    assert after["idle_bytes"] == 2 * MEGABYTE


def test_a_loss_that_fails_gives_its_buffer_back(pool):
    from kdbench.errors import KdbenchError

    student, _ = large()
    labels = torch.zeros(300, dtype=torch.int64)
    labels[299] = 1000
    with pytest.raises(KdbenchError, match="label 1000 in row 299"):
        cross_entropy(student, labels)
    assert statistics()["used_bytes"] == pool["used_bytes"]


def test_release_memory_empties_it(pool):
    gradient(*large())
    assert statistics()["idle_bytes"] == 2 * MEGABYTE
    release_memory()
    assert statistics()["idle_bytes"] == 0
    assert gradient(*large()).isfinite().all()


def test_the_limit_holds(pool):
    kernels.module().pool_limit(5 * MEGABYTE)
    held = [gradient(*large(seed=seed)) for seed in range(4)]
    assert statistics()["used_bytes"] == pool["used_bytes"] + 8 * MEGABYTE
    del held
    gc.collect()
    after = statistics()
    assert after["idle_bytes"] == 4 * MEGABYTE
    assert after["used_bytes"] == pool["used_bytes"]
    kernels.module().pool_limit(0)
    assert statistics()["idle_bytes"] == 0
    gradient(*large())
    assert statistics()["idle_bytes"] == 0


def test_a_much_smaller_gradient_does_not_take_a_large_buffer(pool):
    gradient(*large(rows=3000))  # 12 MB
    gradient(*large())
    assert statistics()["allocated"] - pool["allocated"] == 2
    assert statistics()["idle_bytes"] == 14 * MEGABYTE


def test_a_buffer_that_nobody_wants_goes_back(pool):
    gradient(*large(rows=3000))
    student, teacher = large()
    for _ in range(40):
        gradient(student, teacher)
    assert statistics()["idle_bytes"] == 2 * MEGABYTE


def test_threads_do_not_meet_in_a_buffer(pool):
    problems = [large(seed=seed) for seed in range(3)]
    want = [gradient(*problem).clone() for problem in problems]
    faults: list[object] = []

    def work(which: int) -> None:
        try:
            kept: list[Tensor] = []
            for _ in range(25):
                kept = [*kept[-1:], gradient(*problems[which])]
                if not all(torch.equal(each, want[which]) for each in kept):
                    faults.append(which)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert statistics()["used_bytes"] == pool["used_bytes"]
    assert statistics()["reused"] > pool["reused"]


def in_a_child(program: str) -> str:
    package = Path(sys.modules["kdbench"].__file__ or "").parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    return done.stdout.strip()


def test_a_gradient_may_outlive_everything(native):
    """At exit modules are taken apart in any order; the buffer goes back to a pool that is still there."""
    program = """
import sys, torch
from kdbench.losses import kl
s = torch.randn(600, 1000, requires_grad=True)
kl(s, torch.randn(600, 1000), temperature=2.0).backward()
sys.kept = s.grad                      # dies with the interpreter
torch.kept = s.grad.view(-1)
kl(s, torch.randn(600, 1000), temperature=2.0)   # one that nobody asked for
for name in [name for name in sys.modules if name.startswith("kdbench")]:
    del sys.modules[name]
print(float(sys.kept.abs().sum()) > 0)
"""
    assert in_a_child(program) == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_peak_memory_is_one_gradient_above_the_inputs(native, kind):
    """Through several steps, the first of which faults all pages in: 1.15 gradients at most, scratch rows included."""
    program = f"""
import torch
from kdbench.losses import distillation_loss
torch.set_num_threads(2)
def peak():  # of this program alone: ru_maxrss begins with what the parent held when it forked
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
dtype = torch.{kind}
def step(s, t, y):
    s.grad = None
    distillation_loss(s, t, y, temperature=2.0, alpha=0.5).backward()
step(*(torch.zeros(2, 4, dtype=dtype, requires_grad=g) for g in (True, False)), torch.zeros(2).long())
s, t = (torch.empty(2000, 30000, dtype=dtype).uniform_() for _ in range(2))
y = torch.zeros(2000).long()
s.requires_grad_()
before = peak()
for _ in range(3):
    step(s, t, y)
print((peak() - before) / (s.numel() * s.element_size()))
"""
    used = float(in_a_child(program))
    assert 0.5 < used < 1.15, f"{used} gradients above the inputs"

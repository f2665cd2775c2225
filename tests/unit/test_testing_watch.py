"""What conformance runs watch of optimisers and losses: whatever trains is known, and nothing of it is changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import kdbench.losses
from kdbench.testing.forks import Seen
from kdbench.testing.watch import Optimisers, optimisers_watched, watched


def divergence(logits: Tensor, teacher: Tensor, reduction: str) -> Tensor:
    return kdbench.losses.kl(logits, teacher, temperature=2.0, reduction=reduction)


def seen_of(reduction: str, *, grad: bool = True, packages: tuple[str, ...] = (__name__,)) -> list[str]:
    student, teacher = torch.randn(2, 4, 10)
    seen = Seen()
    plain = divergence(student, teacher, reduction)
    with watched(packages, seen, Optimisers()):
        assert torch.equal(divergence(student.requires_grad_(grad), teacher, reduction), plain)
    assert seen.faults == []
    return seen.unclean


def test_a_mean_kl_that_trains_is_named_with_its_place() -> None:
    (found,) = seen_of("mean")
    line = divergence.__code__.co_firstlineno + 1
    assert found.startswith(f"trains on the 'mean' KL (kdbench.losses.kl at test_testing_watch.py:{line}), which")


def test_another_reduction_a_measurement_and_the_code_of_others_are_no_finding() -> None:
    assert seen_of("batchmean") == []
    assert seen_of("mean", grad=False) == []
    assert seen_of("mean", packages=("kdbench_other",)) == []


def test_a_compiled_loss_is_left_alone() -> None:
    student, teacher = torch.randn(2, 4, 10)
    with watched((__name__,), Seen(), Optimisers()):
        compiled = torch.compile(divergence, fullgraph=True, backend="eager")
        value = compiled(student.requires_grad_(), teacher, "mean")
    torch.testing.assert_close(value, divergence(student, teacher, "mean"))


def test_what_optimisers_hold_is_digested_once_one_of_them_made_a_step() -> None:
    def digest(rate: float, *, steps: int = 1, attacked: float = 0.0) -> str:
        torch.manual_seed(0)
        model, attack = nn.Linear(2, 2), torch.full((2,), attacked, requires_grad=True)
        with optimisers_watched() as optimisers:
            optimiser = torch.optim.SGD([*model.parameters(), attack], lr=rate)
            for _ in range(steps):
                model(torch.ones(2) + attack).sum().backward()
                optimiser.step()
        return optimisers.digest()

    assert digest(0.1, steps=0) == ""
    assert digest(0.1) == digest(0.1) != ""
    assert digest(0.1) != digest(0.2)
    assert digest(0.0, attacked=1.0) == digest(0.0)  # of inputs, which are no network's parameters

"""CRD: its loss at given cosines, what it draws, and what its memories remember."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vid_states import gradients, make_material, padded, random_states

from kdbench_vidlankd.distilling import CRDDistiller
from kdbench_vidlankd.losses import log_normaliser, noise_contrastive, unit
from kdbench_vidlankd.memory import Memory, draws
from kdbench_vidlankd.objectives import CRD

BLOCKS, LENGTH, HIDDEN = 9, 5, 6
"""Of the training set; a batch has four of the blocks."""

KINDS = {
    "CRD": CRD(weight=1.0, negatives=7),
    "CRD headless": CRD(weight=1.0, negatives=7, head=False),
    "CRD of blocks": CRD(weight=1.0, negatives=7, slots="block"),
    "CRD both ways": CRD(weight=1.0, negatives=7, teacher_head=True),
    "CRD of blocks both ways": CRD(weight=1.0, negatives=7, slots="block", teacher_head=True),
}


def crd(name: str = "CRD") -> CRDDistiller:
    torch.manual_seed(0)
    module = KINDS[name].build(HIDDEN, BLOCKS, LENGTH)
    assert isinstance(module, CRDDistiller)
    return module


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one, other, dim=-1)


# ------------------------------------------------------------------------------------------------------------ the loss


def cosines(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positive = 2 * torch.rand(3, 4, generator=generator, dtype=torch.float64) - 1
    return positive, 2 * torch.rand(3, 4, 5, generator=generator, dtype=torch.float64) - 1


def test_noise_contrastive_is_its_formula() -> None:
    positive, negative = cosines()
    z, slots, tau = 37.0, 20, 0.3
    share = 5 / slots
    joint, noise = (torch.exp(c / tau) / z for c in (positive, negative))
    expected = -(joint / (joint + share)).log() - (1 - noise / (noise + share)).log().sum(-1)
    mask = padded(3, 4)
    found = noise_contrastive(positive, negative, torch.tensor(z).double().log(), slots=slots, temperature=tau)
    torch.testing.assert_close(found, expected.mean(), rtol=1e-13, atol=0)
    found = noise_contrastive(
        positive, negative, torch.tensor(z).double().log(), slots=slots, temperature=tau, mask=mask
    )
    torch.testing.assert_close(found, expected[mask].mean(), rtol=1e-13, atol=0)


def test_a_pair_that_is_as_likely_joint_as_noise_costs_log_2_each() -> None:
    """K = 1 of N = 2 slots, cosines 0, Z = 2: e^0 / Z = K / N = 1/2."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = noise_contrastive(zero, zero[..., None], torch.tensor(2.0).double().log(), slots=2, temperature=1.0)
    assert found.item() == pytest.approx(2 * math.log(2), rel=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_the_normaliser_is_n_times_the_mean(masked: bool) -> None:
    positive, negative = cosines()
    mask = padded(3, 4) if masked else None
    real = torch.ones(3, 4, dtype=torch.bool) if mask is None else mask
    both = torch.cat([positive[real], negative[real].flatten()])
    expected = 20 * torch.exp(both / 0.3).mean()
    found = log_normaliser(positive.requires_grad_(), negative, slots=20, temperature=0.3, mask=mask)
    torch.testing.assert_close(found.exp(), expected.detach(), rtol=1e-13, atol=0)
    assert not found.requires_grad


def test_with_the_estimate_the_number_of_slots_cancels() -> None:
    positive, negative = cosines()
    found = []
    for slots in (20, 10**6):
        log_z = log_normaliser(positive, negative, slots=slots, temperature=0.07)
        found.append(noise_contrastive(positive, negative, log_z, slots=slots, temperature=0.07))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_contrast_is_finite_at_any_temperature() -> None:
    """In single precision, where e^(1 / tau) and its reciprocal are not; with a gradient that still pulls."""
    positive = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    negative = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    log_z = log_normaliser(positive, negative, slots=10**6, temperature=1e-3)
    value, (gradient,) = gradients(
        lambda: noise_contrastive(positive, negative, log_z, slots=10**6, temperature=1e-3), positive
    )
    assert math.isfinite(value)
    assert gradient.isfinite().all()
    assert gradient[0, 0] < 0


# --------------------------------------------------------------------------------------------------------------- draws


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 7).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=4))),
    st.integers(1, 4),
    st.integers(0, 2**63 - 1),
)
def test_negatives_are_never_of_the_own_block(drawn_for: tuple[int, list[int]], places: int, seed: int) -> None:
    blocks, own = drawn_for
    found = draws(seed, torch.tensor(own), 50, blocks=blocks, places=places)
    assert found.shape == (len(own), 50)
    assert found.min() >= 0
    assert found.max() < blocks * places
    assert not (found // places == torch.tensor(own)[:, None]).any()


def test_negatives_are_drawn_evenly_and_by_the_seed() -> None:
    own = torch.tensor([0, 2, 4])
    found = draws(5, own, 40_000, blocks=5, places=3)
    for row, block in zip(found, own.tolist(), strict=True):
        count = torch.bincount(row, minlength=15).double()
        others = torch.arange(15) // 3 != block
        assert not count[~others].any()
        # 12 slots with 3,333 each: five standard deviations are 277.
        assert (count[others] - 40_000 / 12).abs().max() < 277
    assert torch.equal(found, draws(5, own, 40_000, blocks=5, places=3))
    assert not torch.equal(found, draws(6, own, 40_000, blocks=5, places=3))


# -------------------------------------------------------------------------------------------------------------- memory

Update = Callable[[Tensor, Tensor], Tensor]
"""From a slot and its feature to the slot after one step, called once a step."""


def ours(momentum: float = 0.5) -> Update:
    memory = Memory(2, 1, 16, momentum).double()

    def step(slot: Tensor, feature: Tensor) -> Tensor:
        memory.bank[1, 0] = slot
        memory.update(feature[None, None], torch.tensor([1]), torch.ones(1, 1, dtype=torch.bool))
        return memory.bank[1, 0]

    return step


def faulty() -> Update:
    """The fault of the released code's history, as the ledger tells it: read at shifted places, written at the old.

    The buffer held K, tau, both normalisers and the momentum, and has lost its first entry.
    """
    buffer = torch.tensor([0.07, -1.0, -1.0, 0.5], dtype=torch.float64)  # tau, Z1, Z2, momentum

    def step(slot: Tensor, feature: Tensor) -> Tensor:
        z1, z2, momentum = buffer[1:].tolist()
        estimate = 1e6 * float(torch.exp(slot @ feature / 0.07))
        if z1 < 0:
            buffer[2] = estimate
        if z2 < 0:
            buffer[3] = estimate
        return unit(momentum * slot + (1 - momentum) * feature)

    return step


def approaches(update: Update) -> bool:
    """Whether a slot comes nearer to a feature that stays, in each of the first steps, and after ten is there."""
    slot, feature = unit(random_states(1, 2, 16))[0]
    course = [cosine(slot, feature).item()]
    for _ in range(10):
        slot = update(slot, feature).clone()
        course.append(cosine(slot, feature).item())
    return all(after > before for before, after in itertools.pairwise(course[:7])) and course[-1] > 0.999


def test_a_slot_moves_toward_its_feature() -> None:
    assert approaches(ours())
    assert not approaches(ours(momentum=0.999))  # so slowly that ten steps do not take it there


def test_the_fault_of_the_old_code_moves_it_away() -> None:
    """The momentum read there is a normaliser from the second step on, and the other one is estimated in each."""
    assert not approaches(faulty())
    update = faulty()
    slot, feature = unit(random_states(1, 2, 16))[0]
    first = update(slot, feature)
    assert cosine(first, feature) > cosine(slot, feature)
    second = update(first, feature)
    assert cosine(second, feature) < cosine(first, feature) - 0.1


def test_an_update_is_half_the_slot_and_half_the_feature() -> None:
    slot, feature = unit(random_states(1, 2, 16))[0]
    torch.testing.assert_close(ours()(slot, feature), unit(slot + feature), rtol=1e-14, atol=1e-16)
    weighed = unit(0.9 * slot + 0.1 * feature)
    torch.testing.assert_close(ours(momentum=0.9)(slot, feature), weighed, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", KINDS)
def test_memories_follow_the_states_of_their_networks(name: str) -> None:
    """Each slot ends at what it stands for: a token's state, or the mean of a block's; others stay as they were."""
    module, material = crd(name).double(), make_material()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    for step in range(25):
        module(material._replace(seed=step))
    student, teacher = (states.detach() for states in module.states(material))
    real = material.attention
    for memory, states in ((module.of_teacher, teacher), (module.of_student, student)):
        if memory is None:
            continue
        slots = memory.bank[material.indices]
        if slots.shape[1] == 1:
            means = torch.stack([block[kept].mean(0) for block, kept in zip(states, real, strict=True)])
            assert cosine(slots[:, 0], means).min() > 0.999999
        else:
            assert cosine(slots, states)[real].min() > 0.999999
            where = "of_teacher" if memory is module.of_teacher else "of_student"
            assert torch.equal(slots[~real], start[f"{where}.bank"][material.indices][~real])
    seen = torch.zeros(BLOCKS, dtype=torch.bool)
    seen[material.indices] = True
    for key, value in start.items():
        if key.endswith("bank"):
            assert torch.equal(module.state_dict()[key][~seen], value[~seen])


@pytest.mark.parametrize("name", KINDS)
def test_the_normaliser_is_fixed_at_the_first_step(name: str) -> None:
    module, material = crd(name).double(), make_material()
    memories = [memory for memory in (module.of_teacher, module.of_student) if memory is not None]
    assert all(memory.log_z.isnan() for memory in memories)
    module(material)
    fixed = [memory.log_z.clone() for memory in memories]
    assert all(log_z.isfinite() for log_z in fixed)
    for step in range(1, 4):
        module(make_material(seed=step, draw=step))
    for memory, log_z in zip(memories, fixed, strict=True):
        assert torch.equal(memory.log_z, log_z)


def test_a_step_sees_the_memory_as_the_steps_before_left_it() -> None:
    module, material = crd("CRD headless").double(), make_material()
    material = material._replace(teacher=material.student.detach())
    before = module.of_teacher.bank.clone()
    first = module(material)
    assert not torch.equal(module.of_teacher.bank, before)
    assert module(material) < first - 1  # the own slots are nearer now
    module.of_teacher.bank.copy_(before)
    torch.testing.assert_close(module(material), first, rtol=1e-14, atol=0)


def test_evaluation_remembers_nothing() -> None:
    module, material = crd("CRD both ways").double().eval(), make_material()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert torch.equal(module(material), module(material))
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_without_a_head_for_the_teacher_the_second_direction_has_no_gradient() -> None:
    """Which is why it is left out then: states of a frozen network against a memory are constants."""
    material = make_material()
    memory = Memory(BLOCKS, LENGTH, HIDDEN, 0.5).double()
    seen = material.indices, draws(0, material.indices, 7, blocks=BLOCKS, places=LENGTH), material.attention, 0.07
    assert not memory(unit(material.teacher), *seen).requires_grad
    assert memory(unit(material.student), *seen).requires_grad
    assert crd().of_student is None


def test_both_directions_train_both_heads() -> None:
    module, material = crd("CRD both ways").double(), make_material()
    module(material).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.parameters())


def test_a_slot_of_a_block_gives_its_tokens_one_target() -> None:
    assert crd("CRD").of_teacher.slots == BLOCKS * LENGTH
    assert crd("CRD of blocks").of_teacher.slots == BLOCKS

"""The objectives as modules: against their references, what they remember, and what they leave alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vid_states import Outcome, gradients, make_material, random_states, same

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError
from kdbench_vidlankd.distilling import DistillationHead, Distiller
from kdbench_vidlankd.objectives import CRD, NST, Material, NTXent, Regression, SoftLabel, TokenObjective

BLOCKS, LENGTH, HIDDEN = 9, 5, 6
"""Of the training set; a batch has four of the blocks."""

OBJECTIVES: dict[str, TokenObjective] = {
    "soft label": SoftLabel(weight=1.0),
    "soft label at 4": SoftLabel(weight=1.0, temperature=4.0),
    "L2": Regression(weight=2.0),
    "L2 headless": Regression(weight=2.0, head=False),
    "NST": NST(weight=20.0),
    "NST by length": NST(weight=1.0, divide="length"),
    "NST headless": NST(weight=20.0, head=False),
    "NT-Xent": NTXent(weight=1.0, temperature=0.07),
    "NT-Xent released": NTXent(weight=1.0, temperature=1.0, released=True),
    "NT-Xent headless": NTXent(weight=1.0, temperature=0.07, head=False),
    "CRD": CRD(weight=1.0, negatives=7),
    "CRD headless": CRD(weight=1.0, negatives=7, head=False),
    "CRD of blocks": CRD(weight=1.0, negatives=7, slots="block"),
    "CRD both ways": CRD(weight=1.0, negatives=7, teacher_head=True),
    "CRD of blocks both ways": CRD(weight=1.0, negatives=7, slots="block", teacher_head=True),
}
CRDS = [name for name in OBJECTIVES if name.startswith("CRD")]


def built(name: str, *, seed: int = 0) -> Distiller:
    torch.manual_seed(seed)
    return OBJECTIVES[name].build(HIDDEN, BLOCKS, LENGTH)


def outcome(module: Distiller, material: Material, formula: Callable[[Material], Tensor]) -> Outcome:
    """Value, and gradients in the student's states and in whatever the module trains."""
    return gradients(lambda: formula(material), material.student, *module.parameters())


def in_single(material: Material) -> Material:
    """The same numbers in single precision; logits stay those of :func:`make_material`."""
    single = make_material(len(material.student), dtype=torch.float32)
    return single._replace(attention=material.attention)


# ------------------------------------------------------------------------------------------------ against the formulas


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("padding", [False, True])
def test_a_module_is_its_reference(name: str, padding: bool) -> None:
    """In double precision, at the first step and, where something is remembered, three steps on."""
    module, material = built(name).double(), make_material(padding=padding)
    for step in range(4 if name in CRDS else 1):
        now = material._replace(seed=step)
        expected = outcome(module, now, module.reference)
        same(outcome(module, now, module), expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_single_precision_is_near_the_reference_in_double(name: str) -> None:
    module = built(name)
    material = make_material()
    twin = built(name).double()
    single = in_single(material)
    for step in range(2):
        found = outcome(module, single._replace(seed=step), module)
        rounded = material._replace(seed=step)
        expected = outcome(twin, rounded, twin.reference)
        twin(rounded)  # remembers
        same(found, expected, rtol=5e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weight_is_not_in_the_value(name: str) -> None:
    material = make_material()
    heavy = type(OBJECTIVES[name])(**{**fields(OBJECTIVES[name]), "weight": 100.0})
    torch.manual_seed(0)
    module = heavy.build(HIDDEN, BLOCKS, LENGTH).double()
    torch.testing.assert_close(module(material), built(name).double()(material), rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_reaches_the_teacher_and_no_input_is_modified(name: str) -> None:
    material = make_material()
    module = built(name).double()
    before = [tensor.detach().clone() for tensor in (material.student, material.teacher)]
    value = module(material)
    assert value.shape == ()
    value.backward()
    assert material.student.grad is not None
    assert material.student.grad.any()
    assert material.teacher.grad is None
    for tensor, old in zip((material.student, material.teacher), before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_at_padding_is_not_seen(name: str) -> None:
    """Neither in the value nor, later, in what is remembered."""
    material = make_material()
    noise = (~material.attention)[..., None] * random_states(*material.student.shape, seed=9, scale=50.0)
    other = material._replace(student=material.student + noise, teacher=material.teacher + noise)
    one, two = built(name).double(), built(name).double()
    for step in range(2):
        values = [m(x._replace(seed=step)) for m, x in ((one, material), (two, other))]
        torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    for found, expected in zip(two.state_dict().values(), one.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "soft" not in name])
def test_logits_are_not_asked_for_without_need(name: str) -> None:
    def never() -> Tensor:
        raise AssertionError("logits of a whole vocabulary were computed")

    built(name).double()(make_material()._replace(student_logits=never, teacher_logits=never))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_by_it_lowers_it(name: str) -> None:
    """A student of free states, given the same four blocks over and over."""
    torch.manual_seed(0)
    module = OBJECTIVES[name].build(HIDDEN, BLOCKS, LENGTH).double()
    material = make_material(padding=False)
    vocabulary = random_states(1, HIDDEN, 9, seed=5)[0]
    material = material._replace(
        student_logits=lambda: material.student.flatten(0, 1) @ vocabulary,
        teacher_logits=lambda: 3 * material.teacher.flatten(0, 1) @ vocabulary,
    )
    module(material)  # fixes a normaliser, where there is one
    trained = torch.optim.Adam([material.student, *module.parameters()], lr=0.02)
    values = []
    for step in range(60):
        loss = module(material._replace(seed=step))
        values.append(loss.item())
        trained.zero_grad()
        loss.backward()
        trained.step()
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


# ----------------------------------------------------------------------------------------------------------- component


def fields(objective: TokenObjective) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in objective.__struct_fields__}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_component_travels_as_data(name: str) -> None:
    objective = OBJECTIVES[name]
    assert unpack(pack(objective)) == objective
    assert "title" not in pack(objective)
    assert objective.title
    assert objective.source


def test_labels_tell_objectives_apart() -> None:
    assert len({objective.label for objective in OBJECTIVES.values()}) == len(OBJECTIVES)
    assert OBJECTIVES["NST by length"].label == "NST x 1 (by length)"
    assert OBJECTIVES["CRD of blocks both ways"].label == (
        "CRD x 1 (T 0.07, 7 negatives, a slot a block, teacher's head)"
    )


def test_planning_with_objectives_imports_no_torch() -> None:
    code = (
        "import sys; from kdbench_vidlankd.objectives import CRD; from kdbench.component import pack, unpack; "
        "unpack(pack(CRD(weight=1.0, negatives=3))).label; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_an_error(weight: float) -> None:
    with pytest.raises(KdbenchError, match="the weight of an objective is"):
        NST(weight=weight)


def test_numbers_out_of_range_are_errors() -> None:
    for make in (
        lambda: SoftLabel(weight=1.0, temperature=0.0),
        lambda: NTXent(weight=1.0, temperature=-1.0),
        lambda: CRD(weight=1.0, negatives=7, temperature=0.0),
    ):
        with pytest.raises(KdbenchError, match="the temperature of an objective is"):
            make()
    with pytest.raises(KdbenchError, match="the number of negatives of an objective is 0"):
        CRD(weight=1.0, negatives=0)
    with pytest.raises(KdbenchError, match="a momentum of 1 never moves a slot"):
        CRD(weight=1.0, negatives=7, momentum=1.0)
    with pytest.raises(KdbenchError, match="a memory of 1 block has no negatives"):
        CRD(weight=1.0, negatives=7).build(HIDDEN, 1, LENGTH)


# ---------------------------------------------------------------------------------------------------------------- head


def test_the_head_is_linear_gelu_norm_linear_of_length_1() -> None:
    torch.manual_seed(0)
    head = DistillationHead(HIDDEN).double()
    nn.init.normal_(head.norm.weight)
    states = random_states(2, 3, HIDDEN)
    layers = nn.Sequential(head.inner, nn.GELU(), head.norm, head.outer)
    torch.testing.assert_close(head(states), nn.functional.normalize(layers(states), dim=-1), rtol=0, atol=0)
    torch.testing.assert_close(head(states).norm(dim=-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-14, atol=0)
    assert sum(weight.numel() for weight in head.parameters()) == 2 * HIDDEN * (HIDDEN + 1) + 2 * HIDDEN


@pytest.mark.parametrize("kind", [Regression, NST, CRD, NTXent])
def test_the_head_is_the_objectives_own_and_may_be_left_out(kind: Any) -> None:
    extra = {CRD: {"negatives": 7}, NTXent: {"temperature": 0.07}}.get(kind, {})
    with_head = kind(weight=1.0, **extra).build(HIDDEN, BLOCKS, LENGTH)
    without = kind(weight=1.0, head=False, **extra).build(HIDDEN, BLOCKS, LENGTH)
    assert {name.split(".")[0] for name, _ in with_head.named_parameters()} == {"head"}
    assert not list(without.parameters())


def test_the_scale_of_a_state_does_not_matter() -> None:
    """Without a head: both are scaled to length 1."""
    material = make_material()
    scaled = material._replace(student=3 * material.student, teacher=material.teacher / 7)
    for name in ("L2 headless", "NST headless", "NT-Xent headless", "CRD headless"):
        found, expected = (built(name).double()(each) for each in (scaled, material))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", [*CRDS, "NST", "NT-Xent"])
def test_a_resumed_run_goes_on_with_the_same_bits(name: str) -> None:
    """The state is that of the module: in single precision, under torch's deterministic algorithms, as stages run."""

    def sgd(module: Distiller) -> torch.optim.Optimizer:
        # Without a head there is nothing to train, and torch wants something.
        return torch.optim.SGD([*module.parameters(), torch.zeros(1, requires_grad=True)], lr=0.1)

    def run(module: Distiller, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        values = []
        for step in steps:
            material = make_material(seed=step % 2, draw=step, dtype=torch.float32)
            optimizer.zero_grad()
            loss = module(material)
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        return values

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        module = built(name)
        optimizer = sgd(module)
        run(module, optimizer, range(3))
        saved = {key: value.clone() for key, value in module.state_dict().items()}
        expected = run(module, optimizer, range(3, 6))
        resumed = built(name, seed=1)
        resumed.load_state_dict(saved)
        found = run(resumed, sgd(resumed), range(3, 6))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for key, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)

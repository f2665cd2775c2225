"""Typed values as JSON: what is packed comes back equal, and what does not fit is refused by name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kdbench.component import Component, load_object, pack, unpack
from kdbench.errors import KdbenchError
from kdbench.networks import Plain
from kdbench.stages import Agreement, Choose, Teacher, Train
from kdbench.training import (
    SGD,
    AdamW,
    Constant,
    CrossEntropy,
    Distillation,
    Milestones,
    OneCycle,
    Recipe,
    Schedule,
    WarmupLinear,
)


class Deep(Component, frozen=True):
    """Components in every place where a field can hold one."""

    one: Schedule
    several: tuple[Schedule, ...] = ()
    many: list[Schedule] = msgspec.field(default_factory=list)
    named: dict[str, Schedule] = msgspec.field(default_factory=dict)
    perhaps: Schedule | None = None
    numbers: tuple[int, ...] = ()
    pairs: tuple[tuple[float, float], ...] = ()
    whole: int = 0


RECIPE = Recipe(
    epochs=3, optimizer=SGD(lr=0.1), schedule=Milestones(fractions=(0.5, 0.75)), statistics=(0.5,) * 6, holdout=0.1
)
VALUES = [
    SGD(lr=0.1, nesterov=False),
    RECIPE,
    Train(network=Plain(size=2, width=0.5), recipe=RECIPE, objective=Distillation(temperature=4.0, alpha=0.9)),
    Teacher(floor=None, cache=True, holdout=0.1),
    Teacher(floor=71.5, cache=False, holdout=0.0),
    Choose(by="validation"),
    Agreement(holdout=0.0),
    Deep(
        one=OneCycle(warmup=0.3),
        several=(Constant(), Milestones(fractions=(0.5,))),
        many=[Constant()],
        named={"a": OneCycle()},
        perhaps=Constant(),
        numbers=(1, 2),
        pairs=((0.5, 1.0), (2.0, 3.0)),
    ),
    Deep(one=Constant()),
    Recipe(epochs=3, optimizer=AdamW(lr=1e-4, eps=1e-6), schedule=WarmupLinear(warmup=0.05), clip=1.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_packed_value_survives_json(value: Component) -> None:
    back = unpack(json.loads(json.dumps(pack(value))))
    assert back == value
    assert type(back) is type(value)
    assert pack(back) == pack(value)


def test_packed_form_names_the_type_and_every_field() -> None:
    assert pack(SGD(lr=0.1)) == {
        "type": "kdbench.training.recipe:SGD",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
    }
    # Defaults are written out: a default that changes later must not change what a stored stage means.
    assert pack(RECIPE)["schedule"] == {
        "type": "kdbench.training.recipe:Milestones",
        "fractions": [0.5, 0.75],
        "gamma": 0.1,
    }


def test_tuples_come_back_as_tuples() -> None:
    back = unpack(json.loads(json.dumps(pack(VALUES[7]))))
    assert isinstance(back.several, tuple)
    assert isinstance(back.numbers, tuple)
    assert isinstance(back.pairs[0], tuple)
    assert isinstance(back.many, list)
    assert unpack(pack(RECIPE)).statistics == (0.5,) * 6


def packed(**changes: Any) -> dict[str, Any]:
    return {**pack(Deep(one=Constant())), **changes}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (packed(colour="red"), "no field 'colour'"),
        (packed(whole="many"), "does not fit its type"),
        (packed(numbers=["x"]), "does not fit its type"),
        (packed(one={"type": "kdbench.training.recipe:OneCycle", "heat": 1}), "no field 'heat'"),
        (packed(several=[{"type": "kdbench.training.recipe:Nothing"}]), "kdbench.training.recipe:Nothing"),
        ({"type": "kdbench.training.recipe:SGD"}, "lr"),
        ({**pack(RECIPE), "optimizer": 0.1}, "does not fit its type"),
        ({"type": "no.such.plugin:Thing"}, "is the plugin that provides it installed"),
        ({"type": "kdbench.training.recipe:Literal"}, "is not a kdbench Component"),
        ({"type": "os:getcwd"}, "is not a kdbench Component"),
        ({"type": "pathlib:Path"}, "is not a kdbench Component"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: dict[str, Any], says: str) -> None:
    with pytest.raises(KdbenchError) as caught:
        unpack(data)
    assert says in str(caught.value)


def test_literal_fields_are_checked() -> None:
    with pytest.raises(KdbenchError, match="does not fit its type"):
        unpack({**pack(RECIPE), "selection": "best"})


def test_components_are_frozen_and_refuse_unknown_arguments() -> None:
    with pytest.raises(AttributeError):
        SGD(lr=0.1).lr = 0.2  # type: ignore[misc]
    with pytest.raises(TypeError):
        SGD(lr=0.1, rate=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("path", ["kdbench.component:nothing", "kdbench.nowhere:thing", "", ":", "kdbench"])
def test_load_object_names_the_path_it_cannot_load(path: str) -> None:
    with pytest.raises(KdbenchError, match="cannot load") as caught:
        load_object(path)
    assert f"'{path}'" in str(caught.value)


def test_objectives_pack_without_their_methods() -> None:
    assert pack(CrossEntropy()) == {"type": "kdbench.training.objectives:CrossEntropy"}

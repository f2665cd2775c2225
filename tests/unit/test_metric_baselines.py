"""Which network a distilled one is compared with: its twin that never saw a teacher, whatever was done to both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kdbench.component import pack
from kdbench.data import DATASETS
from kdbench.metric import Subject, with_baselines
from kdbench.record import Environment, Record
from kdbench.stage import Finished
from kdbench.training import CrossEntropy, Distillation, LabelSmoothing, Objective

PRUNED, ROUNDED = {"type": "a:Prune", "amount": 0.5}, {"type": "a:Round", "bits": 3}
KD = Distillation(temperature=4.0, alpha=0.9)
HERE = Environment(
    **dict.fromkeys(("kdbench", "commit", "code", "python", "torch", "numpy", "platform", "processor", "ops"), ""),
    device="cpu",
    cores=1,
    threads=1,
)


class Shelf:
    """Records of finished networks, each by a name, in folders as a store has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seeds: dict[str, int] = {}
        self.taught: dict[str, bool] = {}

    def left(
        self,
        name: str,
        *,
        made_of: str | None = None,
        objective: Objective | None = None,
        seed: int = 0,
        network: str = "small",
        recipe: str = "usual",
        **notes: Any,
    ) -> str:
        """A stage that left a network, from labels or, where the objective is one of distillation, from a teacher."""
        goal = objective or CrossEntropy()
        inputs = {} if made_of is None else {"network": made_of}
        self.seeds[name], self.taught[name] = seed, isinstance(goal, Distillation)
        if self.taught[name]:
            inputs["teacher"] = "gate"
        record = Record(
            hash=name,
            label=name,
            spec={"inputs": inputs, "seed": seed},
            metrics={"test.accuracy": 90.0},
            curves={},
            notes={"network": network, "recipe": recipe, "objective": pack(goal), **notes},
            files={},
            environment=HERE,
            seconds=0.0,
            finished="",
        )
        folder = self.root / name
        folder.mkdir()
        (folder / "record.json").write_bytes(msgspec.json.encode(record))
        return name

    def compressed(self, name: str, made_of: str, objective: Objective | None = None, **more: Any) -> str:
        """The same of what was pruned and trained further; ``technique`` and ``before`` as its notes say."""
        notes = {"technique": PRUNED, "before": [], **more}
        return self.left(name, made_of=made_of, objective=objective, recipe="fine-tuning", **notes)

    def baselines(self, *measured: str) -> dict[str, str | None]:
        """Of every measured network with a teacher, the name of its baseline."""
        teacher = Finished(self.root / "teacher")
        subjects = [
            Subject(
                name,
                self.seeds[name],
                Finished(self.root / name),
                teacher if self.taught[name] else None,
                DATASETS["mnist1d"].expected(),
            )
            for name in measured
        ]
        found = with_baselines(subjects)
        assert [each.cell for each in found] == list(measured)
        assert all(each.baseline is None for each in found if not self.taught[each.cell])
        return {
            each.cell: each.baseline.record.hash if each.baseline else None
            for each in found
            if self.taught[each.cell]
        }  # fmt: skip


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A teacher, and the student without and with it."""
    shelf = Shelf(tmp_path)
    shelf.left("teacher", network="large")
    shelf.left("CE")
    shelf.left("KD", objective=KD)
    return shelf


# ------------------------------------------------------------------------------------------------ trained from nothing


def test_the_baseline_has_network_recipe_and_seed_in_common(shelf: Shelf) -> None:
    assert shelf.baselines("teacher", "KD", "CE") == {"KD": "CE"}
    others = [
        shelf.left("other network", network="medium"),
        shelf.left("other recipe", recipe="longer"),
        shelf.left("other seed", seed=1),
        shelf.left("smoothed", objective=LabelSmoothing(epsilon=0.1, over="all")),
    ]
    assert shelf.baselines("KD", *others) == {"KD": None}
    assert shelf.baselines(*others, "CE", "KD") == {"KD": "CE"}


def test_of_two_that_fit_the_first_that_is_measured_is_taken(shelf: Shelf) -> None:
    shelf.left("CE again")
    assert shelf.baselines("CE again", "CE", "KD") == {"KD": "CE again"}
    assert shelf.baselines("KD", "CE", "CE again") == {"KD": "CE"}


@pytest.mark.parametrize("missing", ["network", "recipe"])
def test_a_record_that_does_not_say_has_no_baseline(shelf: Shelf, missing: str) -> None:
    path = shelf.root / "KD" / "record.json"
    record = msgspec.json.decode(path.read_bytes())
    del record["notes"][missing]
    path.write_bytes(msgspec.json.encode(record))
    assert shelf.baselines("CE", "KD") == {"KD": None}


# ------------------------------------------------------------------------------------------------ made of another one


def test_compressed_twins_have_each_other(shelf: Shelf) -> None:
    shelf.compressed("control CE", "CE", technique={"type": "a:Untouched"})
    shelf.compressed("control KD", "KD", KD, technique={"type": "a:Untouched"})
    shelf.compressed("pruned CE", "CE")
    shelf.compressed("pruned KD", "KD", KD)
    measured = ("CE", "KD", "control CE", "control KD", "pruned CE", "pruned KD")
    expected = {"KD": "CE", "control KD": "control CE", "pruned KD": "pruned CE"}
    assert shelf.baselines(*measured) == shelf.baselines(*reversed(measured)) == expected


def test_the_control_without_a_technique_is_no_baseline_of_what_has_one(shelf: Shelf) -> None:
    """Network and recipe are the same: what was done, and the strength of it, tells them apart."""
    shelf.left("further CE", made_of="CE", recipe="fine-tuning")
    shelf.compressed("control CE", "CE", technique={"type": "a:Untouched"})
    shelf.compressed("more CE", "CE", technique={**PRUNED, "amount": 0.7})
    shelf.compressed("pruned KD", "KD", KD)
    assert shelf.baselines("further CE", "control CE", "more CE", "pruned KD") == {"pruned KD": None}


def test_what_was_done_before_must_be_the_same(shelf: Shelf) -> None:
    shelf.compressed("pruned CE", "CE")
    shelf.compressed("rounded CE", "CE", technique=ROUNDED)
    shelf.compressed("pruned, rounded CE", "pruned CE", technique=ROUNDED, before=[PRUNED])
    shelf.compressed("pruned KD", "KD", KD)
    shelf.compressed("rounded KD", "KD", KD, technique=ROUNDED)
    shelf.compressed("pruned, rounded KD", "pruned KD", KD, technique=ROUNDED, before=[PRUNED])
    assert shelf.baselines("rounded CE", "pruned, rounded CE", "rounded KD", "pruned, rounded KD") == {
        "rounded KD": "rounded CE",
        "pruned, rounded KD": "pruned, rounded CE",
    }
    assert shelf.baselines("rounded CE", "pruned, rounded KD") == {"pruned, rounded KD": None}


def test_a_distilled_network_trained_further_on_labels_is_no_baseline(shelf: Shelf) -> None:
    shelf.compressed("KD, then pruned", "KD")
    shelf.compressed("pruned KD", "KD", KD)
    assert shelf.baselines("KD, then pruned", "pruned KD") == {"pruned KD": None}
    shelf.compressed("pruned CE", "CE")
    assert shelf.baselines("KD, then pruned", "pruned CE", "pruned KD") == {"pruned KD": "pruned CE"}


@pytest.mark.parametrize("origin", ["CE", "KD", "LS"])
def test_labels_alone_are_asked_for_all_the_way_back(shelf: Shelf, origin: str) -> None:
    shelf.left("LS", objective=LabelSmoothing(epsilon=0.1, over="all"))
    shelf.compressed("half", origin)
    shelf.compressed("whole", "half", technique=ROUNDED, before=[PRUNED])
    shelf.compressed("half KD", "KD", KD)
    shelf.compressed("whole KD", "half KD", KD, technique=ROUNDED, before=[PRUNED])
    assert shelf.baselines("whole", "whole KD") == {"whole KD": "whole" if origin == "CE" else None}


def test_a_student_first_pruned_and_then_distilled_is_compared_with_the_one_pruned_on_labels(shelf: Shelf) -> None:
    shelf.compressed("pruned CE", "CE")
    shelf.compressed("pruned, then KD", "CE", KD)
    assert shelf.baselines("pruned CE", "pruned, then KD") == {"pruned, then KD": "pruned CE"}

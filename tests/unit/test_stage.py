"""A stage's identity, its folder, and what its execution leaves behind or does not."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
import torch
from toy_paper import RECIPE, STUDENT, TEACHER, toy_data, toy_lab
from toy_stages import Draws, Fails, Number

import kdbench.code
import kdbench.study
from kdbench.code import code_version
from kdbench.component import pack
from kdbench.errors import KdbenchError, StageError
from kdbench.networks import Plain
from kdbench.stage import WEIGHTS, Finished, Spec, Stage, Work, execute, read_record, read_spec
from kdbench.stages import Agreement, Choose, Teacher, Train
from kdbench.store import Store
from kdbench.training import SGD, CrossEntropy, Distillation, Milestones, OneCycle


def spec_of(stage: Stage | None = None, *, seed: int = 0, inputs: dict[str, Any] | None = None, **axes: Any) -> Spec:
    stage = stage or Train(network=STUDENT, recipe=RECIPE)
    return toy_lab(**axes).stage(stage, seed=seed, label="a stage", inputs=inputs).spec


def recipe(**changes: Any) -> Train:
    return Train(network=STUDENT, recipe=msgspec.structs.replace(RECIPE, **changes))


OTHERS: dict[str, Callable[[], Spec]] = {
    "network size": lambda: spec_of(Train(network=Plain(size=4, width=0.5), recipe=RECIPE)),
    "network width": lambda: spec_of(Train(network=Plain(size=2, width=0.25), recipe=RECIPE)),
    "restart": lambda: spec_of(Train(network=STUDENT, recipe=RECIPE, restart=1)),
    "objective": lambda: spec_of(
        Train(network=STUDENT, recipe=RECIPE, objective=Distillation(temperature=4.0, alpha=0.9))
    ),
    "temperature": lambda: spec_of(
        Train(network=STUDENT, recipe=RECIPE, objective=Distillation(temperature=2.0, alpha=0.9))
    ),
    "alpha": lambda: spec_of(Train(network=STUDENT, recipe=RECIPE, objective=Distillation(temperature=4.0, alpha=0.5))),
    "reduction": lambda: spec_of(
        Train(network=STUDENT, recipe=RECIPE, objective=Distillation(temperature=4.0, alpha=0.9, reduction="mean"))
    ),
    "epochs": lambda: spec_of(recipe(epochs=3)),
    "batch size": lambda: spec_of(recipe(batch_size=64)),
    "learning rate": lambda: spec_of(recipe(optimizer=SGD(lr=0.1))),
    "momentum": lambda: spec_of(recipe(optimizer=SGD(lr=0.05, momentum=0.0))),
    "nesterov": lambda: spec_of(recipe(optimizer=SGD(lr=0.05, nesterov=False))),
    "weight decay": lambda: spec_of(recipe(optimizer=SGD(lr=0.05, weight_decay=1e-4))),
    "schedule": lambda: spec_of(recipe(schedule=OneCycle())),
    "warm-up": lambda: spec_of(recipe(schedule=OneCycle(warmup=0.3))),
    "milestones": lambda: spec_of(recipe(schedule=Milestones(fractions=(0.5,)))),
    "augmentation": lambda: spec_of(recipe(augmentation="crop-flip")),
    "statistics": lambda: spec_of(recipe(statistics="data")),
    "six numbers": lambda: spec_of(recipe(statistics=(0.5,) * 6)),
    "holdout": lambda: spec_of(recipe(holdout=0.2)),
    "selection": lambda: spec_of(recipe(selection="validation")),
    "kind": lambda: spec_of(Agreement(holdout=0.1)),
    "floor": lambda: spec_of(Teacher(floor=None, cache=True, holdout=0.1)),
    "another floor": lambda: spec_of(Teacher(floor=70.0, cache=True, holdout=0.1)),
    "cache": lambda: spec_of(Teacher(floor=None, cache=False, holdout=0.1)),
    "choice": lambda: spec_of(Choose(by="test")),
    "other choice": lambda: spec_of(Choose(by="validation")),
    "seed": lambda: spec_of(seed=1),
    "tier": lambda: spec_of(tier="laptop"),
    "device": lambda: spec_of(device="cuda"),
    "threads": lambda: spec_of(threads=2),
    "data": lambda: spec_of(data=msgspec.structs.replace(toy_data(), fingerprint="other")),
    "an input": lambda: spec_of(inputs={"teacher": toy_lab().train(TEACHER, seed=0, recipe=RECIPE)}),
    "another input": lambda: spec_of(inputs={"teacher": toy_lab().train(TEACHER, seed=1, recipe=RECIPE)}),
    "another role": lambda: spec_of(inputs={"student": toy_lab().train(TEACHER, seed=0, recipe=RECIPE)}),
}


def test_everything_that_can_change_a_number_changes_the_hash() -> None:
    hashes = {"base": spec_of().hash, **{name: make().hash for name, make in OTHERS.items()}}
    owners: dict[str, str] = {}
    for name, value in hashes.items():
        assert value not in owners, f"'{name}' has the hash of '{owners[value]}'"
        owners[value] = name


def test_code_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    base = spec_of().hash
    monkeypatch.setattr(kdbench.study, "code_version", lambda stage, loader: "0" * 16)
    assert spec_of().hash != base


def test_label_and_place_do_not_change_the_hash() -> None:
    base = spec_of()
    moved = msgspec.structs.replace(toy_data(), path="/elsewhere/data", title="Another title")
    assert spec_of(data=moved).hash == base.hash
    assert msgspec.structs.replace(base, label="another label").hash == base.hash
    assert spec_of(protocol="written").hash == base.hash  # a protocol is what it makes of the recipe, nothing else


def test_order_of_inputs_does_not_matter() -> None:
    lab = toy_lab()
    one, two = lab.train(TEACHER, seed=0, recipe=RECIPE), lab.train(STUDENT, seed=0, recipe=RECIPE)
    pair = {"student": two, "teacher": one}, {"teacher": one, "student": two}
    assert spec_of(Agreement(holdout=0.1), inputs=pair[0]).hash == spec_of(Agreement(holdout=0.1), inputs=pair[1]).hash


def test_identity_names_all_parts_and_survives_the_file(tmp_path: Path) -> None:
    spec = spec_of()
    assert set(spec.identity()) == {"stage", "seed", "tier", "device", "threads", "code", "data", "inputs"}
    assert re.fullmatch("[0-9a-f]{32}", spec.hash)
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    assert read_spec(tmp_path) == spec
    assert read_spec(tmp_path).hash == spec.hash


def test_hash_is_the_same_in_another_process() -> None:
    program = (
        "from toy_paper import *; lab = toy_lab(); "
        "t = lab.train(TEACHER, seed=0, recipe=RECIPE); "
        "print(lab.distil(STUDENT, t, seed=0, recipe=RECIPE, objective=OBJECTIVE).spec.hash)"
    )
    here = Path(__file__).resolve().parents[1]
    found = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": str(here), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, cwd=here.anchor, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout.strip())
    from toy_paper import OBJECTIVE

    lab = toy_lab()
    teacher = lab.train(TEACHER, seed=0, recipe=RECIPE)
    assert found == {lab.distil(STUDENT, teacher, seed=0, recipe=RECIPE, objective=OBJECTIVE).spec.hash}


@pytest.mark.parametrize("part", ["objective", "data"])
@pytest.mark.parametrize("edited", ["own_parts/__init__.py", "own_parts/deep/helper.py"])
def test_code_version_follows_every_file_of_a_plugins_package(
    part: str, edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A component, or the loader of a plugin's own data, may call any helper of its package."""
    (tmp_path / "own_parts" / "deep").mkdir(parents=True)
    (tmp_path / "own_parts" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = pack(Train(network=STUDENT, recipe=RECIPE))

    def version(text: str) -> str:
        (tmp_path / edited).write_text(text)
        kdbench.code._package.cache_clear()
        if part == "data":
            return code_version(plain, "own_parts:load")
        return code_version({**plain, "objective": {"type": "own_parts:Mine"}})

    first = version("A = 1")
    assert version("A = 2") != first
    assert version("A = 1") == first
    assert first != code_version(plain)


def test_a_stage_planned_for_other_code_does_not_run(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(spec_of(), code="0" * 16)
    folder = tmp_path / spec.hash
    folder.mkdir()
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    with pytest.raises(StageError, match=r"the code here is version [0-9a-f]{16}, the plan was made for 0{16}"):
        execute(folder)
    assert not (folder / "record.json").exists()


def test_code_version_of_a_part_defined_in_a_script() -> None:
    program = (
        "from kdbench.code import code_version\nfrom kdbench.component import pack\nfrom kdbench.stage import Stage\n"
        "class Mine(Stage, frozen=True): pass\nprint(code_version(pack(Mine())))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("[0-9a-f]{16}\n", done.stdout)


# ---------------------------------------------------------------------------------------------------------- execution


@pytest.fixture
def laid(tmp_path: Path) -> Callable[..., Path]:
    """Lay a stage's folder in a store of its own."""
    place = Store(tmp_path / "store")
    place.stages.mkdir(parents=True)

    def lay(stage: Stage, **how: Any) -> Path:
        return place.prepare(spec_of(stage, **how))

    return lay


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_execution_leaves_a_record_and_nothing_provisional(laid: Callable[..., Path]) -> None:
    folder = laid(Number(value=3.0))
    (folder / "state.pt").write_bytes(b"left by a kill")
    (folder / "progress").write_text("1 2")
    execute(folder)
    record, spec = read_record(folder), read_spec(folder)
    assert record is not None
    assert names(folder) == {"spec.json", "record.json", WEIGHTS}
    assert (record.hash, record.label) == (spec.hash, "a stage seed 0")
    assert record.metrics["test.accuracy"] == 3.0
    assert record.spec == {**spec.identity(), "dataset": "mnist1d"}
    assert record.environment.code == spec.code
    assert record.environment.ops
    assert set(record.files) == {WEIGHTS}
    content = record.content()
    assert "seconds" not in content
    assert "finished" not in content
    assert content["metrics"] == record.metrics


def test_finished_stage_does_not_run_again(laid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = laid(Number(value=3.0))
    execute(folder)
    before = (folder / "record.json").read_bytes()

    def forbidden(*_: object) -> None:
        raise AssertionError("it ran again")

    monkeypatch.setattr(Number, "run", forbidden)
    execute(folder)
    assert (folder / "record.json").read_bytes() == before


def test_failure_names_cause_place_and_stage_and_leaves_no_record(laid: Callable[..., Path], tmp_path: Path) -> None:
    cure = tmp_path / "cured"
    folder = laid(Fails(unless=str(cure)))
    for _ in range(2):  # the second time it fails again: failures are not cached
        with pytest.raises(StageError) as caught:
            execute(folder)
        assert re.search(r"ValueError: broken on purpose \(at toy_stages.py:\d+\)", str(caught.value))
        assert caught.value.where == "a stage seed 0"
        assert "record.json" not in names(folder)
    cure.touch()
    execute(folder)
    assert "record.json" in names(folder)


@pytest.mark.parametrize(("how", "says"), [("nan", "test.accuracy is nan"), ("curve", "loss is inf")])
def test_number_that_is_none_fails_the_stage(laid: Callable[..., Path], how: Any, says: str) -> None:
    folder = laid(Fails(how=how))
    with pytest.raises(StageError, match=says) as caught:
        execute(folder)
    assert caught.value.where == "a stage seed 0"
    assert "record.json" not in names(folder)


def test_full_disk_is_told_as_such(laid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = laid(Number(value=3.0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KdbenchError, match="no space left on the disk"):
        execute(folder)
    monkeypatch.undo()
    execute(folder)
    assert read_record(folder) is not None


@pytest.mark.parametrize("content", [b"", b"{", b'{"hash": 1}', b"\xff\xfe"])
def test_corrupt_record_names_file_and_cure(laid: Callable[..., Path], content: bytes) -> None:
    folder = laid(Number(value=3.0))
    (folder / "record.json").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"record\.json is corrupt") as caught:
        read_record(folder)
    assert str(folder) in str(caught.value)
    assert "delete the folder" in str(caught.value)


def test_absent_record_is_none_and_corrupt_spec_is_an_error(laid: Callable[..., Path]) -> None:
    folder = laid(Number(value=3.0))
    assert read_record(folder) is None
    (folder / "spec.json").write_text("{}")
    with pytest.raises(KdbenchError, match=r"spec\.json is corrupt"):
        execute(folder)


def test_global_generators_are_seeded_by_the_stage_and_left_alone(laid: Callable[..., Path], tmp_path: Path) -> None:
    def draws(salt: int) -> dict[str, float]:
        folder = laid(Draws(salt=salt))
        (folder / "record.json").unlink(missing_ok=True)
        execute(folder)
        record = read_record(folder)
        assert record is not None
        return record.metrics

    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    expected = random.random(), numpy.random.rand(), torch.rand(()).item()
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    threads = torch.get_num_threads()
    first = draws(0)
    assert (random.random(), numpy.random.rand(), torch.rand(()).item()) == expected, "the caller was reseeded"
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert draws(0) == first
    assert first["threads"] == 1
    other = draws(1)
    assert all(other[name] != first[name] for name in ("python", "numpy", "torch"))


def test_weights_that_are_not_those_of_the_record_are_refused(laid: Callable[..., Path]) -> None:
    folder = laid(Number(value=3.0))
    with pytest.raises(StageError, match="has no record"):
        Finished(folder)
    execute(folder)
    assert Finished(folder).tensors(WEIGHTS)["value"].item() == 3.0
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StageError, match="does not match its record"):
        Finished(folder).tensors(WEIGHTS)
    path.unlink()
    with pytest.raises(StageError, match="does not match its record"):
        Finished(folder).tensors(WEIGHTS)


def test_folder_is_laid_anew_with_its_state_and_without_partial_files(laid: Callable[..., Path]) -> None:
    folder = laid(Number(value=3.0))
    (folder / "state.pt").write_bytes(b"to be resumed")
    (folder / ".state.pt.4711.part").write_bytes(b"cut sho")
    assert laid(Number(value=3.0)) == folder
    assert names(folder) == {"spec.json", "state.pt"}


@pytest.mark.parametrize("content", [None, b"", b"cut sho", b"PK\x03\x04"])
def test_state_that_does_not_read_counts_as_none(laid: Callable[..., Path], content: bytes | None) -> None:
    folder = laid(Number(value=3.0))
    if content is not None:
        (folder / "state.pt").write_bytes(content)
    work = Work(folder, read_spec(folder))
    assert work.load_state() is None
    work.save_state({"epoch": 3, "weights": torch.arange(3.0), "curves": {"loss": [0.1]}})
    state = work.load_state()
    assert (state["epoch"], state["curves"]) == (3, {"loss": [0.1]})
    assert torch.equal(state["weights"], torch.arange(3.0))


def test_spec_json_is_plain_json(laid: Callable[..., Path]) -> None:
    data = json.loads((laid(Train(network=STUDENT, recipe=RECIPE, objective=CrossEntropy())) / "spec.json").read_text())
    assert data["stage"]["type"] == "kdbench.stages.train:Train"
    assert data["stage"]["network"] == {"type": "kdbench.networks.plain:Plain", "size": 2, "width": 0.5}

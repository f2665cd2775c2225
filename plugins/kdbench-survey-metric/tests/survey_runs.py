"""Finished runs without training: stages with chosen answers, records and files, as a real run leaves them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save

from kdbench.component import pack
from kdbench.data import DataRef, Split
from kdbench.files import digest_file
from kdbench.metric import Subject
from kdbench.record import Environment, Record
from kdbench.result import DataUsed, Facts, FailureLine, Request, RunFile, Value, write_run
from kdbench.stage import PREDICTIONS, Finished, Spec
from kdbench.store import Store
from kdbench.training import CrossEntropy

LABELS = np.array([0] * 40 + [1] * 30 + [2] * 20 + [3] * 10)
"""A test split of 100 examples whose largest class is 40 % of it."""

DATA = DataRef(
    dataset="planted",
    title="Planted",
    fingerprint="f" * 64,
    official=True,
    note="",
    path="",
    load="survey_runs:load",
    input_shape=(1, 1, 1),
    num_classes=4,
    sizes={"train": 1, "test": 100},
)

_HERE = Environment(
    kdbench="0",
    commit="",
    code="",
    python="",
    torch="",
    numpy="",
    platform="",
    processor="",
    cores=1,
    threads=1,
    device="cpu",
    ops="",
)


def load(ref: DataRef) -> dict[str, Split]:
    import torch

    return {"test": Split(torch.zeros(100, 1, 1, 1), torch.from_numpy(LABELS.copy()))}


def answers(*right: int) -> np.ndarray[Any, Any]:
    """Predictions that answer so many examples of each class correctly, and class 0 or 1 otherwise."""
    classes = np.where(LABELS == 0, 1, 0)
    for label, count in enumerate(right):
        classes[np.flatnonzero(label == LABELS)[:count]] = label
    return classes.astype(np.int32)


TEACHER = answers(38, 27, 17, 8)  # 90 %
GOOD = answers(36, 25, 14, 5)  # 80 %
PLAIN = answers(36, 22, 10, 2)  # 70 %


class Planted:
    """A store to which stages and runs are added by hand."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)

    def stage(
        self,
        label: str,
        classes: np.ndarray[Any, Any] | None = None,
        *,
        seed: int = 0,
        parameters: int | None = 100,
        inputs: dict[str, str] | None = None,
        network: str = "",
        accuracy: float | None = None,
        recipe: str = "usual",
        keep: bool = True,
        **sizes: int,
    ) -> str:
        """A stage that answered the test split with ``classes``; returns its hash. Equal calls are one stage."""
        inputs = inputs or {}
        if accuracy is None and classes is not None:
            accuracy = 100.0 * float((classes == LABELS).mean())
        said = (
            label,
            seed,
            parameters,
            inputs,
            network,
            accuracy,
            recipe,
            sizes,
            keep,
            None if classes is None else classes.tolist(),
        )
        key = hashlib.sha256(repr(said).encode()).hexdigest()[:32]
        folder = self.store.stages / key
        folder.mkdir(exist_ok=True)
        spec = Spec(
            stage={}, seed=seed, tier="smoke", device="cpu", threads=1, code="", data=DATA, inputs=inputs, label=label
        )
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        files = {}
        if classes is not None and keep:
            (folder / PREDICTIONS).write_bytes(save({"classes": classes}))
            files[PREDICTIONS] = digest_file(folder / PREDICTIONS)
        notes: dict[str, Any] = {"recipe": recipe} | ({"network": network} if network else {})
        notes |= {} if parameters is None else {"parameters": parameters}
        notes |= {} if "teacher" in inputs else {"objective": pack(CrossEntropy())}
        if sizes:
            notes["sizes"] = {"parameters": parameters, **sizes}
        record = Record(
            hash=key,
            label=f"{label} seed {seed}",
            spec={"inputs": inputs, "seed": seed},
            metrics={} if accuracy is None else {"test.accuracy": accuracy},
            curves={},
            notes=notes,
            files=files,
            environment=_HERE,
            seconds=0.0,
            finished="",
        )
        (folder / "record.json").write_bytes(msgspec.json.encode(record))
        return key

    def distilled(self, label: str, classes: np.ndarray[Any, Any] | None, teacher: str, **more: Any) -> str:
        """A stage that was distilled from ``teacher``, whose network passed its gate first."""
        seed = more.get("seed", 0)
        gate = self.stage(f"gate of {teacher}", seed=seed, inputs={"network": teacher})
        return self.stage(label, classes, inputs={"teacher": gate}, **more)

    def run(
        self,
        run_id: str,
        cells: dict[str, dict[int, str]],
        *,
        fingerprint: str = DATA.fingerprint,
        failed: bool = False,
        **axes: str,
    ) -> str:
        """A run that measures the accuracy of a stage a cell and seed (hash, or '' where the stage failed)."""
        seeds = tuple(sorted({seed for of in cells.values() for seed in of}))
        request = {"paper": "planted", "tier": "smoke", "dataset": "planted", "protocol": "clean", **axes}
        values = []
        for cell, of in cells.items():
            for seed, key in of.items():
                record = self.store.record(key) if key else None
                accuracy = None if record is None else record.metrics.get("test.accuracy")
                values.append(Value(cell, seed, "test.accuracy", accuracy, (key or "0" * 32,)))
        run = RunFile(
            id=run_id,
            status="incomplete" if failed else "finished",
            request=Request(
                **request,  # type: ignore[arg-type]
                seeds=seeds,
                claims="core",
                device="cpu",
                workers=1,
                threads=1,
                executor="inline",
                data_dir=None,
            ),
            facts=Facts(
                title="",
                authors="",
                venue="",
                url="",
                bibtex="",
                protocol="",
                tables=(),
                claims=(),
                others=(),
                deviations=(),
            ),
            data=DataUsed("Planted", fingerprint, True, "", {"test": 100}),
            environment=_HERE,
            started="",
            values=tuple(values),
            failures=(FailureLine("0" * 32, "a stage", "it failed", 0),) if failed else (),
        )
        write_run(self.store.runs / run_id, run)
        return run_id

    def subject(self, student: str, teacher: str | None = None, baseline: str | None = None, **data: Any) -> Subject:
        """What a metric is given."""
        stages = [None if key is None else Finished(self.store.stages / key) for key in (student, teacher, baseline)]
        assert stages[0] is not None
        used = msgspec.structs.replace(DATA, **data)
        return Subject("cell", 0, stages[0], stages[1], data=used, baseline=stages[2])


def family(planted: Planted, seeds: int = 2, run_id: str = "one") -> str:
    """A run of one teacher with three students, of which ``good`` is measured without a teacher too."""
    cells: dict[str, dict[int, str]] = {name: {} for name in ("t/teacher", "t/plain", "t/good", "t/small", "t/large")}
    for seed in range(seeds):
        teacher = planted.stage("train big", TEACHER, seed=seed, parameters=1000, network="big")
        cells["t/teacher"][seed] = teacher
        cells["t/plain"][seed] = planted.stage("train mid", PLAIN, seed=seed, parameters=200, network="mid")
        for name, classes, size in (
            ("good", GOOD, 200),
            ("small", answers(30, 16, 8, 1), 50),
            ("large", answers(34, 24, 14, 5), 600),
        ):
            network = "mid" if name == "good" else name
            cells[f"t/{name}"][seed] = planted.distilled(
                f"distil {name}", classes, teacher, seed=seed, parameters=size, network=network
            )
    return planted.run(run_id, cells)

"""One unit of work: its identity (a content hash), its folder, and the one function that executes it.

A stage is a function of its folder: ``spec.json`` in; ``weights.safetensors`` and ``record.json`` out. Nothing live
crosses a process boundary, so any engine can run it, and a killed stage resumes from ``state.pt``.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from filelock import FileLock

from kdbench.code import code_version
from kdbench.component import Component, unpack
from kdbench.data.base import DataRef
from kdbench.errors import KdbenchError, StageError
from kdbench.files import atomic_write, digest_file, disk_errors
from kdbench.record import Environment, Outcome, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from kdbench.data.base import Split
    from kdbench.networks.base import Network

__all__ = ["Effort", "Finished", "Spec", "Stage", "Work", "execute", "read_record", "read_spec"]

WEIGHTS = "weights.safetensors"
PREDICTIONS = "test_predictions.safetensors"  # int32 [N]: "classes" that a network gives the test inputs, "labels"
STATE_EVERY = 10.0  # seconds between resumable states: at most this much work is done twice after a kill


class Effort(NamedTuple):
    """What a stage will do: optimiser steps, and multiply-accumulates in all."""

    steps: int
    macs: float


class Stage(Component, frozen=True):
    """Base of every kind of stage: typed fields that hash, and ``run``. Import torch inside ``run`` only."""

    def run(self, work: Work) -> Outcome:
        """Do the work, reading and writing through ``work`` alone."""
        raise NotImplementedError

    def effort(self, data: DataRef, networks: Mapping[str, Network]) -> Effort:
        """Rough size of the work, for the time estimate of a plan; ``networks`` are those its inputs leave, by role."""
        return Effort(0, 0.0)


class Spec(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """``spec.json``: everything a stage is. All but ``label`` and the data's path is hashed.

    ``stage`` is a packed :class:`Stage`; ``inputs`` maps a role to the hash of the stage that fills it; ``code`` is
    the version of the code that computes numbers (see :mod:`kdbench.code`).
    """

    stage: dict[str, Any]
    seed: int
    tier: str
    device: str
    threads: int
    code: str
    data: DataRef
    inputs: dict[str, str]
    label: str

    @cached_property
    def hash(self) -> str:
        """Identity: 128 bits of SHA-256 over the canonical JSON of everything that can change a number."""
        return hashlib.sha256(msgspec.json.encode(self.identity(), order="sorted")).hexdigest()[:32]

    def identity(self) -> dict[str, Any]:
        """The hashed part."""
        return {
            "stage": self.stage,
            "seed": self.seed,
            "tier": self.tier,
            "device": self.device,
            "threads": self.threads,
            "code": self.code,
            "data": self.data.fingerprint,
            "inputs": self.inputs,
        }


class Finished:
    """A finished stage as later stages see it: its record, and the network it left."""

    def __init__(self, folder: Path) -> None:
        record = read_record(folder)
        if record is None:
            raise StageError("an input stage has no record", where=folder, cure="run the plan again")
        self.folder = folder
        self.record = record

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A safetensors file of the stage, checked against the hash in its record."""
        from safetensors.torch import load_file

        return load_file(self._checked(name))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The same as numpy arrays, without importing torch."""
        from safetensors.numpy import load_file

        return load_file(self._checked(name))

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists() or digest_file(path) != self.record.files.get(name):
            raise StageError(
                f"{name} does not match its record", where=path, cure="delete this stage's folder and run again"
            )
        return path

    def model(self, work: Work) -> nn.Module:
        """The network, on the device, in eval mode, with no parameter that requires a gradient."""
        from kdbench.training.model import build_model

        notes = self.record.notes
        model = build_model(unpack(notes["network"]), work.spec.data, notes["mean"], notes["std"])
        model.load_state_dict(self.tensors(WEIGHTS))
        return model.to(work.device).eval().requires_grad_(False)


class Work:
    """What a running stage may touch: its folder, its inputs, its data, its device."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder = folder
        self.spec = spec
        self.seed = spec.seed
        self.device = spec.device
        self.files: list[str] = []
        self._saved = time.monotonic()

    def data(self) -> dict[str, Split]:
        """The splits, kept in this process between stages."""
        from kdbench.data import load

        return load(self.spec.data)

    def input(self, role: str) -> Finished:
        """The finished stage that fills ``role``."""
        return Finished(self.folder.parent / self.spec.inputs[role])

    def progress(self, done: int, total: int) -> None:
        """Tell whoever watches how far the stage is."""
        (self.folder / "progress").write_text(f"{done} {total}")

    def save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a safetensors file that belongs to the record."""
        from safetensors.torch import save

        data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        atomic_write(self.folder / name, data)
        self.files.append(name)

    def load_state(self) -> Any:
        """The last resumable state, or None. A state that does not read counts as none."""
        import torch

        try:
            return torch.load(self.folder / "state.pt", map_location=self.device, weights_only=True)
        except Exception:  # absent, or cut short by whatever killed us: the work is simply done again
            return None

    def state_due(self) -> bool:
        """Whether enough time has passed to write a resumable state."""
        return time.monotonic() - self._saved >= STATE_EVERY

    def save_state(self, state: Any) -> None:
        """Write a resumable state (tensors and plain values). Resuming must not change a single bit of the result."""
        import io

        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self.folder / "state.pt", buffer.getvalue())
        self._saved = time.monotonic()


def read_spec(folder: Path) -> Spec:
    """The specification in a stage folder."""
    spec: Spec = _read(folder / "spec.json", Spec)
    return spec


def read_record(folder: Path) -> Record | None:
    """The record in a stage folder, or None where the stage is not finished.

    Raises
    ------
    KdbenchError : the record exists but does not read.
    """
    return _read(folder / "record.json", Record) if (folder / "record.json").exists() else None


def execute(folder: Path) -> None:
    """Run the stage in ``folder`` unless its record is there already. Called by workers, in any process.

    Raises
    ------
    StageError : the stage failed; nothing of the failure stays behind as a result.
    """
    with disk_errors(folder), FileLock(folder / ".lock"):
        if (folder / "record.json").exists():
            return
        spec = read_spec(folder)
        _check_code(spec)
        started = time.perf_counter()
        work = Work(folder, spec)
        outcome = _run(spec, work)
        _check_finite(outcome, spec.label)
        record = Record(
            hash=spec.hash,
            label=spec.label,
            spec={**spec.identity(), "dataset": spec.data.dataset},
            metrics=outcome.metrics,
            curves=outcome.curves,
            notes=outcome.notes,
            files={name: digest_file(folder / name) for name in sorted(set(work.files))},
            environment=_environment(spec),
            seconds=time.perf_counter() - started,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        atomic_write(folder / "record.json", msgspec.json.format(msgspec.json.encode(record), indent=1))
        for name in ("state.pt", "progress"):
            (folder / name).unlink(missing_ok=True)


def _run(spec: Spec, work: Work) -> Outcome:
    import numpy
    import torch

    stage = unpack(spec.stage)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    states = random.getstate(), numpy.random.get_state()  # an inline stage must not reseed its caller
    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(True)
    seed = int(spec.hash[:8], 16)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if work.device != "cpu" else ()):
            random.seed(seed)
            numpy.random.seed(seed)
            torch.manual_seed(seed)
            outcome: Outcome = stage.run(work)
    except KdbenchError as error:
        raise type(error)(error.what, where=error.where or spec.label, cure=error.cure) from error
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        raise StageError(f"{type(error).__name__}: {error} (at {place})", where=spec.label) from error
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
    return outcome


def _check_code(spec: Spec) -> None:
    # Known only here, with torch and the kernels loaded: what runs must be what the stage's identity says.
    import torch  # noqa: F401

    found = code_version(spec.stage, spec.data.load)
    if found != spec.code:
        raise StageError(
            f"the code here is version {found}, the plan was made for {spec.code}",
            where=spec.label,
            cure="did it change since the run began, or do the kernels not load? run again, or see 'kdbench doctor'",
        )


def _check_finite(outcome: Outcome, label: str) -> None:
    # JSON has no NaN: a record that held one could not be read back.
    numbers = [*outcome.metrics.items(), *((name, value) for name, curve in outcome.curves.items() for value in curve)]
    for name, value in numbers:
        if not math.isfinite(value):
            raise StageError(f"{name} is {value}", where=label, cure="did the network diverge? lower its learning rate")


def _environment(spec: Spec) -> Environment:
    from kdbench.environment import environment

    return environment(device=spec.device, threads=spec.threads, code=spec.code)


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise KdbenchError(
            f"{path.name} is corrupt ({error})",
            where=path,
            cure=f"delete the folder {path.parent} and run again: only this stage is done anew",
        ) from error

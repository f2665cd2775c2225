"""The command for GPU machines, as far as it can be seen without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output", out],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.py: error: torch ")
    assert "finds no GPU" in line
    assert not out.exists()


def test_every_step_names_its_commands(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SCRIPT.parents[2])
    lines = {
        command.name: command.arguments
        for step in gpu.NEEDS
        for command in gpu.commands(step, gpu.Card("a card", "90"), tmp_path, 2.5)
    }
    assert list(lines) == ["build", "tests", "check_cuda-build", "memcheck", "racecheck", "kernels-cuda"]
    assert "-gencode=arch=compute_90,code=sm_90" in lines["check_cuda-build"]
    assert lines["memcheck"][-1] == lines["racecheck"][-1] == lines["check_cuda-build"][-1]
    assert "2.5" in lines["kernels-cuda"]
    for name, arguments in lines.items():
        for path in (argument for argument in arguments if argument.startswith(("tests/", "csrc/", "setup.py"))):
            assert Path(path).exists(), name


def test_what_is_missing_is_named_before_anything_is_begun(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = gpu.Card("a card", "90")
    monkeypatch.setattr(gpu, "NEEDS", {"bench": {"nobodys": "nobodys-package", "json": "pytest>=99999"}})
    with pytest.raises(gpu.CannotRun, match=r"missing for .*: nobodys-package, pytest>=99999; install them"):
        gpu.prepare(["bench"], tmp_path, None, card)
    monkeypatch.setattr(gpu, "NEEDS", {"bench": {"pytest": "pytest>=7.0"}})
    monkeypatch.setattr(gpu, "TOOLS", {"bench": ["nobodys-tool"]})
    with pytest.raises(gpu.CannotRun, match="missing: nobodys-tool"):
        gpu.prepare(["bench"], tmp_path, None, card)
    monkeypatch.setattr(gpu, "TOOLS", {"bench": []})
    environment = gpu.prepare(["bench"], tmp_path, None, card)
    assert (environment["KDBENCH_CUDA"], environment["KDBENCH_CUDA_ARCHS"]) == ("1", "90")
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(SCRIPT.parents[2])


def steps_that(gpu: ModuleType, **statuses: int) -> object:
    def commands(step: str, *_: object) -> Iterator[object]:
        yield gpu.Command(step, [sys.executable, "-c", f"print('from {step}'); raise SystemExit({statuses[step]})"])

    return commands


def test_a_failed_step_is_reported_and_the_next_one_runs(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "commands", steps_that(gpu, build=0, tests=3, bench=0))
    assert not gpu.carry_out(["build", "tests", "bench"], gpu.Card("a card", "90"), tmp_path, dict(os.environ), 1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["gpu"] == {"name": "a card", "arch": "90"}
    assert [(step["name"], step["status"]) for step in summary["steps"]] == [("build", 0), ("tests", 3), ("bench", 0)]
    assert summary["failed"] == ["tests"]
    assert (tmp_path / "tests.log").read_text() == "from tests\n"
    assert "== tests: FAILED (exit status 3)" in capfd.readouterr().out


def test_nothing_follows_a_build_that_failed(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "commands", steps_that(gpu, build=1, tests=0))
    assert not gpu.carry_out(["build", "tests"], gpu.Card("a card", "90"), tmp_path, dict(os.environ), 1.0)
    assert [step["name"] for step in json.loads((tmp_path / "summary.json").read_text())["steps"]] == ["build"]


def test_all_well(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "commands", steps_that(gpu, build=0, tests=0))
    assert gpu.carry_out(["build", "tests"], gpu.Card("a card", "90"), tmp_path, dict(os.environ), 1.0)

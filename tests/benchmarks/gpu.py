"""Everything that needs a GPU, in one command: ``python tests/benchmarks/gpu.py``, or ``tox -e gpu``.

Builds the kernels in place for the card that is here, runs the kernels' tests (the parity tests of CUDA among them),
compute-sanitizer over the native test program, and the comparison of ``kdbench bench kernels``. Leaves a log a step,
the comparison and ``summary.json`` in a folder; exit status 1 if a step failed. Needs no network and only the standard
library to start: what else it needs is named before anything is begun, and may come from a folder of wheels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# What a step imports: the module, and the package that brings it.
NEEDS = {
    "build": {"setuptools": "setuptools>=77", "ninja": "ninja", "pybind11": "pybind11>=2.13"},
    "tests": {"pytest": "pytest", "hypothesis": "hypothesis", "pytest_benchmark": "pytest-benchmark"},
    "sanitizer": {},
    "bench": {"click": "click", "msgspec": "msgspec", "pluggy": "pluggy", "rich": "rich"},
}
TOOLS = {"build": ["nvcc"], "tests": [], "sanitizer": ["nvcc", "compute-sanitizer"], "bench": []}


class Command(NamedTuple):
    """One command of a step; ``name`` is that of its log."""

    name: str
    arguments: list[str]


class Card(NamedTuple):
    """The GPU that torch uses: compute capability 9.0 is ``arch`` 90."""

    name: str
    arch: str


class CannotRun(Exception):
    """Why nothing was begun."""


def find_card() -> Card:
    """Ask torch, in this process's environment.

    Raises
    ------
    CannotRun : there is no torch, or it finds no GPU.
    """
    if importlib.util.find_spec("torch") is None:
        raise CannotRun(f"torch is not installed for {sys.executable}")
    import torch

    if not torch.cuda.is_available():
        raise CannotRun(
            f"torch {torch.__version__} finds no GPU (it was built for CUDA: {torch.version.cuda}); "
            "this command is for a machine that has one"
        )
    major, minor = torch.cuda.get_device_capability()
    return Card(torch.cuda.get_device_name(), f"{major}{minor}")


def find_tool(name: str) -> str | None:
    """On the PATH or in the usual places of a CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    return shutil.which(name, path=path)


def missing(steps: list[str], path: list[str]) -> list[str]:
    """Packages that the steps need and nobody has installed."""
    sys.path[:0] = path
    importlib.invalidate_caches()
    try:
        needed = {module: package for step in steps for module, package in NEEDS[step].items()}
        return [package for module, package in needed.items() if not present(module, package)]
    finally:
        del sys.path[: len(path)]


def present(module: str, package: str) -> bool:
    """Whether the module can be imported, in the version that ``package>=version`` asks for."""
    name, _, least = package.partition(">=")
    if importlib.util.find_spec(module) is None:
        return False
    try:
        return not least or numbers(version(name)) >= numbers(least)
    except PackageNotFoundError:
        return False


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def install(packages: list[str], wheels: Path, target: Path) -> None:
    """Put packages and what they need from a folder of wheels into ``target``, without network."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels)]
    done = subprocess.run([*command, "--target", str(target), *packages], check=False)
    if done.returncode:
        raise CannotRun(f"pip could not install {', '.join(packages)} from {wheels}")


def commands(step: str, card: Card, out: Path, seconds: float) -> Iterator[Command]:
    """What a step runs, in order."""
    python = sys.executable
    if step == "build":
        yield Command("build", [python, "setup.py", "build_ext", "--inplace"])
    elif step == "tests":
        options = ["-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"]
        yield Command("tests", [python, "-m", "pytest", *options, "tests/kernels"])
    elif step == "sanitizer":
        program = out / "build" / "check_cuda"
        program.parent.mkdir(parents=True, exist_ok=True)
        sources = ["csrc/test/check_cuda.cpp", *sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))]
        options = ["-std=c++17", "-O2", "-lineinfo", f"-gencode=arch=compute_{card.arch},code=sm_{card.arch}"]
        compiler = [find_tool("nvcc") or "nvcc", *options, "-Icsrc/include", "-cudart", "static"]
        yield Command("check_cuda-build", [*compiler, *sources, "-o", str(program)])
        for tool in ("memcheck", "racecheck"):
            checker = [find_tool("compute-sanitizer") or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
            yield Command(tool, [*checker, str(program)])
    else:
        document = out / "kernels-cuda.json"
        bench = [python, "-m", "kdbench", "bench", "kernels"]
        options = ["--device", "cuda", "--seconds", f"{seconds:g}", "--output", str(document)]
        yield Command("kernels-cuda", [*bench, *options])


def run(command: Command, out: Path, environment: dict[str, str]) -> dict[str, object]:
    """Run one command, its output into a log and onto the terminal, and say how it ended."""
    print(f"== {command.name}: {shlex.join(command.arguments)}", flush=True)
    start = time.monotonic()
    with (out / f"{command.name}.log").open("w") as log:
        process = subprocess.Popen(
            command.arguments,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            sys.stdout.write(line)
    status = process.wait()
    seconds = round(time.monotonic() - start, 1)
    print(f"== {command.name}: {'ok' if status == 0 else f'FAILED (exit status {status})'}, {seconds} s", flush=True)
    return {"name": command.name, "status": status, "seconds": seconds, "command": shlex.join(command.arguments)}


def carry_out(steps: list[str], card: Card, out: Path, environment: dict[str, str], seconds: float) -> bool:
    """All steps, one after the other; a failed build ends it. Whether all went well."""
    done: list[dict[str, object]] = []
    for step in steps:
        for command in commands(step, card, out, seconds):
            done.append(run(command, out, environment))
            if done[-1]["status"] != 0 and command.name.endswith("build"):
                break
        failed = [str(entry["name"]) for entry in done if entry["status"] != 0]
        summary = {"gpu": card._asdict(), "steps": done, "failed": failed}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if "build" in failed:
            break
    print(f"== {card.name}: {'failed: ' + ', '.join(failed) if failed else 'all steps ok'}; see {out}")
    return not failed


def prepare(steps: list[str], out: Path, wheels: Path | None, card: Card) -> dict[str, str]:
    """The environment of all commands, once everything that they need is there.

    Raises
    ------
    CannotRun : a package or a tool is missing.
    """
    site = out / "build" / "site"
    lacking = missing(steps, [str(site)])
    if lacking and wheels is not None:
        install(lacking, wheels, site)
        lacking = missing(steps, [str(site)])
    if lacking:
        raise CannotRun(
            f"missing for {sys.executable}: {', '.join(lacking)}; install them, or fetch wheels where there is a "
            f"network (pip download -d wheels {shlex.join(lacking)}) and add --wheels wheels"
        )
    tools = sorted({tool for step in steps for tool in TOOLS[step] if find_tool(tool) is None})
    if tools:
        raise CannotRun(f"missing: {', '.join(tools)}; install a CUDA toolkit, or name it with CUDA_HOME")
    path = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "PYTHONUNBUFFERED": "1",
        "KDBENCH_CUDA": "1",
        "KDBENCH_CUDA_ARCHS": card.arch,
        "KDBENCH_REQUIRE_EXT": "1",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="folder for results")
    parser.add_argument("--steps", default=",".join(NEEDS), help="some of them, with commas (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for packages that are missing here")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a case (default: %(default)s)")
    options = parser.parse_args(arguments)
    steps = [step for step in NEEDS if step in options.steps.split(",")]
    unknown = sorted(set(options.steps.split(",")) - set(NEEDS))
    if unknown:
        parser.error(f"unknown step '{unknown[0]}'; known: {', '.join(NEEDS)}")
    out: Path = options.output.resolve()
    try:
        card = find_card()
        out.mkdir(parents=True, exist_ok=True)
        environment = prepare(steps, out, options.wheels, card)
    except CannotRun as reason:
        print(f"gpu.py: error: {reason}", file=sys.stderr)
        return 1
    return 0 if carry_out(steps, card, out, environment, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())

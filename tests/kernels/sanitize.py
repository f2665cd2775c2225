"""Builds the extension under the address and undefined-behaviour sanitizers and runs the loss tests on it.

    python tests/kernels/sanitize.py [--instruction-sets avx512,avx2,generic] [pytest arguments]

The build goes into a temporary copy of the sources; nothing of this tree changes. Needs g++ with its sanitizers, ninja,
pybind11 and torch; ``tox -e sanitize`` brings the Python part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined"
FLAGS = f"{SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1"
TESTS = ["test_loss_values.py", "test_loss_edges.py", "test_loss_random.py"]


def build(folder: Path) -> None:
    """A copy of the package in ``folder``, with a sanitized module in place."""
    skip = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for name in ("kdbench", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    environment = {
        **os.environ,
        "CXX": "g++",
        "CXXFLAGS": FLAGS,
        "LDFLAGS": SANITIZE,
        "KDBENCH_REQUIRE_EXT": "1",
        "KDBENCH_CUDA": "0",
        "MAX_JOBS": os.environ.get("MAX_JOBS", "2"),
    }
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=environment, check=True
    )


def library(name: str) -> str:
    """Where the compiler keeps a library."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def run_tests(folder: Path, instruction_set: str, arguments: list[str]) -> int:
    """The tests on the copy in ``folder``, with the kernels of one instruction set; 0 where this machine lacks it."""
    environment = {
        **os.environ,
        # Python knows neither; and the sanitizer wants to find the one that throws exceptions when it starts.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they have until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "KDBENCH_ISA": instruction_set,
        "KDBENCH_OPS": "native",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    question = (
        "import torch; from kdbench.ops import native;"
        f"assert native.__file__.startswith({str(folder)!r}), native.__file__;"
        "native.module(); print(native.instruction_set())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", question], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    if answer.stdout.strip() != instruction_set:
        print(f"this machine has no {instruction_set}: not run")
        return 0
    print(f"the tests with {instruction_set}:", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-k", "not reference", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruction-sets", default="avx512,avx2,generic", help="comma-separated")
    options, arguments = parser.parse_known_args()
    arguments = arguments or [str(ROOT / "tests/kernels" / name) for name in TESTS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        build(folder)
        return max(run_tests(folder, each, arguments) for each in options.instruction_sets.split(","))


if __name__ == "__main__":
    sys.exit(main())

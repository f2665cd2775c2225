"""The CPU kernels and the pool of gradient buffers as native programs under sanitizers; no Python, no torch in them.

``tox -e sanitize`` runs the Python tests on a sanitized module as well (``tests/kernels/sanitize.py``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Unoptimised: what is read and written is the same, and the compiler is done in a third of the time.
KERNEL_FLAGS = ["-O0", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WIDER = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}


def compiler_with(sanitizer: list[str], folder: Path) -> list[str]:
    """A compiler that has this sanitizer and OpenMP, with its flags."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not (ROOT / "csrc").is_dir():
        pytest.skip("no C++ compiler, or no sources")
    command = [compiler, *sanitizer, "-std=c++17", "-g1", "-I", str(ROOT / "csrc/include")]
    (folder / "probe.cpp").write_text("int main() { return 0; }")
    for attempt in ([*command, "-fopenmp", "probe.cpp", "-o", "probe"], ["./probe"]):
        if subprocess.run(attempt, cwd=folder, capture_output=True, check=False).returncode:
            pytest.skip(f"the compiler has no OpenMP, or {sanitizer[0]} does not work here")
    return command


def compile_all(command: list[str], sources: dict[str, list[str]], folder: Path) -> list[str]:
    """Objects of sources, each with its own flags."""

    def compile_one(source: str) -> str:
        made = f"{Path(source).stem}.o"
        done = subprocess.run(
            [*command, *sources[source], "-c", str(ROOT / source), "-o", made],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


@pytest.fixture(scope="module")
def kernels_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels and csrc/test/check.cpp under the address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    command = compiler_with(ADDRESS, folder)
    have = ["-DKD_HAVE_AVX2", "-DKD_HAVE_AVX512"] if X86 else []
    names = ["generic", *(WIDER if X86 else {})]
    sources = {f"csrc/cpu/kernel_{name}.cpp": [*KERNEL_FLAGS, *have, *WIDER.get(name, [])] for name in names}
    sources |= {"csrc/cpu/dispatch.cpp": [*KERNEL_FLAGS, *have], "csrc/test/check.cpp": ["-O1"]}
    objects = compile_all(command, sources, folder)
    subprocess.run([*command, "-fopenmp", *objects, "-o", "check"], cwd=folder, check=True)
    return folder / "check"


def run(program: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(program)], env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_touch_only_what_is_theirs_and_are_right(kernels_program):
    """Odd sizes, all dtypes, all instruction sets and all features, in buffers that end where the data ends."""
    report = run(kernels_program, OMP_NUM_THREADS="2", KDBENCH_ISA="generic")
    assert "generic; began with generic" in report
    assert int(report.split()[1]) > 2000  # cases


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD], ids=["address", "thread"])
def test_the_pool_under_two_threads(tmp_path, sanitizer):
    command = [*compiler_with(sanitizer, tmp_path), "-pthread"]
    sources = {"csrc/cpu/pool.cpp": ["-O1"], "csrc/test/check_pool.cpp": ["-O1"]}
    objects = compile_all(command, sources, tmp_path)
    subprocess.run([*command, *objects, "-o", "check_pool"], cwd=tmp_path, check=True)
    assert run(tmp_path / "check_pool") == "ok\n"

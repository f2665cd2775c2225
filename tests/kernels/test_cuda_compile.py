"""The CUDA kernels where there is no device: compiled by nvcc, and executed on the CPU.

``csrc/test/cuda_shim.h`` runs every thread of a block or cluster as a fiber, so that the kernels' own code is held
against a reference over all of its paths. What only a device can show is left to ``csrc/test/check_cuda.cpp`` on one.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))

pytestmark = pytest.mark.skipif(not SOURCES, reason="the tests run without the source tree")


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def find_nvcc() -> str:
    """nvcc, or a skipped test."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if found is None:
        pytest.skip("nvcc was not found")
    return found


def read_report(text: str) -> list:
    return runpy.run_path(str(ROOT / "csrc/cuda/resources.py"))["read_report"](text)


def test_no_kernel_spills_registers(tmp_path):
    command = [find_nvcc(), "-std=c++17", "-O3", "-Xptxas=-v", "-fatbin", f"-I{ROOT / 'csrc/include'}"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda source: run([*command, str(source), "-o", f"{source.stem}.fatbin"], tmp_path), SOURCES)
        report = [kernel for text in said for kernel in read_report(text)]
    assert {kernel.arch for kernel in report} == {"sm_80", "sm_90"}
    names = {kernel.kernel for kernel in report}
    assert len(report) == 2 * len(names)
    dense = {
        f"dense_kernel<{dtype}, {teacher}>" for dtype in ("float", "Bf16", "Fp16") for teacher in ("true", "false")
    }
    assert names > dense
    assert not [kernel for kernel in report if kernel.spilled or kernel.stack or kernel.registers > 255]


def test_the_report_shows_spills():
    symbol = "_ZN2kd4cuda12dense_kernelINS0_4Fp16ELb1EEEvNS0_7ProblemE"
    (kernel,) = read_report(
        f"ptxas info    : Compiling entry function '{symbol}' for 'sm_90'\n"
        f"ptxas info    : Function properties for {symbol}\n"
        "    16 bytes stack frame, 12 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 96 registers, used 1 barriers\n"
    )
    assert kernel == ("dense_kernel<Fp16, true>", "sm_90", 96, 16, 40)


def emulator(folder: Path, *flags: str) -> Path:
    """The kernels and csrc/test/check_cuda.cpp as one program for this machine."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the emulation needs g++ and Linux")
    # 16-byte words are read and written over numbers of other types, as on a device.
    command = [compiler, "-std=c++17", "-O1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", *flags]
    (folder / "probe.cpp").write_text("int main() { return 0; }")
    for probe in ([*command, "probe.cpp", "-o", "probe"], ["./probe"]):
        if subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode:
            pytest.skip(f"the compiler does not work with {' '.join(flags)}")
    command += ["-Wno-unknown-pragmas", "-DKD_EMULATE", *(f"-I{ROOT / 'csrc' / name}" for name in ("include", "test"))]
    sources = [*SOURCES, ROOT / "csrc/test/check_cuda.cpp"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda source: run([*command, "-x", "c++", "-c", str(source)], folder), sources))
    run([compiler, *flags, *(f"{source.stem}.o" for source in sources), "-o", "emulated"], folder)
    return folder / "emulated"


def test_the_kernels_compute_what_the_reference_does(tmp_path):
    assert "ok: one in 1 of" in run([str(emulator(tmp_path))], tmp_path)


@pytest.mark.slow
def test_the_kernels_touch_only_their_memory(tmp_path):
    program = emulator(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert "ok" in run([str(program), "19"], tmp_path)


@pytest.mark.slow
def test_the_threads_of_a_kernel_do_not_race(tmp_path):
    # What a barrier is missing for shows in nearly every case; the thread sanitizer needs its time for each.
    assert "ok" in run([str(emulator(tmp_path, "-fsanitize=thread")), "211"], tmp_path)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [({"CUDA_HOME": "/nowhere"}, "nvcc was not found"), ({"KDBENCH_CUDA_ARCHS": "7"}, "KDBENCH_CUDA_ARCHS='7'")],
)
def test_kernels_that_are_demanded_and_cannot_be_built_are_an_error(tmp_path, environment, complaint):
    pytest.importorskip("setuptools")
    if "CUDA_HOME" not in environment:
        find_nvcc()
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}/lib", f"--build-temp={tmp_path}/tmp"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "KDBENCH_REQUIRE_EXT": "", "KDBENCH_CUDA": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "KDBENCH_CUDA is set" in done.stderr
    assert complaint in done.stderr

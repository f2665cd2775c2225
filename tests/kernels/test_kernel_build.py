"""Building: without a compiler, on request not at all, on demand or fail; and what is known about it without torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Runs the extension's build step out of place; returns its outcome and the folder of ``kdbench.ops``."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("the tests run without the source tree")
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/tmp"]
    hidden = ("KDBENCH_NO_EXT", "KDBENCH_REQUIRE_EXT", "CC", "CXX")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    return done, folder / "lib/kdbench/ops"


def test_without_a_compiler_the_package_is_pure_python_and_says_why(tmp_path):
    done, made = build(tmp_path, CC="/nowhere/cc", CXX="/nowhere/c++")
    assert done.returncode == 0, done.stderr
    assert "NOT built" in done.stderr
    assert "/nowhere/c++" in done.stderr
    record = json.loads((made / "_build_info.json").read_text())
    assert record["built"] is False
    assert "/nowhere/c++" in record["reason"]
    assert [path.name for path in made.iterdir()] == ["_build_info.json"]

    package = tmp_path / "package/kdbench"
    shutil.copytree(ROOT / "kdbench", package, ignore=shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__"))
    shutil.copy(made / "_build_info.json", package / "ops")
    program = (
        "import kdbench.ops as ops; info = ops.build_info();"
        "assert info['built'] is False and '/nowhere/c++' in info['reason'], info;"
        "assert ops.implementation() == 'reference';"
        "import sys; assert 'torch' not in sys.modules;"
        "import torch; from kdbench.losses import kl;"
        "assert kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature=1.0).item() == 0"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    environment.pop("KDBENCH_OPS", None)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


def test_the_extension_can_be_left_out(tmp_path):
    done, made = build(tmp_path, KDBENCH_NO_EXT="1")
    assert done.returncode == 0, done.stderr
    assert "KDBENCH_NO_EXT" in json.loads((made / "_build_info.json").read_text())["reason"]


@pytest.mark.parametrize("why", [{"CXX": "/nowhere/c++"}, {"KDBENCH_NO_EXT": "1"}])
def test_the_extension_can_be_required(tmp_path, why):
    done, made = build(tmp_path, KDBENCH_REQUIRE_EXT="1", **why)
    assert done.returncode != 0
    assert "KDBENCH_REQUIRE_EXT is set" in done.stderr
    assert not (made / "_build_info.json").exists()


def test_asking_about_the_build_does_not_import_torch():
    program = (
        "import sys, kdbench.ops as ops; info = ops.build_info(); ops.implementation();"
        "assert set(info) >= {'built', 'reason', 'compiler', 'openmp', 'path'}, info;"
        "assert info['built'] or info['reason'];"
        "assert 'torch' not in sys.modules and 'kdbench.ops._native' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_an_unknown_choice_is_refused(monkeypatch):
    from kdbench.errors import KdbenchError
    from kdbench.ops import implementation

    monkeypatch.setenv("KDBENCH_OPS", "refrence")
    with pytest.raises(KdbenchError, match="did you mean 'reference'"):
        implementation()


@pytest.mark.parametrize("failing", ["missing", "broken"])
def test_demanding_a_kernel_that_cannot_be_used_is_an_error(monkeypatch, failing):
    from kdbench import ops
    from kdbench.errors import KdbenchError
    from kdbench.ops import native

    if failing == "missing":
        monkeypatch.setattr(ops, "_module_path", lambda: None)
        monkeypatch.setattr(ops, "_build_record", lambda: {"built": False, "reason": "because"})
    else:
        monkeypatch.setattr(ops, "_module_path", lambda: "somewhere/_native.so")
        monkeypatch.setattr(native, "_load", lambda: (None, "because"))
    monkeypatch.delenv("KDBENCH_OPS", raising=False)
    assert ops.implementation() == "reference"
    assert ops.build_info()["reason"] == "because"
    monkeypatch.setenv("KDBENCH_OPS", "cpu")
    with pytest.raises(KdbenchError, match="because"):
        ops.implementation()


@pytest.fixture(scope="module")
def sanitized_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels and csrc/test/check.cpp under the address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not (ROOT / "csrc").is_dir():
        pytest.skip("no C++ compiler, or no sources")
    sanitize = [compiler, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp"]
    (folder / "probe.cpp").write_text("int main() { return 0; }")
    probe = subprocess.run([*sanitize, "probe.cpp", "-o", "probe"], cwd=folder, capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("the compiler has no sanitizers or no OpenMP")
    flags = ["-std=c++17", "-O1", "-g", "-I", str(ROOT / "csrc/include")]
    sources = {"csrc/cpu/dispatch.cpp": [], "csrc/cpu/kernel_generic.cpp": [], "csrc/test/check.cpp": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        flags.append("-DKD_HAVE_AVX2")
        sources["csrc/cpu/kernel_avx2.cpp"] = ["-mavx2"]
    for source, own in sources.items():
        subprocess.run([*sanitize, *flags, *own, "-c", str(ROOT / source)], cwd=folder, check=True)
    objects = [f"{Path(source).stem}.o" for source in sources]
    subprocess.run([*sanitize, *objects, "-o", "check"], cwd=folder, check=True)
    return folder / "check"


@pytest.mark.parametrize("instruction_set", ["widest", "generic"])
def test_memory_is_touched_only_where_it_belongs(sanitized_program, instruction_set):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "KDBENCH_ISA": instruction_set}
    done = subprocess.run([str(sanitized_program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert instruction_set == "widest" or "ok on generic" in done.stdout

"""Building: without a compiler, on request not at all, on demand or fail; what it leaves, and what is known of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
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
        "assert set(info) == {'built', 'reason', 'compiler', 'openmp', 'instruction_sets', 'instruction_set', 'cuda',"
        "                     'cuda_reason', 'path', 'sources', 'commit'}, info;"
        "assert info['instruction_set'] is None;"
        "assert info['built'] or info['reason'];"
        "assert 'torch' not in sys.modules and 'kdbench.ops._native' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets KDBENCH_OPS for this test; it is read once a process otherwise."""
    from kdbench import ops

    def wish(choice: str) -> None:
        monkeypatch.setenv("KDBENCH_OPS", choice)
        ops._from_environment.cache_clear()

    yield wish
    monkeypatch.undo()
    ops._from_environment.cache_clear()


def test_an_unknown_choice_is_refused(choose):
    from kdbench.errors import KdbenchError
    from kdbench.ops import implementation

    choose("refrence")
    with pytest.raises(KdbenchError, match="did you mean 'reference'"):
        implementation()


@pytest.mark.parametrize("failing", ["missing", "broken"])
def test_demanding_a_kernel_that_cannot_be_used_is_an_error(monkeypatch, choose, failing):
    from kdbench import ops
    from kdbench.errors import KdbenchError
    from kdbench.ops import native

    if failing == "missing":
        monkeypatch.setattr(ops, "_module_path", lambda: None)
        monkeypatch.setattr(ops, "_build_record", lambda: {"built": False, "reason": "because"})
    else:
        monkeypatch.setattr(ops, "_module_path", lambda: "somewhere/_native.so")
        monkeypatch.setattr(native, "_load", lambda: (None, "because"))
    choose("auto")
    assert ops.implementation() == "reference"
    assert ops.build_info()["reason"] == "because"
    choose("native")
    with pytest.raises(KdbenchError, match="because"):
        ops.implementation()


# ---- what a build leaves --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tmp``, the objects of a build without CUDA, and ``lib``, the module and its record."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("built")
    done, _ = build(folder, KDBENCH_REQUIRE_EXT="1", KDBENCH_CUDA="0")
    assert done.returncode == 0, done.stderr
    return folder


def module_of(folder: Path) -> Path:
    (module,) = (folder / "lib/kdbench/ops").glob("_native*.so")
    return module


def symbols(*arguments: str) -> list[list[str]]:
    """What nm prints, split into columns."""
    if not shutil.which("nm"):
        pytest.skip("no nm")
    done = subprocess.run(["nm", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines() if line]


@pytest.mark.slow
def test_kernel_objects_share_no_functions(built):
    """An inline function outside an anonymous namespace is a weak symbol in every object that uses it.

    The linker keeps one of them: perhaps the one that was compiled for AVX-512, for a machine that has none.
    """
    objects = sorted((built / "tmp").rglob("*kernel_*.o"))
    assert objects
    for each in objects:
        weak = {columns[-1] for columns in symbols(str(each)) if columns[-2] in "WwVvui"}
        assert weak <= {"DW.ref.__gxx_personality_v0"}, f"{each.name}: {weak}"
        defined = {columns[-1] for columns in symbols("--defined-only", "--extern-only", str(each))}
        assert [name for name in defined - weak if "_kernels" not in name] == [], f"{each.name}: {defined}"


@pytest.mark.slow
def test_the_module_knows_nothing_of_torch(built):
    module = str(module_of(built))
    undefined = {columns[-1] for columns in symbols("-D", "--undefined-only", module)}
    assert undefined
    foreign = ("N2at", "N3c10", "N5torch", "aoti_torch", "torch_", "THP")
    assert not [name for name in undefined if any(part in name for part in foreign)]
    if shutil.which("readelf"):
        needed = subprocess.run(["readelf", "-d", module], stdout=subprocess.PIPE, text=True, check=True).stdout
        libraries = [line for line in needed.splitlines() if "NEEDED" in line]
        assert libraries
        assert not [line for line in libraries if "torch" in line or "c10" in line or "cuda" in line]
    exported = {columns[-1] for columns in symbols("-D", "--defined-only", module)}
    assert {"PyInit__native"} <= exported
    assert not [name for name in exported if "kernel" in name], "kernels are nobody else's to call"


@pytest.mark.slow
def test_the_module_loads_where_there_is_no_torch(built):
    program = (
        "import sys; sys.modules['torch'] = None;"  # importing it fails
        "import importlib.util as u;"
        f"spec = u.spec_from_file_location('kdbench.ops._native', {str(module_of(built))!r});"
        "native = u.module_from_spec(spec); spec.loader.exec_module(native);"
        "assert native.api_level == 2 and native.isa() in ('avx512', 'avx2', 'generic') and not native.cuda;"
        "native.force_isa('generic'); assert native.isa() == 'generic'; native.force_isa(None);"
        "assert native.pool_statistics()['used_bytes'] == 0; native.pool_trim()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_the_record_says_what_was_built(built):
    record = json.loads((built / "lib/kdbench/ops/_build_info.json").read_text())
    assert record["built"] is True
    assert record["reason"] is None
    assert record["compiler"]
    assert record["cuda"] is None
    assert "KDBENCH_CUDA" in record["cuda_reason"]
    assert record["instruction_sets"][-1] == "generic"
    assert len(record["sources"]) == 16


# ---- a module that does not fit -------------------------------------------------------------------------------------


def test_a_torch_without_an_exchange_table_is_named(monkeypatch, native):
    from kdbench.ops import native as kernels

    monkeypatch.setattr(kernels, "Tensor", type("Tensor", (), {}))
    module, reason = kernels._load.__wrapped__()
    assert module is None
    assert "has no DLPack exchange table (torch 2.11 and newer do)" in reason


def test_a_module_of_another_level_is_named(monkeypatch, native):
    from kdbench.ops import native as kernels

    monkeypatch.setattr(kernels, "_API_LEVEL", 99)
    module, reason = kernels._load.__wrapped__()
    assert module is None
    assert "API level 2, not 99: build it again" in reason


def test_what_is_used_is_known_once_torch_is_there(native):
    from kdbench.ops import build_info
    from kdbench.ops import native as kernels

    info = build_info()
    assert info["built"] is True
    assert info["reason"] is None
    assert info["instruction_set"] == kernels.instruction_set()

"""Builds ``kdbench.ops._native`` with ninja; everything else about the package stands in pyproject.toml.

Without a compiler the package installs all the same, in plain Python, and says why: in a warning now, and in
``kdbench/ops/_build_info.json`` for whoever asks later. Environment:

KDBENCH_NO_EXT=1        do not build the extension
KDBENCH_REQUIRE_EXT=1   fail where it cannot be built
CXX, CXXFLAGS, LDFLAGS  compiler and additional flags
MAX_JOBS                how many compilers run at once
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NAME = "kdbench.ops._native"

COMMON_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-I{ROOT / 'csrc/include'}"]
# Results must not depend on how a compiler rearranges: no -ffast-math, no fused multiply-add (equal logits would then
# not cancel to exactly 0), no -march=native (a wheel runs on other machines). The two -fno flags change no result;
# they let loops with selects become vector code.
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]

X86 = platform.machine().lower() in ("x86_64", "amd64")

SOURCES: dict[str, list[str]] = {  # each object's own flags, so that an instruction set can have its own file
    "csrc/cpu/dispatch.cpp": [*KERNEL_FLAGS, *(["-DKD_HAVE_AVX2"] if X86 else [])],
    "csrc/cpu/kernel_generic.cpp": KERNEL_FLAGS,
    "csrc/bind/module.cpp": [],
}
if X86:
    SOURCES["csrc/cpu/kernel_avx2.cpp"] = [*KERNEL_FLAGS, "-DKD_HAVE_AVX2", "-mavx2"]


def sources_digest(tools: Toolchain) -> str:
    """Version of the kernels, part of every stage's identity: whatever can decide the last bits of a loss."""
    compiler = subprocess.run([*tools.cxx, "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
    flags = [KERNEL_FLAGS, tools.cxxflags, tools.ldflags, compiler.splitlines()[:1]]
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file() and path.parent.name != "test":
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """The commit that is being built, ``+`` behind it where the tree holds more; empty outside a repository."""
    try:
        git = ["git", "-C", str(ROOT)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "check": True}
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


class CannotBuild(Exception):
    """Why there will be no extension."""


def flag(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "no")


def run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise CannotBuild(f"{what}: {error}") from error
    if done.returncode:
        raise CannotBuild(f"{what} (exit status {done.returncode}):\n{done.stdout.strip()[-2000:]}")


class Toolchain:
    """The compiler, and what was found out about it."""

    def __init__(self) -> None:
        self.cxx = shlex.split(os.environ.get("CXX", "")) or self._find()
        self.cxxflags = shlex.split(os.environ.get("CPPFLAGS", "")) + shlex.split(os.environ.get("CXXFLAGS", ""))
        self.ldflags = shlex.split(os.environ.get("LDFLAGS", ""))
        mac = ["-bundle", "-undefined", "dynamic_lookup"]
        self.shared = mac if sys.platform == "darwin" else ["-shared"]
        self._links("int main() { return 0; }", [], f"the C++ compiler '{shlex.join(self.cxx)}' does not work")
        self.openmp = self._has_openmp()

    @staticmethod
    def _find() -> list[str]:
        for name in ("c++", "g++", "clang++"):
            if shutil.which(name):
                return [name]
        raise CannotBuild("no C++ compiler was found (looked for c++, g++, clang++; CXX names another)")

    def _has_openmp(self) -> bool:
        try:
            self._links("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }", ["-fopenmp"], "")
        except CannotBuild:
            return False
        return True

    def _links(self, program: str, flags: list[str], what: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(program)
            command = [*self.cxx, *self.cxxflags, *flags, str(source), "-o", str(source.with_suffix("")), *self.ldflags]
            run(command, what)


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")
    if not found:
        raise CannotBuild("ninja was not found (pip install ninja)")
    return found


def binding_flags() -> list[str]:
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild("pybind11 was not found (pip install 'pybind11>=2.13')") from error
    return ["-I", pybind11.get_include(), "-I", sysconfig.get_path("include")]


def ninja_path(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_command(parts: list[str]) -> str:
    return shlex.join(parts).replace("$", "$$")


def ninja_file(tools: Toolchain, folder: Path, target: Path) -> str:
    """The text of build.ninja: one compile line an object, with that object's flags, and one link line."""
    openmp = ["-fopenmp"] if tools.openmp else []
    lines = [
        "rule compile",
        "  command = $compiler -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $linker",
    ]
    objects = []
    for source, own in SOURCES.items():
        extra = binding_flags() if source.startswith("csrc/bind/") else []
        made = folder / (Path(source).stem + ".o")
        objects.append(made)
        command = [*tools.cxx, *COMMON_FLAGS, *own, *openmp, *extra, *tools.cxxflags]
        lines += [
            f"build {ninja_path(made)}: compile {ninja_path(ROOT / source)}",
            f"  compiler = {ninja_command(command)}",
        ]
    link = [*tools.cxx, *tools.shared, *map(str, objects), "-o", str(target), *openmp, *tools.ldflags]
    inputs = " ".join(map(ninja_path, objects))
    lines += [f"build {ninja_path(target)}: link {inputs}", f"  linker = {ninja_command(link)}"]
    return "\n".join(lines) + "\n"


class BuildNative(build_ext):
    """Builds the one extension through ninja, or says why not and leaves it out."""

    def build_extensions(self) -> None:
        target = Path(self.get_ext_fullpath(NAME)).resolve()
        self.info = target.parent / "_build_info.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if flag("KDBENCH_NO_EXT"):
                raise CannotBuild("KDBENCH_NO_EXT was set when the package was built")
            record = self._build(target)
        except CannotBuild as error:
            if flag("KDBENCH_REQUIRE_EXT"):
                raise SystemExit(f"kdbench: KDBENCH_REQUIRE_EXT is set, but no extension was built: {error}") from None
            self.warn(f"kdbench: the native kernels were NOT built, plain torch is used instead. Reason: {error}")
            record = {"built": False, "reason": str(error)}
            self.extensions = []
            target.unlink(missing_ok=True)
        record["commit"] = commit()
        self.info.write_text(json.dumps(record, indent=2) + "\n")

    def _build(self, target: Path) -> dict[str, object]:
        tools = Toolchain()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(tools, folder, target))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        run([find_ninja(), "-C", str(folder), *jobs], "the native kernels do not compile")
        return {
            "built": True,
            "reason": None,
            "compiler": shlex.join(tools.cxx),
            "openmp": tools.openmp,
            "sources": sources_digest(tools),
        }

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: bring the record along, and let no extension of an earlier build survive it."""
        super().copy_extensions_to_source()
        home = ROOT / "kdbench/ops"
        shutil.copyfile(self.info, home / self.info.name)
        if not self.extensions:
            (home / self.get_ext_filename("_native")).unlink(missing_ok=True)


setup(ext_modules=[Extension(NAME, sources=list(SOURCES))], cmdclass={"build_ext": BuildNative})

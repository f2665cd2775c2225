"""Builds ``kdbench.ops._native`` with ninja; everything else about the package stands in pyproject.toml.

Without a compiler the package installs all the same, in plain Python, and says why: in a warning now, and in
``kdbench/ops/_build_info.json`` for whoever asks later. With nvcc the module holds CUDA kernels too; they need neither
torch nor a GPU to build, and lie dormant where there is no driver. Environment:

KDBENCH_NO_EXT=1        do not build the extension
KDBENCH_REQUIRE_EXT=1   fail where it cannot be built
KDBENCH_CUDA            0: leave the CUDA kernels out, 1: fail without them; else they are built where nvcc is found
KDBENCH_CUDA_ARCHS      compute capabilities, "80;90"; by default all of 80 86 89 90 100 120 that nvcc knows. There is
                        machine code for each, and PTX for those that lie between or come after
CUDA_HOME               where the CUDA toolkit is; else nvcc is looked for on the PATH and in /usr/local/cuda
NVCC_APPEND_FLAGS       additional flags of nvcc, and others that it reads itself
CXX, CXXFLAGS, LDFLAGS  compiler and additional flags
MAX_JOBS                how many compilers run at once
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import runpy
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
# Results must not depend on how a compiler rearranges: no -ffast-math, no fused multiply-add that is not spelled out
# (equal logits would then not cancel to exactly 0), no -march=native (a wheel runs on other machines). The two -fno
# flags change no result; they let loops with selects become vector code.
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]

X86 = platform.machine().lower() in ("x86_64", "amd64")
HAVE = ["-DKD_HAVE_AVX2", "-DKD_HAVE_AVX512"] if X86 else []

SOURCES: dict[str, list[str]] = {  # each object's own flags, so that an instruction set can have its own file
    "csrc/cpu/dispatch.cpp": [*KERNEL_FLAGS, *HAVE],
    "csrc/cpu/kernel_generic.cpp": [*KERNEL_FLAGS, *HAVE],
    "csrc/cpu/pool.cpp": [],
    "csrc/bind/module.cpp": [],
    "csrc/bind/loss.cpp": [],
    "csrc/bind/tensors.cpp": [],
}
if X86:
    SOURCES["csrc/cpu/kernel_avx2.cpp"] = [*KERNEL_FLAGS, *HAVE, "-mavx2", "-mfma", "-mf16c"]
    SOURCES["csrc/cpu/kernel_avx512.cpp"] = [
        *KERNEL_FLAGS,
        *HAVE,
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),  # of gcc's own intrinsics
    ]

CUDA_ARCHS = (80, 86, 89, 90, 100, 120)
read_report = runpy.run_path(str(ROOT / "csrc/cuda/resources.py"))["read_report"]


def sources_digest(tools: Toolchain, cuda: Cuda | None) -> str:
    """Version of the kernels, part of every stage's identity: whatever can decide the last bits of a loss."""
    compiler = subprocess.run([*tools.cxx, "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
    flags = [KERNEL_FLAGS, tools.cxxflags, tools.ldflags, compiler.splitlines()[:1]]
    skipped = {"test"}
    if cuda is None:
        skipped.add("cuda")
    else:
        read_by_nvcc = [os.environ.get(name, "") for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")]
        flags += [cuda.flags, [cuda.version], read_by_nvcc]
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".h", ".cpp", ".cuh", ".cu") and path.parent.name not in skipped:
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


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise CannotBuild(f"{what}: {error}") from error
    if done.returncode:
        said = done.stdout.strip()
        complaints = [line for line in said.splitlines() if re.search(r"\berror\b|\bfatal\b", line)]
        raise CannotBuild(f"{what} (exit status {done.returncode}):\n" + ("\n".join(complaints[:5]) or said[-2000:]))


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


class Cuda:
    """nvcc, and how it is called."""

    def __init__(self, nvcc: str, tools: Toolchain) -> None:
        self.nvcc = nvcc
        said = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
        found = re.search(r"release ([\d.]+)", said)
        if found is None:
            raise CannotBuild(f"'{nvcc}' does not work")
        self.version = found[1]
        self.archs = self._archs()
        self.runtime = self._runtime()
        host = ["-ccbin", tools.cxx[0]] if os.environ.get("CXX") else []
        self.flags = ["-std=c++17", "-O3", "-Xptxas=-v", *self._codes()]  # and no --use_fast_math
        # Where there are more processors than sources, each nvcc compiles for several architectures at once.
        threads = max(1, jobs() // max(1, len(self.sources())))
        here = [f"--threads={threads}", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc/include'}"]
        self.command = [nvcc, *host, *self.flags, *here]

    @classmethod
    def find(cls, tools: Toolchain) -> Cuda | None:
        """None where it is not wanted or not there; CannotBuild where it is demanded and not there."""
        wish = os.environ.get("KDBENCH_CUDA", "")
        if wish and not flag("KDBENCH_CUDA"):
            return None
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
        nvcc = next(filter(None, map(shutil.which, places)), None)
        if nvcc is None:
            if wish:
                raise CannotBuild(f"KDBENCH_CUDA is set, but nvcc was not found (looked for {', '.join(places)})")
            return None
        return cls(nvcc, tools)

    def _archs(self) -> list[int]:
        listed = subprocess.run([self.nvcc, "--list-gpu-arch"], stdout=subprocess.PIPE, text=True, check=False).stdout
        known = {arch for arch in map(int, re.findall(r"compute_(\d+)\b", listed)) if arch >= CUDA_ARCHS[0]}
        wish = os.environ.get("KDBENCH_CUDA_ARCHS", "")
        if not wish:
            return [arch for arch in CUDA_ARCHS if arch in known]
        wanted = re.findall(r"\d+", wish.replace(".", ""))
        unknown = sorted({int(arch) for arch in wanted} - known)
        if unknown or not wanted:
            raise CannotBuild(
                f"KDBENCH_CUDA_ARCHS={wish!r} names {unknown or 'nothing'}; possible here: {sorted(known)}"
            )
        return sorted({int(arch) for arch in wanted})

    def _codes(self) -> list[str]:
        """Two compilations, since 9.0 is the one step that the sources know, and machine code for each from these."""
        codes = []
        for archs in ([arch for arch in self.archs if arch < 90], [arch for arch in self.archs if arch >= 90]):
            made = [f"sm_{arch}" for arch in archs]
            if self.archs[-1] in archs:
                made.append(f"compute_{archs[0]}")
            if made:
                codes.append(f"-gencode=arch=compute_{archs[0]},code=[{','.join(made)}]")
        return codes

    def _runtime(self) -> str:
        # The nvcc on the path may be a wrapper; where its toolkit lies only it knows.
        dry = [self.nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
        said = subprocess.run(dry, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
        top = re.search(r"#\$ TOP=(.+)", said)
        root = Path(top[1].strip()) if top else Path(self.nvcc).resolve().parents[1]
        for folder in ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"):
            if (root / folder / "libcudart_static.a").is_file():
                return str(root / folder / "libcudart_static.a")
        raise CannotBuild(f"libcudart_static.a was not found below {root}")

    def sources(self) -> list[Path]:
        return sorted((ROOT / "csrc/cuda").glob("*.cu"))

    def report(self, folder: Path) -> dict[str, object]:
        """What ptxas said: kernels (one an architecture), registers of the most demanding, bytes spilled by all."""
        said = "".join((folder / f"cuda_{path.stem}.log").read_text(errors="replace") for path in self.sources())
        found = read_report(said)
        registers: dict[str, int] = {}
        for each in found:
            registers[each.kernel] = max(each.registers, registers.get(each.kernel, 0))
        return {
            "kernels": len(found),
            "most_registers": max(registers.values(), default=0),
            "spilled_bytes": sum(each.spilled for each in found),
            "registers": dict(sorted(registers.items())),
        }


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


def ninja_file(tools: Toolchain, cuda: Cuda | None, folder: Path, target: Path) -> str:
    """The text of build.ninja: one compile line an object, with that object's flags, and one link line."""
    openmp = ["-fopenmp"] if tools.openmp else []
    lines = [
        "rule compile",
        "  command = $compiler -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",  # what ptxas reports is kept beside the object
        "  command = $compiler -MMD -MF $out.d -c $in -o $out > $log 2>&1 || { cat $log; false; }",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $linker",
    ]
    objects, device_objects = [], []
    for source, own in SOURCES.items():
        extra = [*binding_flags(), *(["-DKD_HAVE_CUDA"] if cuda else [])] if source.startswith("csrc/bind/") else []
        made = folder / f"{source.replace('/', '_')}.o"
        objects.append(made)
        command = [*tools.cxx, *COMMON_FLAGS, *own, *openmp, *extra, *tools.cxxflags]
        lines += [
            f"build {ninja_path(made)}: compile {ninja_path(ROOT / source)}",
            f"  compiler = {ninja_command(command)}",
        ]
    for path in cuda.sources() if cuda else ():
        made = folder / f"cuda_{path.stem}.o"
        device_objects.append(made)
        lines += [
            f"build {ninja_path(made)}: nvcc {ninja_path(path)}",
            f"  compiler = {ninja_command(cuda.command)}",
            f"  log = {ninja_path(made.with_suffix('.log'))}",
        ]
    # The runtime stays private to the module: torch brings one of its own.
    runtime = ["-Wl,--exclude-libs,ALL", cuda.runtime, "-ldl", "-lrt", "-lpthread"] if cuda else []
    everything = [*objects, *device_objects]
    link = [*tools.cxx, *tools.shared, *map(str, everything), "-o", str(target), *runtime, *openmp, *tools.ldflags]
    inputs = " ".join(map(ninja_path, everything))
    lines += [
        f"build {ninja_path(target)}: link {inputs}",
        f"  linker = {ninja_command(link)}",
    ]
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
            for name in filter(flag, ("KDBENCH_REQUIRE_EXT", "KDBENCH_CUDA")):
                raise SystemExit(f"kdbench: {name} is set, but no extension was built: {error}") from None
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
        cuda, cuda_reason = self._find_cuda(tools)
        try:
            self._ninja(tools, cuda, folder, target)
        except CannotBuild as error:  # what fails with nvcc must not cost the CPU kernels
            if cuda is None or flag("KDBENCH_CUDA"):
                raise
            cuda, cuda_reason = None, str(error)
            self._ninja(tools, cuda, folder, target)
            self.warn(f"kdbench: the CUDA kernels were NOT built. Reason: {error}")
        return {
            "built": True,
            "reason": None,
            "compiler": shlex.join(tools.cxx),
            "openmp": tools.openmp,
            "instruction_sets": ["avx512", "avx2", "generic"] if X86 else ["generic"],
            "cuda": None if cuda is None else {"nvcc": cuda.version, "archs": cuda.archs, **cuda.report(folder)},
            "cuda_reason": cuda_reason,
            "sources": sources_digest(tools, cuda),
        }

    def _find_cuda(self, tools: Toolchain) -> tuple[Cuda | None, str | None]:
        """nvcc, or why there will be no CUDA kernels."""
        try:
            cuda = Cuda.find(tools)
        except CannotBuild as error:
            if flag("KDBENCH_CUDA"):
                raise
            self.warn(f"kdbench: the CUDA kernels are NOT built. Reason: {error}")
            return None, str(error)
        if cuda is not None:
            return cuda, None
        return None, "KDBENCH_CUDA=0 when the package was built" if os.environ.get("KDBENCH_CUDA") else "no nvcc"

    def _ninja(self, tools: Toolchain, cuda: Cuda | None, folder: Path, target: Path) -> None:
        (folder / "build.ninja").write_text(ninja_file(tools, cuda, folder, target))
        run([find_ninja(), "-C", str(folder), "-k", "0", "-j", str(jobs())], "the native kernels do not compile")

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: bring the record along, and let no extension of an earlier build survive it."""
        super().copy_extensions_to_source()
        home = ROOT / "kdbench/ops"
        shutil.copyfile(self.info, home / self.info.name)
        if not self.extensions:
            (home / self.get_ext_filename("_native")).unlink(missing_ok=True)


setup(ext_modules=[Extension(NAME, sources=list(SOURCES))], cmdclass={"build_ext": BuildNative})

"""Builds the CUDA kernels for the host: `python -m tools.emulated [--mode MODE] [TARGET ...]` (docs/emulation.md).

Modes:
    plain    numbers, deadlocks and launch errors
    traffic  counts the memory traffic of every kernel
    asan     AddressSanitizer and UndefinedBehaviorSanitizer: accesses out of bounds, misaligned vectors
    tsan     ThreadSanitizer: races that no barrier, fence or atomic orders

Targets:
    library    (plain, traffic) the Python module attnkernels_emulated: csrc/*/*_cuda.cpp, csrc/*/*.cu and the controls
    demo       (plain, traffic) the Python module emulation_demo: tests/emulation/demo.cpp
    <program>  (all modes) tests/emulation/standalone/<program>.cpp, with csrc/<program>/*.cu where there are any

Without targets: the library in the modes that have one, every program in the others.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools import cuda_toolkit

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "emulated"
PROGRAMS = ROOT / "tests" / "emulation" / "standalone"
MODULES = ("library", "demo")

# -fno-strict-aliasing: CUDA code reads vectors through pointers to other types, as nvcc allows.
COMMON = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall",
          "-Wno-psabi", "-Wno-unknown-pragmas", "-DATTNKERNELS_EMULATED"]  # fmt: skip
TORCH = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY", "-Wno-attributes"]


@dataclass(frozen=True)
class Mode:
    """Compiler flags: of everything, of the kernels alone, of the emulation alone, and of the linker."""

    flags: list[str]
    kernels: list[str] = field(default_factory=list)
    emulation: list[str] = field(default_factory=list)
    link: list[str] = field(default_factory=list)


MODES = {
    "plain": Mode(["-O2"]),
    # traffic.cpp takes the place of TSan's runtime, which is not linked. -fno-tree-sra: vectors are loaded at once.
    "traffic": Mode(
        ["-O2"], kernels=["-fsanitize=thread", "-fno-tree-sra", "--param=tsan-instrument-func-entry-exit=0"]
    ),
    "asan": Mode(
        ["-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
        link=["-fsanitize=address,undefined"],
    ),
    "tsan": Mode(
        ["-O1"],
        kernels=["-fsanitize=thread"],
        emulation=["-DATTNKERNELS_EMULATION_TSAN"],
        link=["-fsanitize=thread"],
    ),
}


def why_unavailable() -> str:
    """What this machine lacks to build the emulation; empty when it has everything."""
    if not shutil.which("g++"):
        return "g++ was not found"
    if not cuda_toolkit.include_folders():
        return "the CUDA headers were not found: install nvcc, or pip install nvidia-cuda-runtime nvidia-cuda-crt"
    probe = subprocess.run(
        ["g++", "-E", "-x", "c++", "-"], input="#include <boost/context/fiber.hpp>", capture_output=True, text=True
    )
    if probe.returncode:
        return "Boost.Context was not found: apt-get install libboost-context-dev"
    if not _ninja():
        return "ninja was not found: pip install ninja"
    return ""


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


def output(mode: str, target: str) -> Path:
    """Where a target of a mode is built."""
    name = {"library": "attnkernels_emulated.so", "demo": "emulation_demo.so"}.get(target, target)
    return BUILD / mode / name


def programs() -> list[str]:
    return sorted(path.stem for path in PROGRAMS.glob("*.cpp"))


def _escaped(path: Path) -> str:
    """A path as ninja reads it in a build statement."""
    return re.sub(r"[$ :]", r"$\g<0>", str(path))


def _quoted(flags: list[str]) -> str:
    """Flags as ninja hands them to the shell."""
    return shlex.join(flags).replace("$", "$$")


class NinjaFile:
    """The statements of a build.ninja, object files shared between targets."""

    def __init__(self, mode: str, csrc: Path, folder: Path) -> None:
        self.mode, self.flags, self.csrc, self.folder = mode, MODES[mode], csrc, folder
        self.includes = [f"-I{csrc}", *(f"-isystem{path}" for path in cuda_toolkit.include_folders())]
        self.statements: dict[Path, str] = {}

    def object(self, source: Path, *groups: list[str]) -> Path:
        root = self.csrc.parent if source.is_relative_to(self.csrc) else ROOT
        target = self.folder / "objects" / f"{source.relative_to(root)}.o"
        flags = [*COMMON, *self.flags.flags, *(flag for group in groups for flag in group), *self.includes]
        self.statements[target] = f"build {_escaped(target)}: compile {_escaped(source)}\n  flags = {_quoted(flags)}\n"
        return target

    def kernels(self, ops: list[str]) -> list[Path]:
        sources = sorted(path for op in ops for path in self.csrc.glob(f"{op}/*.cu"))
        return [self.object(source, self.flags.kernels) for source in sources]

    def emulation(self) -> list[Path]:
        names = ["scheduler", "residents", "launch", "memory", "device"]
        if self.mode == "traffic":
            names.append("traffic")
        return [self.object(self.csrc / "emulation" / f"{name}.cpp", self.flags.emulation) for name in names]

    def link(self, target: Path, objects: list[Path], *groups: list[str]) -> None:
        flags = [*self.flags.link, *(flag for group in groups for flag in group), "-lboost_context"]
        inputs = " ".join(map(_escaped, objects))
        self.statements[target] = f"build {_escaped(target)}: link {inputs}\n  flags = {_quoted(flags)}\n"

    def module(self, target: str) -> None:
        import pybind11

        python = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
        traffic = self.object(self.csrc / "emulation" / "traffic.cpp")
        objects = {*self.emulation(), traffic, self.object(self.csrc / "emulation" / "python.cpp", python)}
        if target == "demo":
            objects.add(self.object(ROOT / "tests" / "emulation" / "demo.cpp", python, self.flags.kernels))
            self.link(output(self.mode, target), sorted(objects), ["-shared"])
            return
        import torch
        from torch.utils import cpp_extension

        stable_torch = [*TORCH, *(f"-isystem{path}" for path in cpp_extension.include_paths())]
        objects |= set(self.kernels(["*"]))
        objects |= {self.object(source, stable_torch) for source in sorted(self.csrc.glob("*/*_cuda.cpp"))}
        bound = ("module", "layout", "plans")
        objects |= {self.object(self.csrc / "emulation" / f"{name}.cpp", python) for name in bound}
        libraries = Path(torch.__file__).parent / "lib"
        torch_flags = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
        self.link(output(self.mode, target), sorted(objects), ["-shared"], torch_flags)

    def program(self, name: str) -> None:
        objects = [self.object(PROGRAMS / f"{name}.cpp", self.flags.kernels), *self.kernels([name]), *self.emulation()]
        self.link(self.folder / name, objects)

    def text(self) -> str:
        rules = (
            f"builddir = {self.folder}\n"
            "rule compile\n  command = g++ -x c++ $flags -MMD -MF $out.d -c $in -o $out\n"
            "  deps = gcc\n  depfile = $out.d\n"
            "  description = g++ $in\n"
            "rule link\n  command = g++ $in -o $out $flags\n  description = link $out\n"
        )
        return rules + "".join(self.statements.values())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes must not build in one folder at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_ninja(ninja_file: NinjaFile, quiet: bool = True, jobs: int | None = None) -> None:
    """Build every target of the file, with so many compilers at a time (default: MAX_JOBS, or all cores).

    Raises:
        RuntimeError: the build failed; the compiler's messages.
    """
    with _alone(ninja_file.folder):
        path = ninja_file.folder / "build.ninja"
        path.write_text(ninja_file.text())
        jobs = jobs or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        done = subprocess.run([_ninja(), "-f", str(path), "-j", str(jobs)], capture_output=quiet, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated build failed:\n{done.stdout or ''}{done.stderr or ''}")


def build(mode: str, *targets: str, quiet: bool = True) -> list[Path]:
    """Build what is out of date; the targets' files.

    Raises:
        RuntimeError: something is missing on this machine, or the compiler refused.
    """
    if reason := why_unavailable():
        raise RuntimeError(f"the CUDA emulation cannot be built: {reason}")
    wanted = targets or (("library",) if mode in ("plain", "traffic") else tuple(programs()))
    paths = []
    for target in wanted:  # each with a build of its own: an op that does not compile stops no other's tests
        ninja_file = NinjaFile(mode, ROOT / "csrc", BUILD / mode)
        if target in MODULES:
            ninja_file.module(target)
        else:
            ninja_file.program(target)
        run_ninja(ninja_file, quiet)
        paths.append(output(mode, target))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=sorted(MODES), default="plain")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    try:
        for path in build(arguments.mode, *arguments.targets, quiet=False):
            print(path)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

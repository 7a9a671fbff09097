"""Builds `_C_cpu.so` and, where nvcc and a CUDA build of torch exist (a GPU is not needed), `_C_cuda.so`.

A library that cannot be built does not stop the installation: `_build.json`, installed beside the libraries, tells why,
and `python -m attnkernels.info` shows it.

Environment:
    ATTNKERNELS_CUDA      auto (default): build the CUDA library where possible; 0: never; 1: fail without it
    ATTNKERNELS_STRICT    1: a library that does not compile stops the installation
    TORCH_CUDA_ARCH_LIST  the GPU architectures, e.g. "9.0" or "8.0;9.0+PTX" (default: all from 7.5, PTX for the newest)
    CUDA_HOME             the CUDA toolkit (default: the one nvcc belongs to)
    CXX, MAX_JOBS         as usual
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # the first to know SPDX licenses; said before it fails at them
    sys.exit(
        f"attnkernels: building needs setuptools >= 77, found {setuptools.__version__}: "
        'pip install "setuptools>=77" ninja'
    )

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
    *STABLE_ABI,
]
HOST_FLAGS = ["-include", "common/old_glibc.h"]
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fvisibility=hidden",
    "-DUSE_CUDA",
    *STABLE_ABI,
]
LINK_FLAGS = ["-s", f"-Wl,--version-script={ROOT / 'csrc' / 'common' / 'exports.map'}"]


def find_compiler() -> str | None:
    """The C++ compiler that builds and links, which torch is told by CXX where it is not the usual one."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


toolkit = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "cuda_toolkit.py")))
if toolkit.nvcc():
    os.environ["CUDA_HOME"] = str(toolkit.root())  # torch guesses it from the PATH when it is imported
compiler = find_compiler()
if compiler and not os.environ.get("CXX") and not shutil.which("c++"):
    os.environ["CXX"] = compiler

from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, _get_cuda_arch_flags
except ModuleNotFoundError as error:
    sys.exit(
        f"attnkernels: no module named {error.name!r}: the libraries are built next to the torch (>= 2.10) that is "
        "installed: pip install torch, then pip install --no-build-isolation ."
    )


def cuda_obstacle() -> str:
    """Why the CUDA library is not going to be built; empty when it is."""
    if os.environ.get("ATTNKERNELS_CUDA", "auto") == "0":
        return "ATTNKERNELS_CUDA=0 when it was installed"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not toolkit.nvcc():
        return "no nvcc was found when it was installed"
    found = toolkit.nvcc_version() or "unknown"
    if found.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {found}, torch {torch.__version__} of CUDA {torch.version.cuda}"
    return ""


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/*/{pattern}"))


def architectures() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, as "9.0", "9.0a" or "12.0+PTX"; it may also hold names, such as Hopper."""
    found = []
    for kind, number, suffix in re.findall(r"code=(sm|compute)_(\d+)([af]?)", " ".join(_get_cuda_arch_flags())):
        found.append((int(number), f"{number[:-1]}.{number[-1]}{suffix}{'+PTX' if kind == 'compute' else ''}"))
    return [name for _, name in sorted(found)]


def without_build_paths() -> list[str]:
    """Flags by which the messages of checks name files relative to the sources, not where they were built."""
    torch_folder = Path(torch.__file__).resolve().parent
    return [f"-ffile-prefix-map={ROOT}/=", f"-ffile-prefix-map={torch_folder.parent}/="]


def link_with_cudart(extension: setuptools.Extension) -> None:
    """Name the CUDA runtime by its versioned file, the only one in the pip packages."""
    runtime = f"libcudart.so.{toolkit.nvcc_version().split('.')[0]}"
    home = toolkit.root()
    folders = [home / "lib64", home / "lib", *(folder / "lib" for folder in toolkit.pip_packages())]
    folder = next((folder for folder in folders if (folder / runtime).exists()), None)
    if folder:
        extension.libraries = [f":{runtime}" if name == "cudart" else name for name in extension.libraries]
        extension.library_dirs.append(str(folder))


def extensions() -> tuple[list, dict]:
    """Both libraries, whatever can be built here, so that the build always runs and leaves its record."""
    include = [str(ROOT / "csrc")]
    host_flags = [*CXX_FLAGS, *HOST_FLAGS, *without_build_paths()]
    digest = runpy.run_path(str(ROOT / "attnkernels" / "_sources.py"))["digest"]
    record = {"torch": torch.__version__, "sources": digest(ROOT / "csrc"), "cuda_architectures": []}
    found = [
        CppExtension(
            "attnkernels._C_cpu", sources("*_cpu.cpp"), include_dirs=include, py_limited_api=True,
            extra_compile_args={"cxx": host_flags}, extra_link_args=LINK_FLAGS,
        )
    ]  # fmt: skip
    if not compiler:
        record["cpu_missing"] = record["cuda_missing"] = "no C++ compiler was found when it was installed"
    else:
        record["cxx"] = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        record["cuda_missing"] = cuda_obstacle()
    if record["cuda_missing"] and os.environ.get("ATTNKERNELS_CUDA") == "1":
        sys.exit(f"attnkernels: ATTNKERNELS_CUDA=1, but the CUDA library cannot be built: {record['cuda_missing']}")
    if not record["cuda_missing"]:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        record["cuda_architectures"] = architectures()
        record["nvcc"] = toolkit.nvcc_version()
        nvcc_flags = [*NVCC_FLAGS, *(f"-Xcompiler={flag}" for flag in without_build_paths())]
        found.append(
            CUDAExtension(
                "attnkernels._C_cuda", sources("*_cuda.cpp", "*.cu"), include_dirs=include, py_limited_api=True,
                extra_compile_args={"cxx": [*host_flags, "-DUSE_CUDA"], "nvcc": nvcc_flags},
                extra_link_args=LINK_FLAGS,
            )
        )  # fmt: skip
        link_with_cudart(found[-1])
    return found, record


@contextlib.contextmanager
def output_kept(kept: list[str]) -> Iterator[None]:
    """Keep what this process and the compilers it starts print meanwhile; it is printed all the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    before = os.dup(1), os.dup(2)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)

    def copy() -> None:
        with open(reading, errors="replace") as lines:
            for line in lines:
                kept.append(line)
                os.write(before[0], line.encode())

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, number)
        thread.join()
        for saved in before:
            os.close(saved)


def first_error(output: list[str], error: Exception) -> str:
    """The compiler's or the linker's first complaint, without where the sources lie.

    The colon tells it from other words of an error, such as the "--- Logging error ---" above a warning of torch 2.10.
    """
    complaints = (line for line in output if re.search(r"\b(error|fatal)\s*:|cannot find", line))
    first = next(complaints, str(error) or type(error).__name__).strip().splitlines()[0]
    return first.replace(f"{ROOT}/", "")[:300]


class Build(BuildExtension):
    """Builds each library on its own; one that fails costs neither the other nor the installation."""

    def build_extensions(self) -> None:
        wanted = self.extensions
        for extension in wanted:
            library = extension.name.rpartition("_C_")[2]
            if not RECORD.get(f"{library}_missing"):
                self.extensions, output = [extension], []
                try:
                    with output_kept(output):
                        super().build_extensions()
                except Exception as error:
                    if os.environ.get("ATTNKERNELS_STRICT") == "1" or (
                        library == "cuda" and os.environ.get("ATTNKERNELS_CUDA") == "1"
                    ):
                        raise
                    RECORD[f"{library}_missing"] = f"it did not compile: {first_error(output, error)}"
            extension.optional = True  # setuptools asks for the files of those that are not
        self.extensions = wanted

    def run(self) -> None:
        super().run()
        folders = [Path(self.build_lib) / "attnkernels"] + [ROOT / "attnkernels"] * bool(self.inplace)
        for library in ("cpu", "cuda"):
            if RECORD.get(f"{library}_missing"):
                print(f"attnkernels: without the {library} library: {RECORD[f'{library}_missing']}", file=sys.stderr)
                for folder in folders:  # of an earlier build
                    (folder / f"_C_{library}.so").unlink(missing_ok=True)
        if RECORD.get("cuda_missing"):
            RECORD["cuda_architectures"] = []
        folders[-1].mkdir(parents=True, exist_ok=True)
        (folders[-1] / "_build.json").write_text(json.dumps(RECORD, indent=1) + "\n")


class Wheel(bdist_wheel):
    """No CPython symbol is in the libraries: one wheel per platform serves every Python and every torch >= 2.10."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


EXTENSIONS, RECORD = extensions()
COMMANDS = {"build_ext": Build.with_options(use_ninja=True, no_python_abi_suffix=True), "bdist_wheel": Wheel}

setuptools.setup(ext_modules=EXTENSIONS, cmdclass=COMMANDS)

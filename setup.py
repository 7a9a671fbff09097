"""Builds `_C_cpu.so` and, where nvcc and a CUDA build of torch exist (a GPU is not needed), `_C_cuda.so`.

Environment:
    ATTNKERNELS_CUDA      auto (default): build the CUDA library where possible; 0: never; 1: fail without it
    TORCH_CUDA_ARCH_LIST  the GPU architectures, e.g. "9.0" or "8.0;9.0+PTX" (default: all from 7.5, PTX for the newest)
    CUDA_HOME             the CUDA toolkit (default: the one nvcc belongs to)
    CXX, MAX_JOBS         as usual
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

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
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fvisibility=hidden",
    "-DUSE_CUDA",
    *STABLE_ABI,
]


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, on the PATH, or of the pip packages of the `cuda-compiler` extra."""
    candidates = [Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"] if os.environ.get("CUDA_HOME") else []
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates += sorted((Path(sysconfig.get_path("purelib")) / "nvidia").glob("*/bin/nvcc"))
    return next((str(path) for path in candidates if path.exists()), None)


def toolkit_root(nvcc: str) -> str:
    """The toolkit that an nvcc belongs to; the nvcc on the PATH may be a wrapper script elsewhere."""
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    return str(Path(top.group(1).strip()).resolve()) if top else str(Path(nvcc).resolve().parent.parent)


def nvcc_version(nvcc: str) -> str:
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return match.group(1) if (match := re.search(r"release ([\d.]+)", out)) else "unknown"


nvcc = find_nvcc()
if nvcc:
    os.environ["CUDA_HOME"] = toolkit_root(nvcc)  # torch guesses it from the PATH when it is imported

import torch  # noqa: E402
from torch.utils.cpp_extension import (  # noqa: E402
    BuildExtension,
    CppExtension,
    CUDAExtension,
    _get_cuda_arch_flags,
)


def cuda_obstacle() -> str:
    """Why the CUDA library is not going to be built; empty when it is."""
    if os.environ.get("ATTNKERNELS_CUDA", "auto") == "0":
        return "ATTNKERNELS_CUDA=0"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not nvcc:
        return "nvcc was not found (put it on the PATH, set CUDA_HOME, or install the extra attnkernels[cuda-compiler])"
    if nvcc_version(nvcc).split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {nvcc_version(nvcc)}, torch of CUDA {torch.version.cuda}"
    return ""


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/*/{pattern}"))


def architectures() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, as "9.0", "9.0a" or "12.0+PTX"; it may also hold names, such as Hopper."""
    found = []
    for kind, number, suffix in re.findall(r"code=(sm|compute)_(\d+)([af]?)", " ".join(_get_cuda_arch_flags())):
        found.append(f"{number[:-1]}.{number[-1]}{suffix}{'+PTX' if kind == 'compute' else ''}")
    return found


def extensions() -> tuple[list, dict]:
    include = [str(ROOT / "csrc")]
    record = {"torch": torch.__version__, "cuda_architectures": []}
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        record["cpu_missing"] = record["cuda_missing"] = "no C++ compiler was found (set CXX, or install g++)"
        return [], record
    found = [
        CppExtension(
            "attnkernels._C_cpu", sources("*_cpu.cpp"), include_dirs=include, py_limited_api=True,
            extra_compile_args={"cxx": CXX_FLAGS}, extra_link_args=["-s"],
        )
    ]  # fmt: skip
    record["cxx"] = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    record["cuda_missing"] = cuda_obstacle()
    if record["cuda_missing"] and os.environ.get("ATTNKERNELS_CUDA") == "1":
        sys.exit(f"attnkernels: ATTNKERNELS_CUDA=1, but the CUDA library cannot be built: {record['cuda_missing']}")
    if not record["cuda_missing"] and sources("*_cuda.cpp"):
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        record["cuda_architectures"] = architectures()
        record["nvcc"] = nvcc_version(nvcc)
        found.append(
            CUDAExtension(
                "attnkernels._C_cuda", sources("*_cuda.cpp", "*.cu"), include_dirs=include, py_limited_api=True,
                extra_compile_args={"cxx": [*CXX_FLAGS, "-DUSE_CUDA"], "nvcc": NVCC_FLAGS}, extra_link_args=["-s"],
            )
        )  # fmt: skip
    return found, record


class Build(BuildExtension):
    """Builds each library on its own: a CUDA toolchain that fails does not cost the CPU library."""

    def build_extensions(self) -> None:
        wanted, self.extensions = self.extensions, []
        for extension in wanted:
            self.extensions = [extension]
            try:
                super().build_extensions()
            except Exception as error:
                if not extension.name.endswith("_cuda") or os.environ.get("ATTNKERNELS_CUDA") == "1":
                    raise
                RECORD["cuda_missing"] = f"the build failed: {str(error).splitlines()[0]}"
                RECORD["cuda_architectures"] = []
        self.extensions = wanted

    def run(self) -> None:
        super().run()
        folder = ROOT / "attnkernels" if self.inplace else Path(self.build_lib) / "attnkernels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(RECORD, indent=1) + "\n")
        for library in ("cpu", "cuda"):
            if RECORD.get(f"{library}_missing"):
                print(f"attnkernels: without the {library} library: {RECORD[f'{library}_missing']}", file=sys.stderr)


EXTENSIONS, RECORD = extensions()
COMMANDS = {"build_ext": Build.with_options(use_ninja=True, no_python_abi_suffix=True)}

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    pass
else:

    class Wheel(bdist_wheel):
        """No CPython symbol is in the libraries: one wheel per platform serves every Python and every torch >= 2.10."""

        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    COMMANDS["bdist_wheel"] = Wheel

setup(ext_modules=EXTENSIONS, cmdclass=COMMANDS)

"""Where nvcc, its headers, its runtime and the binary utilities are; none of them needs a GPU or a driver.

Imports nothing but the standard library: setup.py runs this file.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path


def pip_packages() -> list[Path]:
    """The folders of the pip packages nvidia-*, which torch depends on and the extra `cuda-compiler` adds to."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations or [] if found else []
    return sorted(path for folder in folders for path in Path(folder).glob("*"))


@functools.cache
def nvcc() -> str | None:
    """nvcc of CUDA_HOME, on the PATH, or of the pip packages."""
    candidates = [Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"] if os.environ.get("CUDA_HOME") else []
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates += [folder / "bin" / "nvcc" for folder in pip_packages()]
    return next((str(path) for path in candidates if path.exists()), None)


@functools.cache
def nvcc_version() -> str:
    """Such as "13.0"; empty without nvcc."""
    if not nvcc():
        return ""
    out = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    return match.group(1) if (match := re.search(r"release ([\d.]+)", out)) else ""


@functools.cache
def root() -> Path | None:
    """The toolkit that nvcc belongs to; the nvcc on the PATH may be a wrapper script elsewhere."""
    if not nvcc():
        return None
    dry_run = subprocess.run([nvcc(), "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    return Path(top.group(1).strip()).resolve() if top else Path(nvcc()).resolve().parent.parent


@functools.cache
def include_folders() -> tuple[str, ...]:
    """The folders of cuda_runtime_api.h and of the crt/host_defines.h that it includes; empty without them."""
    candidates: list[Path] = []
    if root():
        candidates += [*root().glob("targets/*/include"), root() / "include"]
    candidates += [folder / "include" for folder in pip_packages()]
    found = []
    for header in ("cuda_runtime_api.h", "crt/host_defines.h", "cuda_fp16.h"):
        folder = next((str(path.resolve()) for path in candidates if (path / header).exists()), None)
        if folder is None:
            return ()
        if folder not in found:
            found.append(folder)
    return tuple(found)


@functools.cache
def utility(name: str) -> str | None:
    """cuobjdump or nvdisasm: of the toolkit, on the PATH, of Triton's wheel, or of the pip packages."""
    candidates = []
    if nvcc():
        candidates.append(Path(nvcc()).resolve().parent / name)
    if on_path := shutil.which(name):
        candidates.append(Path(on_path))
    if triton := importlib.util.find_spec("triton"):
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    candidates += [folder / "bin" / name for folder in pip_packages()]
    return next((str(path) for path in candidates if path.exists()), None)

"""Loads the compiled libraries. Importing the package never fails for want of one: the reason is kept for `info`."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import warnings
from pathlib import Path

import torch

from ._sources import digest

_FOLDER = Path(__file__).resolve().parent
_CSRC = _FOLDER.parent / "csrc"
_missing: dict[str, str] = {}
_loaded: set[str] = set()


def _installed() -> Path | None:
    """The folder of an installed package that was built, where this one is a source tree that stands before it."""
    for distribution in importlib.metadata.distributions(name="attnkernels"):
        folder = Path(distribution.locate_file("attnkernels")).resolve()
        if folder != _FOLDER and (folder / "_build.json").exists():
            return folder
    return None


@functools.cache
def home() -> Path:
    """The folder that holds the libraries and the record of their build.

    In a clone Python finds the source tree before the package that was installed from it. Of the same C++ sources its
    libraries serve here too.
    """
    if not (_FOLDER / "_build.json").exists() and _CSRC.is_dir():
        installed = _installed()
        if installed is not None and _record(installed).get("sources") == digest(_CSRC):
            return installed
    return _FOLDER


def _record(folder: Path) -> dict:
    path = folder / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


@functools.cache
def build_record() -> dict:
    """What setup.py built and for which architectures, and why it left the rest out; empty when it never ran."""
    return _record(home())


def stale() -> bool:
    """Whether the libraries were built from other C++ sources than those that lie beside the package."""
    built_from = build_record().get("sources")
    return bool(built_from) and _CSRC.is_dir() and built_from != digest(_CSRC)


def _not_built() -> str:
    """Why a package without a record of its build has no libraries."""
    if not _CSRC.is_dir():
        return "this copy of the package was not built"
    if (installed := _installed()) is not None:
        return f"{_FOLDER} is a source tree that was not built; it hides the package in {installed}, of other sources"
    return f"{_FOLDER} is a source tree that was not built"


def _load(name: str) -> str:
    """Bring a library into the process; returns why that cannot be, empty when it is there."""
    path = home() / f"_C_{name}.so"
    record = build_record()
    if not path.exists():
        return record.get(f"{name}_missing") or (f"{path.name} is not in {home()}" if record else _not_built())
    if name == "cuda":
        if not torch.version.cuda:
            return f"{path.name} is there, but this torch ({torch.__version__}) is a build without CUDA"
        if (built := record.get("nvcc", "")).split(".")[0] != torch.version.cuda.split(".")[0]:
            return f"{path.name} is of CUDA {built}, this torch ({torch.__version__}) of CUDA {torch.version.cuda}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # the loader's own words are in the cause
        return f"{path.name} could not be loaded: {error.__cause__ or error}"
    return ""


def load_libraries() -> None:
    """Load `_C_cpu.so` and `_C_cuda.so` where they were built."""
    for name in ("cpu", "cuda"):
        if name not in _loaded:
            if reason := _load(name):
                _missing[name] = reason
            else:
                mark_loaded(name)
    if not build_record() and _CSRC.is_dir():
        told = "no compiled kernel runs; python -m attnkernels.info tells what to do"
        warnings.warn(f"attnkernels: {_not_built()}: {told}", stacklevel=3)


def is_loaded(name: str) -> bool:
    """Whether the library of that backend ("cpu", "cuda", "emulated") is in the process."""
    return name in _loaded


def why_missing(name: str) -> str:
    """Why that library is not in the process; empty when it is."""
    return "" if name in _loaded else _missing.get(name, f"_C_{name}.so has not been loaded")


def mark_loaded(name: str) -> None:
    """Record a library that something else brought into the process (the host emulation of the CUDA kernels)."""
    _loaded.add(name)
    _missing.pop(name, None)

"""Loads the compiled libraries. Importing the package never fails for want of one: the reason is kept for `info`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent
_missing: dict[str, str] = {}
_loaded: set[str] = set()


def _load(name: str) -> None:
    path = _FOLDER / f"_C_{name}.so"
    if not path.exists():
        _missing[name] = f"{path.name} was not built (no compiler when the package was installed, or it was disabled)"
        if name == "cuda":
            _missing[name] = f"{path.name} was not built (needs nvcc and a CUDA build of torch at install time)"
        return
    if name == "cuda" and not torch.version.cuda:
        _missing[name] = f"{path.name} is there, but this torch ({torch.__version__}) was built without CUDA"
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        _missing[name] = f"{path.name} could not be loaded: {error}"
        return
    _loaded.add(name)


def load_libraries() -> None:
    """Load `_C_cpu.so` and `_C_cuda.so` where they were built."""
    for name in ("cpu", "cuda"):
        if name not in _loaded:
            _missing.pop(name, None)
            _load(name)


def is_loaded(name: str) -> bool:
    """Whether the library of that wall ("cpu", "cuda", "emulated") is in the process."""
    return name in _loaded


def why_missing(name: str) -> str:
    """Why that library is not in the process; empty when it is."""
    return "" if name in _loaded else _missing.get(name, f"_C_{name}.so has not been loaded")


def mark_loaded(name: str) -> None:
    """Record a library that something else brought into the process (the host emulation of the CUDA kernels)."""
    _loaded.add(name)
    _missing.pop(name, None)


def build_record() -> dict:
    """What setup.py built and for which architectures; empty when nothing was."""
    path = _FOLDER / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}

"""Which backends this machine can test, and on which device."""

from __future__ import annotations

import attnkernels
from attnkernels import _load


def fused_backends() -> list[tuple[str, str]]:
    """(backend, device) of every fused backend that can run here."""
    found = []
    if _load.is_loaded("cpu"):
        found.append(("cpu", "cpu"))
    if _load.is_loaded("emulated"):
        found.append(("emulated", "cpu"))
    found += [(backend, "cuda") for backend in attnkernels.available_backends() if backend in ("cuda", "triton")]
    return found

"""Which backends this machine can test, and on which device."""

from __future__ import annotations

import attnkernels
from attnkernels import _load


def walls() -> list[tuple[str, str]]:
    """(backend, device) of every fused wall that can run here."""
    found = []
    if _load.is_loaded("cpu"):
        found.append(("cpu", "cpu"))
    if _load.is_loaded("emulated"):
        found.append(("emulated", "cpu"))
    found += [(wall, "cuda") for wall in attnkernels.available_backends() if wall in ("cuda", "triton")]
    return found

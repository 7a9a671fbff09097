"""What Triton makes of its kernels ahead of time (tools/triton_aot.py)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator

COMPILER = "triton"


def compiler() -> str:
    return importlib.metadata.version("triton")


def why_unavailable() -> str:
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def ops() -> list[str]:
    from tools import triton_aot

    return triton_aot.ops()


def rows(op: str, quick: bool = False) -> Iterator[dict]:
    """All architectures and dtypes; sm_90 and bfloat16 when `quick`."""
    from tools import triton_aot

    yield from triton_aot.rows(op, (90,), ("bfloat16",)) if quick else triton_aot.rows(op)

"""Operator schemas, their shape functions, and the walls that implement them.

One schema serves every wall. It is defined in three namespaces:

- `attnkernels`: chosen by device: CPU tensors take the C++ kernels, CUDA tensors the CUDA kernels (or Triton's,
  where the CUDA library was not built), so that an exported program runs on either;
- `attnkernels_triton`: the Triton kernels, when they are asked for by name;
- `attnkernels_emulated`: the CUDA kernels run on the host, on CPU tensors (tests only).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = {
    "cpu": "attnkernels",
    "cuda": "attnkernels",
    "triton": "attnkernels_triton",
    "emulated": "attnkernels_emulated",
}
NAMESPACES = tuple(dict.fromkeys(_NAMESPACE.values()))
_overloads: dict[tuple[str, str], Any] = {}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are held: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def define(name: str, schema: str, fake: Callable[..., Any], triton: str) -> None:
    """Define one operator in every namespace.

    Args:
        name: the operator's name, without namespace.
        schema: argument list and result, as in `torch.library.define`.
        fake: shape function, the same for every wall.
        triton: "module:function" of the Triton launcher, imported at its first call.
    """
    for namespace in NAMESPACES:
        qualified = f"{namespace}::{name}"
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(qualified, fake)
    launcher = _imported_at_first_call(triton)
    torch.library.impl(f"attnkernels_triton::{name}", "CUDA", launcher)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"attnkernels::{name}", "CUDA"):
        torch.library.impl(f"attnkernels::{name}", "CUDA", launcher)
    for wall, namespace in _NAMESPACE.items():
        _overloads[wall, name] = getattr(getattr(torch.ops, namespace), name).default


def _imported_at_first_call(path: str) -> Callable[..., Any]:
    module, function = path.split(":")

    def launcher(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    return launcher


def overload(wall: str, name: str) -> Any:
    """The operator `name` of a wall, callable."""
    return _overloads[wall, name]

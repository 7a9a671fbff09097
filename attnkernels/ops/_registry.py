"""Operator schemas, their shape functions, and the backends that implement them.

One schema serves every backend. It is defined in three namespaces:

- `attnkernels`: chosen by device: CPU tensors take the C++ kernels, CUDA tensors the CUDA kernels (or Triton's,
  where the CUDA library was not built), so that an exported program runs on either;
- `attnkernels_triton`: the Triton kernels, when they are asked for by name;
- `attnkernels_emulated`: the CUDA kernels run on the host, on CPU tensors (tests only).
"""

from __future__ import annotations

import functools
import importlib
import re
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
        fake: shape function, the same for every backend; it need not look at the devices.
        triton: "module:function" of the Triton launcher, imported at its first call.
    """
    first = re.match(r"\(Tensor(?:\[\])? (\w+)", schema)[1]

    @functools.wraps(fake)
    def on_one_device(*arguments: Any) -> Any:
        check_devices(name, first, *arguments)
        return fake(*arguments)

    for namespace in NAMESPACES:
        qualified = f"{namespace}::{name}"
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(qualified, on_one_device)
    launcher = _imported_at_first_call(triton)
    torch.library.impl(f"attnkernels_triton::{name}", "CUDA", launcher)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"attnkernels::{name}", "CUDA"):
        torch.library.impl(f"attnkernels::{name}", "CUDA", launcher)
    for backend, namespace in _NAMESPACE.items():
        _overloads[backend, name] = getattr(getattr(torch.ops, namespace), name).default


def check_devices(name: str, first: str, *arguments: Any) -> None:
    """Raise where only some tensors of an operator's call are on "meta": that one would take the whole call there.

    Args:
        name: the operator's.
        first: the name of its first argument.
        arguments: all of them.
    """
    listed = (value if isinstance(value, list | tuple) else (value,) for value in arguments)
    devices = [value.device for values in listed for value in values if isinstance(value, torch.Tensor)]
    for device in devices[1:]:
        if device != devices[0]:
            raise RuntimeError(f"{name}: expected all tensors on {devices[0]}, as {first}, got one on {device}")


def _imported_at_first_call(path: str) -> Callable[..., Any]:
    module, function = path.split(":")

    def launcher(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    return launcher


def overload(backend: str, name: str) -> Any:
    """The operator `name` of a backend, callable."""
    return _overloads[backend, name]

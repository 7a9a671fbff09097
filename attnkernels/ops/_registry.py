"""Operators: their schemas, their shape functions, and the backends that implement them.

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
from collections.abc import Callable, Sequence
from typing import Any

import torch

_NAMESPACE = {
    "cpu": "attnkernels",
    "cuda": "attnkernels",
    "triton": "attnkernels_triton",
    "emulated": "attnkernels_emulated",
}
NAMESPACES = tuple(dict.fromkeys(_NAMESPACE.values()))
Shape = Sequence[int]
OPERATORS: dict[str, Operator] = {}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are held: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def no_flops(*shapes: Any, **out: Any) -> int:
    """Sums and scalings alone, which are not counted."""
    return 0


class Operator:
    """An operator, defined in every namespace.

    Its Triton launcher is the function of its name in `triton_impl`, beside the module that has its shape function.

    Attributes:
        name: the operator's name, without namespace.
        on: what to call, by backend.
        flops: counts floating-point operations, as torch.utils.flop_counter.register_flop_formula wants it.
        arguments: the names of its arguments, those of the tensors first.
        tensors: how many of the arguments are tensors.
        results: the names of its results.
    """

    def __init__(self, schema: str, fake: Callable[..., Any], flops: Callable[..., int] = no_flops) -> None:
        """Define it.

        Args:
            schema: name, arguments and named results, as in `torch.library.define`.
            fake: shape function, the same for every backend; it need not look at the devices.
            flops: as above.
        """
        self.name, signature = re.match(r"(\w+)(\(.*)", schema, re.DOTALL).groups()
        self.flops = flops

        @functools.wraps(fake)
        def on_one_device(*arguments: Any) -> Any:
            check_devices(self.name, self.arguments[0], *arguments)
            return fake(*arguments)

        launcher = _imported_at_first_call(fake.__module__.rpartition(".")[0] + ".triton_impl", self.name)
        for namespace in NAMESPACES:
            qualified = f"{namespace}::{self.name}"
            torch.library.define(qualified, signature, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(qualified, on_one_device)
        torch.library.impl(f"attnkernels_triton::{self.name}", "CUDA", launcher)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"attnkernels::{self.name}", "CUDA"):
            torch.library.impl(f"attnkernels::{self.name}", "CUDA", launcher)
        self.on = {
            backend: getattr(getattr(torch.ops, namespace), self.name).default
            for backend, namespace in _NAMESPACE.items()
        }
        parsed = self.on["cpu"]._schema
        self.arguments = tuple(argument.name for argument in parsed.arguments)
        self.tensors = sum("Tensor" in str(argument.type) for argument in parsed.arguments)
        self.results = tuple(result.name for result in parsed.returns)
        OPERATORS[self.name] = self


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


def _imported_at_first_call(module: str, function: str) -> Callable[..., Any]:
    def launcher(*args: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args)

    return launcher

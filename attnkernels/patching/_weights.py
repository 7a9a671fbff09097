"""Weights that no op takes: a report that calls their module replaced would promise what its first call refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .._modules import qualified_name

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def unusual(module: nn.Module, found: tuple, sharded: bool = False) -> str:
    """Why the op cannot take a module's weights; empty where it can.

    Args:
        module: the one to be patched.
        found: what its adapter's `arguments` returned. Layers that its method `taken` names, if it has one, go into
            one call, and so have to be alike; otherwise the op takes what the module's children return.
        sharded: whether FSDP looks after the weights, and replaces its DTensors by plain tensors at each call.
    """
    alike = hasattr(found, "taken")
    tensors = _named(module, found.taken()) if alike else module.named_parameters()
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if obstacle := _unusual(tensor, sharded):
            return f"its {name} is {obstacle}, the op takes dense floating-point tensors"
        if first is None:
            first = name, tensor
        for what in ("dtype", "device"):
            here, there = getattr(tensor, what), getattr(first[1], what)
            if alike and here != there:
                return f"its {name} has {what} {here}, its {first[0]} {there}; the op takes tensors of one {what}"
    return ""


def _unusual(tensor: Tensor, sharded: bool) -> str:
    cls = type(tensor)
    if cls not in (Tensor, nn.Parameter) and not (sharded and cls.__name__ == "DTensor"):
        return f"a {qualified_name(cls)}"
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.dtype not in _DTYPES:
        return f"of dtype {tensor.dtype}"
    return ""


def _named(module: nn.Module, taken: Iterable[tuple[nn.Module | None, Iterable[str]]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's layers, given by the names of attributes, with their names in the module."""
    for layer, attributes in taken:
        if layer is None:
            continue
        path = next(name for name, child in module.named_modules() if child is layer)
        for attribute in attributes:
            tensor = getattr(layer, attribute)
            if tensor is not None:
                yield f"{path}.{attribute}", tensor


def sharded_modules(model: nn.Module) -> set[int]:
    """The identities of the modules whose weights FSDP looks after."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was never imported, nothing is sharded by it
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is None:
        return set()
    return {id(part) for module in model.modules() if isinstance(module, kind) for part in module.modules()}

"""Argument checks: each message names the op, the argument, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def fail(op: str, argument: str, expected: str, got: str, kind: type[Exception] = ValueError) -> None:
    raise kind(f"{op}: {argument}: expected {expected}, got {got}")


def describe(value: Any) -> str:
    """A short description of a value for an error message."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


def tensor(op: str, argument: str, value: Any) -> None:
    """Raise unless `value` is a dense floating-point tensor of a supported dtype."""
    if not isinstance(value, Tensor):
        fail(op, argument, "a tensor", describe(value), TypeError)
    if value.layout is not torch.strided:
        fail(op, argument, "a dense (strided) tensor", f"layout {value.layout}", TypeError)
    if value.dtype not in FLOATING:
        fail(op, argument, "float32, float64, float16 or bfloat16", describe(value), TypeError)


def feature_map(op: str, argument: str, value: Any, rank: int = 4) -> None:
    """Raise unless `value` is a dense floating-point tensor [N, C, H, W] (or of another fixed rank)."""
    tensor(op, argument, value)
    if value.dim() != rank:
        shape = "[N, C, H, W]" if rank == 4 else f"of rank {rank}"
        fail(op, argument, f"a tensor {shape}", f"{value.dim()} dimensions: {describe(value)}")


def alike(op: str, argument: str, value: Any, like: Tensor, like_name: str = "x") -> None:
    """Raise unless `value` is a tensor with the dtype and device of `like`, which has been checked."""
    if (  # the usual case at once: this runs for every argument of every call
        isinstance(value, Tensor)
        and value.dtype is like.dtype
        and value.layout is torch.strided
        and ((value.is_cpu and like.is_cpu) or value.device == like.device)
    ):
        return
    tensor(op, argument, value)
    if value.dtype != like.dtype:
        fail(op, argument, f"dtype {like.dtype} as {like_name}", str(value.dtype), TypeError)
    if value.device != like.device:
        fail(op, argument, f"device {like.device} as {like_name}", str(value.device))


def shape(op: str, argument: str, value: Tensor, *allowed: tuple[int, ...]) -> None:
    """Raise unless the shape of `value` is one of `allowed`."""
    if value.shape not in allowed:
        fail(op, argument, "shape " + " or ".join(str(list(s)) for s in allowed), describe(value))


def choice(op: str, argument: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise unless `value` is one of `allowed`."""
    if value not in tuple(allowed):  # which compares; a dictionary would hash
        fail(op, argument, " or ".join(repr(a) for a in allowed), describe(value))

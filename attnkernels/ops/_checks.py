"""Argument checks: each message names the op or layer, the argument, what was expected and what was got."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .._messages import not_among, one_of, shown
from ..backends import FLOATING


def fail(op: str, argument: str, expected: str, got: str, kind: type[Exception] = ValueError) -> None:
    raise kind(f"{op}: {argument}: expected {expected}, got {got}")


def tensor(op: str, argument: str, value: Any) -> None:
    """Raise unless `value` is a dense floating-point tensor of a supported dtype."""
    if not isinstance(value, Tensor):
        fail(op, argument, "a tensor", shown(value), TypeError)
    if value.layout is not torch.strided:
        fail(op, argument, "a dense (strided) tensor", f"layout {value.layout}", TypeError)
    if value.dtype not in FLOATING:
        fail(op, argument, "float32, float64, float16 or bfloat16", shown(value), TypeError)


def feature_map(op: str, argument: str, value: Any) -> None:
    """Raise unless `value` is a dense floating-point tensor [N, C, H, W]."""
    tensor(op, argument, value)
    if value.dim() != 4:
        fail(op, argument, "a tensor [N, C, H, W]", f"{value.dim()} dimensions: {list(value.shape)}")


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


def shape(op: str, argument: str, value: Tensor, *allowed: tuple[int, ...], names: str = "") -> None:
    """Raise unless the shape of `value` is one of `allowed`, which a message gives as `names` where that says more."""
    for sizes in allowed:  # not `in`, which the compiler of PyTorch 2.11 denies where sizes are symbolic
        if value.shape == sizes:
            return
    expected = names or " or ".join(str(list(sizes)) for sizes in allowed)
    fail(op, argument, f"shape {expected}", str(list(value.shape)))


def choice(op: str, argument: str, value: Any, allowed: Collection[str | None], or_else: str = "") -> None:
    """Raise unless `value` is one of these names.

    Args:
        op, argument, value: as everywhere here.
        allowed: the names; None may be one.
        or_else: what else the argument may be, for the message.
    """
    is_name = value is None or isinstance(value, str)  # anything else may have a comparison of its own, or no hash
    if is_name and value in allowed:
        return
    expected = f"{one_of(allowed)}, or {or_else}" if or_else else ""
    raise not_among(f"{op}: {argument}", value, allowed, expected)


def function(op: str, argument: str, value: Any, allowed: Collection[str]) -> None:
    """Raise unless `value` is the name of a pointwise function or a callable; a class is none, its result is."""
    if isinstance(value, type) or not callable(value):
        choice(op, argument, value, allowed, "a callable on tensors")


def same_shape(op: str, argument: str, result: Any, x: Tensor) -> None:
    """Raise unless a callable that was given as `argument` has returned a tensor of the shape of its input."""
    if not isinstance(result, Tensor):
        fail(op, argument, "a callable that returns a tensor", shown(result), TypeError)
    shape(op, f"the result of {argument}", result, x.shape)


def integer(where: str, argument: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of any library as an int; raises unless it is one, and in range. A bool is none, nor is 16.0."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        fail(where, argument, "an integer", shown(value), TypeError)
    if number < least or (most is not None and number > most):
        last = "" if most is None else f"{least} or {most}" if most == least + 1 else f"{least} to {most}"
        fail(where, argument, last or f"at least {least}", shown(value))
    return number


def ratio(where: str, argument: str, value: Any) -> float:
    """A part of a whole as a float; raises unless it is a number above 0 and up to 1."""
    expected = "a number above 0 and up to 1"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(where, argument, expected, shown(value), TypeError)
    if not 0 < value <= 1:  # nor is nan
        fail(where, argument, expected, shown(value))
    return float(value)


def flag(where: str, argument: str, value: Any) -> bool:
    """True or False, or numpy's; raises for anything else: a string would count as true."""
    if not isinstance(value, bool) and str(getattr(value, "dtype", "")) != "bool":
        fail(where, argument, "True or False", shown(value), TypeError)
    return bool(value)

"""Autocast, on any device: torch.is_autocast_enabled raises for those that have none ("meta")."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Autocast off for x's device: a derivative has the dtypes of its forward, wherever it is taken."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else contextlib.nullcontext()


def parameters_as_map(which: slice) -> Callable[[tuple], tuple]:
    """Autocast of an op on a map: the map comes in the dtype of the convolution before, and the parameters follow it.

    Args:
        which: the parameters among the inputs; the map is the first input.
    """

    def cast(inputs: tuple) -> tuple:
        dtype = inputs[0].dtype
        chosen = [x.to(dtype) if isinstance(x, Tensor) else x for x in inputs[which]]
        return *inputs[: which.start], *chosen, *inputs[which.stop :]

    return cast


def matrix_product(inputs: tuple) -> tuple:
    """Autocast of a matrix product: all in autocast's dtype; float64 is left alone, as there."""
    dtype = torch.get_autocast_dtype(next(x for x in inputs if isinstance(x, Tensor)).device.type)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype is not torch.float64 else x

    return tuple(map(cast, inputs))

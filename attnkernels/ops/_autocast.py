"""Autocast, on any device: torch.is_autocast_enabled raises for those that have none ("meta")."""

from __future__ import annotations

import contextlib

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

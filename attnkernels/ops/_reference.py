"""What the references share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import backends
from ._autocast import autocasts


def takes_checks(op: str, backend: str, *tensors: Any) -> bool:
    """Whether a reference is to check its arguments as the op does; `backend` always has to be the name of one.

    A tracer's proxies and the tensors of subclasses answer for themselves. Under autocast each PyTorch function in the
    formula casts what it is given.
    """
    backends.checked(backend, f"{op}: backend")
    return not backends.overridden(tensors) and not any(isinstance(x, Tensor) and autocasts(x) for x in tensors)

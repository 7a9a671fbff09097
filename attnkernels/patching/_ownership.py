"""Whether the result of a call may be written over.

A convolution returns new memory, as a rule. But a mode, a hook or whatever else stands between the call and the kernel
may keep the tensor or another tensor on its memory. All of them leave a trace: one more reference to the Python object,
to the tensor behind it or to its storage, or a weak reference. What the counts are for a tensor that nobody else has is
measured, because interpreters differ in which references they count.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount, gettrace
from typing import Any
from weakref import getweakrefcount

import torch
from torch import Tensor

from .._context import has_modes

_storage_use_count = torch._C._storage_Use_Count
# Not the storage as a Python object, which takes longer to make than all the rest.
_storage_address = torch._C._storage_id
_counts_of_new: tuple = ()


def counts_of_new() -> tuple:
    """What `counted` counts of a result that nobody else has; empty where it cannot be measured now.

    It is measured by `counted` itself, once, because the same references have to be counted in the same places.
    """
    global _counts_of_new
    if not (_counts_of_new or has_modes() or gettrace()):  # a tracer may hold locals
        _counts_of_new = counted(lambda _: torch.empty(1), None)[1]
    return _counts_of_new


def counted(function: Callable[[Any], Tensor], x: Any) -> tuple[Tensor, tuple | None]:
    """The result of a call, and how many references there are to it and to its memory; None for no plain tensor."""
    result = function(x)
    if result.__class__ is not Tensor:
        return result, None
    return result, (
        getrefcount(result),
        result._use_count(),
        getweakrefcount(result),
        _storage_use_count(_storage_address(result)),
    )

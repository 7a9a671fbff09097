"""The class swap: an instance's class becomes a subclass of it with another forward, and back.

The instance's own state is not touched, but for the look that its calls go by, which no copy has: which op
runs, on which backend, and what the class was, are attributes of the swapped class. There is one such class for an
original, an adapter and a backend, under the original's name.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..layers._look import forget_look
from ._adapter import Adapter, find_adapter


@dataclass(frozen=True, eq=False)
class Swap:
    """What a swapped class remembers: the class it stands for, and what runs in its place."""

    original: type[nn.Module]
    adapter: Adapter
    backend: str


class Swapped:
    """Base of the swapped classes."""

    _attnkernels: Swap  # the only name put in the way of the original's attributes

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # Copies and pickles name the original class, which can be imported, and swap again.
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _recreate, (stock_class(type(self)), self._attnkernels.backend), state

    def __prepare_scriptable__(self) -> nn.Module:
        # torch.jit.script compiles the original's source. (It puts what this returns into the parent's _modules.)
        cls = stock_class(type(self))
        stock = cls.__new__(cls)
        stock.__dict__ = self.__dict__.copy()
        return stock


def stock(module: nn.Module, *inputs: Any) -> Any:
    """What the module computed before it was patched."""
    return module._attnkernels.original.forward(module, *inputs)


def swap_of(module: nn.Module) -> Swap | None:
    """What a module was swapped for; None where it was not."""
    return getattr(module.__class__, "_attnkernels", None)


@functools.cache
def swapped_class(original: type[nn.Module], adapter: Adapter, backend: str) -> type[nn.Module]:
    """The subclass of `original` whose forward is the adapter's."""
    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": adapter.forward,
        "_attnkernels": Swap(original, adapter, backend),
    }
    return type(original)(original.__name__, (Swapped, original), namespace)


@functools.cache
def stock_class(cls: type) -> type:
    """The class that an instance of `cls` had, or would have, without the swap.

    FSDP and parametrisations replace an instance's class by a subclass of whatever it is: such a subclass of a swapped
    class is made anew over the original.
    """
    if not issubclass(cls, Swapped):
        return cls
    if "_attnkernels" in cls.__dict__:
        return cls._attnkernels.original
    namespace = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, tuple(stock_class(base) for base in cls.__bases__), namespace)


def _recreate(original: type[nn.Module], backend: str) -> nn.Module:
    """An instance without state, swapped where an adapter still recognises the class (unpickling)."""
    from ._registry import ADAPTERS  # the adapters import this file

    adapter, obstacle = find_adapter(original, ADAPTERS)
    cls = original if adapter is None or obstacle else swapped_class(original, adapter, backend)
    return cls.__new__(cls)


def assign_classes(plan: list[tuple[nn.Module, type]]) -> None:
    """Give every module its class; if one refuses, all get back the class they had, and the error goes on."""
    done = []
    try:
        for module, cls in plan:
            before = module.__class__
            if before is not cls:
                module.__class__ = cls
                done.append((module, before))
                forget_look(module)
    except BaseException:
        for module, before in reversed(done):
            object.__setattr__(module, "__class__", before)
        raise

"""Guards: cached facts about the modules that a fused call passes by, checked again before each call.

Whatever hangs on the calls of these modules has to be noticed: hooks, other children, another class, another forward.
Finding it out name by name takes 5 us of Python in a loop and 35 between two convolutions, which leave little of the
interpreter in the caches: then a small model has gained nothing, on a CPU nor on a GPU that waits for its next kernel.
A module therefore caches a guard, and each call only asks whether the guard still holds. Where it does not, or anything
else is unusual, the call is considered name by name, and what is found then is cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from . import backends
from ._context import PASSES_MODULES

NAME = "_attnkernels_guard"
PART = "_attnkernels_part"  # where a module has a second guard, of a smaller part that an op stands for in other calls
_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))
# Names of this module: each lookup in another one is two or three cache lines more.
_grad_enabled = torch.is_grad_enabled
_plain_backend = backends.plain_backend


class Guard:
    """What has to be as it was for a module's op to stand for its children.

    A guard never refers to the module that caches it, nor to that module's `__dict__`: the module would then be freed
    by the garbage collector only.

    Attributes:
        arguments: what the op is called with after the tensors.
        backend: what the op's own argument would be.
        extra: whatever else the module's forward wants to have at hand.
    """

    __slots__ = (
        "arguments", "backend", "children", "extra", "forwards", "holders", "modules", "names", "own", "passed",
        "settings", "types",
    )  # fmt: skip

    def __init__(
        self,
        module: nn.Module,
        passed: Iterable[nn.Module | None],
        tensors: Iterable[tuple[dict[str, Any], str]],
        settings: Iterable[tuple[Mapping[str, Any], str]],
        own: Iterable[str],
        arguments: tuple,
        backend: str,
        extra: Any = None,
    ):
        """Take down how things are.

        Args:
            module: the one that caches the guard.
            passed: the modules whose calls the op stands for.
            tensors: where the op's tensors are, a parameter dictionary and a name each.
            settings: entries of other modules' and classes' dictionaries that have to stay as they are, or absent.
            own: names of the module's own attributes of which the same is true.
            arguments: as above.
            backend: as above.
            extra: as above.

        Raises:
            LookupError: a tensor is not there (a replica of DataParallel), or of a subclass (distributed, quantised).
        """
        passed = tuple(child for child in passed if child is not None)
        self.modules = module._modules  # the replicas of DataParallel have this guard too, but children of their own
        self.children = tuple(
            (parent._modules, tuple(parent._modules.values())) for parent in (module, *passed) if parent._modules
        )
        self.passed = tuple((child, type(child), child.__dict__) for child in passed)
        self.forwards = tuple((cls, cls.forward) for cls in dict.fromkeys(map(type, passed)))
        self.settings = tuple((holder, name, holder.get(name)) for holder, name in settings)
        self.own = tuple((name, module.__dict__.get(name)) for name in own)
        self.holders, self.names = zip(*tensors, strict=True)
        self.types = tuple(map(type, map(getitem, self.holders, self.names)))
        if not _PLAIN.issuperset(self.types):
            raise LookupError(f"expected plain tensors, got {self.types}")
        self.arguments = arguments
        self.backend = backend
        self.extra = extra

    def __reduce__(self) -> tuple:
        # A copy of the module has children of its own and finds out for itself. An empty set is false, and what was
        # saved loads with weights_only=True and where this library is not installed.
        return set, ()

    def holds(self, state: dict[str, Any], recorded: bool) -> bool:
        """Whether everything is as it was; `state` is the `__dict__` of the module that is called.

        Hooks of the backward run only where autograd may record, which is `recorded`.
        """
        for modules, children in self.children:
            if tuple(modules.values()) != children:
                return False
        for child, cls, child_state in self.passed:
            if (
                child_state["_forward_hooks"]
                or child_state["_forward_pre_hooks"]
                or type(child) is not cls
                or "forward" in child_state
                or "_conv_forward" in child_state
                or (recorded and (child_state["_backward_hooks"] or child_state["_backward_pre_hooks"]))
            ):
                return False
        for cls, forward in self.forwards:
            if cls.forward is not forward:
                return False
        for name, value in self.own:
            if state.get(name) is not value:
                return False
        for holder, name, value in self.settings:  # noqa: SIM110  a generator would take longer
            if holder.get(name) is not value:
                return False
        return True

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The op's tensors as they are now.

        Raises:
            LookupError: one is no longer there, or of another type.
        """
        found = tuple(map(getitem, self.holders, self.names))
        if tuple(map(type, found)) != self.types:
            raise LookupError(found)
        return found


def entries(taken: Iterable[tuple[nn.Module | None, Iterable[str]]]) -> list[tuple[dict[str, Any], str]]:
    """Where the parameters and buffers of layers are, given by their names, for a guard; of None there are none."""
    return [
        ({name: None} if layer is None else layer._parameters if name in layer._parameters else layer._buffers, name)
        for layer, names in taken
        for name in names
    ]


def match(module: nn.Module, x: Any, name: str = NAME, does: int = PASSES_MODULES) -> tuple[Guard, str] | None:
    """The module's guard and the backend of kernels, where it holds for this call on `x`; None where it does not.

    Such a call has to be considered by name.

    Args:
        module: the one that has cached a guard, perhaps.
        x: its input.
        name: which guard.
        does: as in `_context.is_ordinary`.
    """
    if is_dynamo_compiling():  # the compiler takes it for the constant True and never sees the rest
        return None
    state = module.__dict__
    guard = state.get(name)
    if (
        not guard
        or guard.modules is not state["_modules"]
        or not (backend := _plain_backend(x, guard.backend, does=does))
    ):
        return None
    if guard.holds(state, _grad_enabled()):
        return guard, backend
    invalidate(module)  # it would keep alive what was replaced
    return None


def cache(module: nn.Module, *arguments: Any, name: str = NAME) -> Guard | None:
    """Let the module's next calls go by a guard made now, of these arguments of Guard; None where it cannot be made."""
    try:
        guard = module.__dict__[name] = Guard(module, *arguments)
    except LookupError:
        return None
    return guard


def invalidate(module: nn.Module) -> None:
    """Let the module's next call be considered by name."""
    module.__dict__.pop(NAME, None)
    module.__dict__.pop(PART, None)

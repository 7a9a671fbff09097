"""What a module found when it last looked at the modules that its op stands for.

A fused call passes modules by, so whatever hangs on their calls has to be noticed: hooks, other children, another
class, a forward of the instance's own. Looking for it name by name takes 5 us of Python in a loop and 60 between two
convolutions, which leave little of the interpreter in the caches: then a small model has gained nothing. In inference
on a CPU a module therefore remembers what it saw, and each call only asks whether that is still so, by a few
comparisons that run in C. Where it is not, or anything else is unusual, the call is considered anew, the long way.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import getitem, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .. import backends
from ._fusing import GLOBAL_HOOKS, transforms_active

_NAME = "_attnkernels_look"
_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))
_hooks = itemgetter("_forward_hooks", "_forward_pre_hooks")  # of the others, none runs where nothing is recorded
# Names of this module: each lookup in another one is two or three cache lines more.
_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state
_autocast_enabled = torch._C._is_any_autocast_enabled
_forced_backend = backends.forced


class Look:
    """A module's look at the modules that its op stands for.

    Attributes:
        arguments: what the op is called with after the tensors.
        extra: whatever else the module's forward wants to have at hand.
    """

    __slots__ = (
        "arguments", "children", "classes", "extra", "forced", "holders", "modules", "names", "passed", "settings",
        "states", "types",
    )  # fmt: skip

    def __init__(
        self,
        module: nn.Module,
        passed: Iterable[nn.Module],
        tensors: Iterable[tuple[dict[str, Any], str]],
        settings: Iterable[tuple[nn.Module, str]],
        arguments: tuple,
        extra: Any = None,
    ):
        """Look.

        Args:
            module: the one that looks.
            passed: those whose calls the op stands for.
            tensors: where the op's tensors are, a parameter dictionary and a name each.
            settings: attributes of modules, not modules themselves, that have to stay as they are.
            arguments: as above.
            extra: as above.

        Raises:
            LookupError: a tensor is not there (a replica of DataParallel), or of a subclass (distributed, quantised).
        """
        passed = tuple(child for child in passed if child is not None)
        self.modules = module._modules  # the replicas of DataParallel have this look too, but children of their own
        self.children = tuple(
            (parent._modules, tuple(parent._modules.values())) for parent in (module, *passed) if parent._modules
        )
        self.passed = passed
        self.classes = tuple(map(type, passed))
        self.states = tuple(child.__dict__ for child in passed)
        self.settings = tuple((owner.__dict__, name, owner.__dict__[name]) for owner, name in settings)
        self.holders, self.names = zip(*tensors, strict=True)
        self.types = tuple(map(type, map(getitem, self.holders, self.names)))
        if not _PLAIN.issuperset(self.types):
            raise LookupError(f"expected plain tensors, got {self.types}")
        self.forced = _forced_backend()
        self.arguments = arguments
        self.extra = extra

    def __reduce__(self) -> tuple:
        # A copy of the module has children of its own, and looks for itself.
        return _no_look, ()

    def holds(self) -> bool:
        """Whether the modules are as they were."""
        for modules, children in self.children:
            if tuple(modules.values()) != children:
                return False
        for state in self.states:
            if any(_hooks(state)) or "forward" in state:
                return False
        for state, name, value in self.settings:
            if state.get(name) is not value:
                return False
        return tuple(map(type, self.passed)) == self.classes

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The op's tensors as they are now.

        Raises:
            LookupError: one is no longer there, or of another type.
        """
        found = tuple(map(getitem, self.holders, self.names))
        if tuple(map(type, found)) != self.types:
            raise LookupError(found)
        return found


def _no_look() -> None:
    return None


def current(module: nn.Module, x: Any) -> Look | None:
    """What a module saw, where this call on `x` may go by it; None where it has to be considered anew."""
    if is_dynamo_compiling():  # the compiler takes it for the constant True and never sees the rest
        return None
    state = module.__dict__
    look = state.get(_NAME)
    if (
        look is None
        or x.__class__ is not Tensor
        or _grad_enabled()
        or not x.is_cpu
        or look.modules is not state["_modules"]
        or _tracing_state() is not None
        or _autocast_enabled()
        or transforms_active()
        or forward_ad._current_level >= 0
        or any(GLOBAL_HOOKS)
        or _forced_backend() != look.forced
    ):
        return None
    if look.holds():
        return look
    forget_look(module)  # it would keep alive what was replaced
    return None


def keep(module: nn.Module, *arguments: Any) -> Look | None:
    """Let the module's next calls go by a look taken now; None where it cannot be taken."""
    try:
        look = module.__dict__[_NAME] = Look(module, *arguments)
    except LookupError:
        return None
    return look


def forget_look(module: nn.Module) -> None:
    """Let the module's next call look anew."""
    module.__dict__.pop(_NAME, None)

"""Modules that scale a map by gates as their op takes them: what layers and the adapters of other libraries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backends
from .._guard import cache, entries, match
from .._modules import NOT_BARE, is_bare, method_owner, pointwise_name, qualified_name
from ..ops._op import Op
from ._input import called


class Gated(NamedTuple):
    """All of an op's call but the map, which is the first input, and the epilogue: residual and output_activation.

    Some ops have no epilogue. Modules among the options are called by the op, hooks and all; it stands for all others
    in the module.

    Attributes:
        op: the op.
        layers: those whose tensors go into the op, in order, with the names of these; None: the op gets none.
        weights: these tensors.
        options: the op's options but for those of the epilogue, which come last.
        own: attributes of the module itself that decide whether the op computes what it does.
        methods: methods of its class, besides the forward, that do.
        settings: entries of the dictionaries of modules in it that do.
    """

    op: Op
    layers: tuple[tuple[nn.Module | None, tuple[str, ...]], ...]
    weights: tuple[Tensor | None, ...]
    options: tuple
    own: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    settings: tuple[tuple[Mapping[str, Any], str], ...] = ()

    def __call__(
        self, x: Tensor, backend: str = "auto", residual: Tensor | None = None, output_activation: str | None = None
    ) -> Tensor:
        if not self.has_epilogue:
            return self.op(backend, (x, *self.weights), self.options)
        return self.op(backend, (x, *self.weights, residual), (*self.options, output_activation))

    @property
    def has_epilogue(self) -> bool:
        """Whether the op knows a residual and an output activation."""
        return self.op.inputs[-1] == "residual"

    def taken(self) -> tuple[tuple[nn.Module | None, tuple[str, ...]], ...]:
        """As in `layers`, for guards and reports."""
        return self.layers

    def settings_of(self, module: nn.Module) -> list[tuple[Mapping[str, Any], str]]:
        """What must not change besides the module's own attributes, for a guard."""
        methods = [(method_owner(method, type(module)).__dict__, method) for method in self.methods]
        return [*methods, *self.settings]

    def integers(self, output_activation: str | None = None) -> tuple[int, ...]:
        """The integers by which the operators know the options."""
        return self.op.integers((*self.options, output_activation))


def pointwise_child(child: nn.Module | None, known: tuple[str, ...]) -> str | None:
    """The name of a bare pointwise module among these; None where it is anything else."""
    if child is None or not is_bare(child):
        return None
    name = pointwise_name(child.__class__)
    return name if name in known else None


def not_bare(name: str, child: nn.Module | None, expected: str) -> str:
    """Why an op cannot stand for a child."""
    if child is not None and not is_bare(child):
        return f"its {name} {NOT_BARE}"
    got = "none" if child is None else qualified_name(child.__class__)
    return f"its {name} is not {expected} ({got})"


def gated_by_guard(module: nn.Module, x: Tensor) -> Tensor | None:
    """The op on x by the module's guard; None where this call has to be considered by name."""
    found = match(module, x)
    if found is None:
        return None
    guard, backend = found
    op, no_epilogue = guard.extra
    try:
        inputs = (x, *guard.tensors(), *no_epilogue)
        if backend == "triton":  # the operators in C++ check as the function does
            op.check(*inputs, *guard.arguments)
        return op.run(backend, inputs, guard.arguments)
    except (RuntimeError, LookupError, TypeError, ValueError):
        return None  # considered by name, the call says what is wrong, or does without


def cache_gated(module: nn.Module, x: Tensor, found: Gated, backend: str = "auto") -> bool:
    """Let the next calls of the module go by what was found in this one on `x`; False where they may not."""
    if not backends.plain_backend(x, backend):
        return False
    called = {id(part) for option in found.options if isinstance(option, nn.Module) for part in option.modules()}
    passed = [part for part in module.modules() if part is not module and id(part) not in called]
    tensors, settings = entries(found.layers), found.settings_of(module)
    no_epilogue = (None,) if found.has_epilogue else ()
    options = (*found.options, *no_epilogue)
    guard = cache(module, passed, tensors, settings, found.own, options, backend, (found.op, no_epilogue))
    return guard is not None


class GatedLayer(nn.Module):
    """A layer that stands for its children by its op, where nothing hangs on their calls.

    Subclasses define `_considered`, a call whose children are looked at by name, `_children_in_turn`, and `_first` as
    `called` wants it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._children_in_turn(x)
        else:  # which TorchScript does not compile
            return self._fused(x)

    def _fused(self, x: Tensor) -> Tensor:
        y = gated_by_guard(self, x)
        if y is not None:
            return y
        return called(self, self._considered, x, self._first)

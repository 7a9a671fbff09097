"""What the adapters of squeeze-and-excitation modules share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import backends
from .._context import PASSES_MODULES, is_ordinary
from .._guard import PART, cache, invalidate, match
from .._modules import are_ordinary, is_bare, qualified_name
from ..layers._excitation import OP, Excitation, cache_excitation, excited
from ..ops import squeeze_excite
from ._adapter import Adapter
from ._availability import is_unserved
from ._dispatch import FLAG, Serve, backend_of

Arguments = Callable[[nn.Module], Excitation | str]
_ARGUMENTS: dict[str, Arguments] = {}  # by the qualified name of the module's class


@functools.cache
def _arguments_of(cls: type) -> Arguments | None:
    return _ARGUMENTS.get(qualified_name(cls))


def excitation_inside(block: nn.Module, name: str) -> Excitation | str:
    """What the op takes from a block's child of this name, a bare module on [N, C, H, W]; a reason where it is not."""
    module = block._modules.get(name)
    arguments = _arguments_of(module.__class__)
    if arguments is None or not is_bare(module):
        return f"its {name} is not a bare squeeze-and-excitation module"
    return arguments(module)


def is_excitation(module: nn.Module | None) -> bool:
    """Whether an adapter of this op serves modules of this one's class, on [N, C, H, W]."""
    return _arguments_of(module.__class__) is not None


def excitation_adapter(
    original: str,
    fingerprint: str,
    arguments: Arguments,
    forward: Callable[[Arguments], Serve] | None = None,
    methods: tuple[str, ...] = ("forward",),
) -> Adapter:
    """The adapter of a squeeze-and-excitation module.

    Args:
        original: as in Adapter.
        fingerprint: as in Adapter.
        arguments: as in Adapter.
        forward: makes the adapter's forward of `arguments`; None for a module on [N, C, H, W].
        methods: as in Adapter.
    """
    if forward is None:
        _ARGUMENTS[original] = arguments
        forward = _forward
    return Adapter(
        op=OP,
        originals=(original,),
        fingerprints=frozenset({fingerprint}),
        arguments=arguments,
        forward=forward(arguments),
        methods=methods,
    )


def fusable(
    module: nn.Module, x: Tensor, arguments: Arguments, passed: Callable[[nn.Module], Sequence[nn.Module]] | None = None
) -> Excitation | None:
    """The op's arguments where this call of the module may be fused; None where the original forward has to run.

    Args:
        module: the patched module.
        x: its input.
        arguments: as in Adapter.
        passed: finds the modules in it whose calls the op stands for, first the excitation; None where the module is
            the excitation.
    """
    known = match(module, x, PART)
    if known is not None and x.dim() == 4:
        guard, _ = known
        try:
            weights = guard.tensors()
        except LookupError:
            pass
        else:
            if are_ordinary(*weights):  # a layout may have changed
                return guard.extra._replace(weights=weights)
    backend = backend_of(module)
    if not is_ordinary(x, PASSES_MODULES) or x.dim() != 4 or is_unserved(x, backend):
        return None
    found = arguments(module)
    if found.__class__ is str or not are_ordinary(*found.weights):
        return None
    if backends.plain_backend(x, backend):
        around = () if passed is None else passed(module)
        excitation = around[0] if around else module
        # A guard must not refer to the `__dict__` of the module that has it.
        settings = [(excitation.__dict__, name) for name in (FLAG, *found.own)] if around else []
        cache(
            module,
            [*around, *excitation._modules.values()],
            found.tensors(),
            [*settings, *found.methods_of(excitation)],
            () if around else found.own,
            (),
            backend,
            found,
            name=PART,
        )
        keep_only_if_patched(module, backend)
    return found


def excite(x: Tensor, found: Excitation, backend: str, **epilogue: Any) -> Tensor:
    """The op on an excitation's arguments."""
    return squeeze_excite(
        x, *found.weights, activation=found.activation, gate=found.gate, backend=backend, **epilogue
    )  # fmt: skip


def keep_only_if_patched(module: nn.Module, backend: str) -> None:
    """Drop the guard that a call has just cached, where another thread has unpatched or changed the module since."""
    if module.__dict__.get(FLAG) != backend:
        invalidate(module)


def _forward(arguments: Arguments) -> Serve:
    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        y = excited(self, x)
        if y is not None:
            return y
        found = fusable(self, x, arguments)
        if found is None:
            return original(self, x)
        backend = backend_of(self)
        if cache_excitation(self, x, found, backend):
            keep_only_if_patched(self, backend)
        return excite(x, found, backend)

    return forward

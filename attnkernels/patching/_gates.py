"""What the adapters of modules that scale a map by gates share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary
from ..layers._gated import Gated, cache_gated, gated_by_guard
from ._adapter import Adapter
from ._availability import is_unserved
from ._dispatch import Serve, backend_of, keep_only_if_patched
from ._registry import register

Arguments = Callable[[nn.Module], Gated | str]


def considered(module: nn.Module, x: Tensor, arguments: Arguments, backend: str) -> Gated | None:
    """The op's arguments for this call of a module, found by name; None where the original forward has to run."""
    if not is_ordinary(x, PASSES_MODULES) or x.dim() != 4 or is_unserved(x, backend):
        return None
    found = arguments(module)
    return None if isinstance(found, str) or not are_ordinary(*found.weights) else found


def forward_of(arguments: Arguments) -> Serve:
    """What a patched module on [N, C, H, W] runs."""

    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        y = gated_by_guard(self, x)
        if y is not None:
            return y
        backend = backend_of(self)
        found = considered(self, x, arguments, backend)
        if found is None:
            return original(self, x)
        if cache_gated(self, x, found, backend):
            keep_only_if_patched(self, backend)
        return found(x, backend)

    return forward


def serve(op: str, original: str, arguments: Arguments, methods: tuple[str, ...] = ("forward",)) -> None:
    """Register the adapter of a module on [N, C, H, W], in blocks as well.

    Args:
        op: as in Adapter.
        original: the qualified name of its class.
        arguments: as in Adapter.
        methods: as in Adapter.
    """
    register(Adapter(op, (original,), arguments, forward_of(arguments), methods=methods, is_part_of_blocks=True))

"""What the adapters of modules that scale a map by gates share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary, descendant, is_bare
from ..layers._gated import Gated, cache_gated, gated_by_guard
from ._adapter import SEQUENTIAL, Adapter, not_replaceable
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


def serve(
    op: str, original: str, arguments: Arguments, methods: tuple[str, ...] = ("forward",), in_blocks: bool = True
) -> None:
    """Register the adapter of a module on [N, C, H, W].

    Args:
        op: as in Adapter.
        original: the qualified name of its class.
        arguments: as in Adapter.
        methods: as in Adapter.
        in_blocks: as `is_part_of_blocks` in Adapter.
    """
    adapter = Adapter(op, (original,), arguments, forward_of(arguments), methods=methods, is_part_of_blocks=in_blocks)
    register(adapter)


def not_averages(module: nn.Module, path: str) -> str:
    """Why a module inside another one is not known to take the mean of each channel; empty where it is."""
    pool = descendant(module, path)
    if pool.__class__ is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) and is_bare(pool):
        return ""
    return f"its {path} is not a bare AdaptiveAvgPool2d(1)"


def not_sequential(module: nn.Module, path: str, length: int) -> str:
    """Why a module inside another one is not a Sequential of so many modules; empty where it is."""
    if obstacle := not_replaceable(module, path, SEQUENTIAL):
        return obstacle
    children = descendant(module, path)._modules
    return "" if list(children) == list(map(str, range(length))) else f"its {path} has other than {length} modules"

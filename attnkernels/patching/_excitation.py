"""What the adapters of squeeze-and-excitation modules share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers._excitation import OP, Excitation, excited, remember
from ..layers._fusing import are_ordinary, is_bare, left_to_pytorch, qualified_name
from ..ops import squeeze_excite
from ._adapter import Adapter
from ._swap import stock

# By the qualified name of the module's class, which a swapped class keeps.
_ARGUMENTS: dict[str, Callable[[nn.Module], Excitation | str]] = {}


@functools.cache
def _arguments_of(cls: type) -> Callable[[nn.Module], Excitation | str] | None:
    return _ARGUMENTS.get(qualified_name(cls))


def excitation_inside(block: nn.Module, name: str) -> Excitation | str:
    """The same of a block's child of this name, a bare module on [N, C, H, W]; a reason where it is not."""
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
    arguments: Callable[[nn.Module], Excitation | str],
    forward: Callable[[nn.Module, Tensor], Tensor],
    methods: tuple[str, ...] = ("forward",),
) -> Adapter:
    """The adapter of a squeeze-and-excitation module."""
    if forward in (forward_x, forward_input):  # one on [N, C, H, W]
        _ARGUMENTS[original] = arguments
    return Adapter(
        op=OP,
        originals=(original,),
        fingerprints=frozenset({fingerprint}),
        arguments=arguments,
        forward=forward,
        methods=methods,
    )


def arguments_for(module: nn.Module, x: Tensor) -> Excitation | None:
    """The adapter's arguments where this call of the module may be fused; None where the stock forward has to run."""
    if left_to_pytorch(x) or x.dim() != 4:
        return None
    found = module._attnkernels.adapter.arguments(module)
    if found.__class__ is str or not are_ordinary(*found.weights):
        return None
    return found


def excite(x: Tensor, found: Excitation, backend: str, **epilogue: Any) -> Tensor:
    """The op on an excitation's arguments."""
    return squeeze_excite(
        x, *found.weights, activation=found.activation, gate=found.gate, backend=backend, **epilogue
    )  # fmt: skip


def forward_x(self: nn.Module, x: Tensor) -> Tensor:
    """The swapped forward of a module on [N, C, H, W]."""
    y = excited(self, x)
    if y is not None:
        return y
    found = arguments_for(self, x)
    if found is None:
        return stock(self, x)
    remember(self, x, found, self._attnkernels.backend)
    return excite(x, found, self._attnkernels.backend)


def forward_input(self: nn.Module, input: Tensor) -> Tensor:
    """The same, under torchvision's name for the parameter."""
    return forward_x(self, input)

"""What the adapters of squeeze-and-excitation modules share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers._fusing import affine, are_ordinary, is_bare, left_to_pytorch, pointwise_name, qualified_name
from ..ops import squeeze_excite
from ..ops.squeeze_excite.contract import ACTIVATION, GATE
from ._adapter import Adapter
from ._look import current, keep, may_be_kept
from ._swap import stock

OP = "squeeze_excite"
_operator = torch.ops.attnkernels.squeeze_excite.default


class Excitation(NamedTuple):
    """A squeeze-and-excitation module as the op takes it."""

    layers: tuple[nn.Module | None, nn.Module]  # the fully connected ones; the first is None in effective SE
    weights: tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]
    activation: str
    gate: str

    def tensors(self) -> list[tuple[dict[str, Any], str]]:
        """Where the weights are, for a look."""
        reduce, expand = self.layers
        absent: dict[str, Any] = {"weight": None, "bias": None}
        return [
            (absent if layer is None else layer._parameters, name)
            for layer in (reduce, expand)
            for name in ("weight", "bias")
        ]

    def codes(self) -> tuple[int, int]:
        """The integers by which the operators know activation and gate."""
        return ACTIVATION[self.activation], GATE[self.gate]


def excitation(
    module: nn.Module, reduce: str | None, activation: str | None, expand: str, gate: str
) -> Excitation | str:
    """The op's weights and pointwise functions, from a module's children of these names; a reason where it cannot run.

    Args:
        module: the upstream module.
        reduce: the first fully connected layer's name; None for a single-layer excitation.
        activation: the name of what stands between the layers; None for a single-layer excitation.
        expand: the last fully connected layer's name.
        gate: the gate's name.
    """
    children = module._modules
    reduce_layer = reduce_weight = reduce_bias = None
    activation_name = "relu"
    if reduce is not None:
        reduce_layer = children.get(reduce)
        weights = affine(reduce_layer)
        if weights is None:
            return _not_bare(reduce, reduce_layer, "a 1x1 convolution or a fully connected layer")
        reduce_weight, reduce_bias = weights
        activation_name = _pointwise(children.get(activation), ACTIVATION)
        if activation_name is None:
            return _not_bare(activation, children.get(activation), "ReLU or SiLU")
    expand_layer = children.get(expand)
    weights = affine(expand_layer)
    if weights is None:
        return _not_bare(expand, expand_layer, "a 1x1 convolution or a fully connected layer")
    gate_name = _pointwise(children.get(gate), GATE)
    if gate_name is None:
        return _not_bare(gate, children.get(gate), "a sigmoid or hard sigmoid")
    return Excitation((reduce_layer, expand_layer), (reduce_weight, reduce_bias, *weights), activation_name, gate_name)


def _pointwise(child: nn.Module | None, known: dict[str, int]) -> str | None:
    if child is None or not is_bare(child):
        return None
    name = pointwise_name(child.__class__)
    return name if name in known else None


def _not_bare(name: str, child: nn.Module | None, expected: str) -> str:
    if child is not None and not is_bare(child):
        return f"its {name} carries hooks or a forward of its own, which a fused call would pass by"
    got = "none" if child is None else qualified_name(child.__class__)
    return f"its {name} is not {expected} ({got})"


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
    look = current(self, x)
    if look is not None:
        try:
            return _operator(x, *look.tensors(), *look.arguments)[0]
        except (RuntimeError, LookupError):
            pass  # the operator checks as the function does; what follows says what is wrong, or does without
    found = arguments_for(self, x)
    if found is None:
        return stock(self, x)
    backend = self._attnkernels.backend
    if look is None and may_be_kept(x, OP, backend):
        no_residual, no_output_activation = None, 0
        arguments = (no_residual, *found.codes(), no_output_activation)
        keep(self, self._modules.values(), found.tensors(), settings_of(self), arguments)
    return excite(x, found, backend)


def settings_of(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The attributes of an upstream module that decide whether the op computes what it does."""
    return [(module, "add_maxpool")] if "add_maxpool" in module.__dict__ else []


def forward_input(self: nn.Module, input: Tensor) -> Tensor:
    """The same, under torchvision's name for the parameter."""
    return forward_x(self, input)

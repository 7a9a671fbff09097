"""What the adapters of squeeze-and-excitation modules share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers._fusing import affine, are_ordinary, is_bare, left_to_pytorch, pointwise_name, qualified_name
from ..ops.squeeze_excite import squeeze_excite_for_module
from ._swap import stock

_ACTIVATIONS = ("relu", "silu")
_GATES = ("sigmoid", "hard_sigmoid")

# reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate
Excitation = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, str, str]


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
    reduce_weight = reduce_bias = None
    activation_name = "relu"
    if reduce is not None:
        weights = affine(children.get(reduce))
        if weights is None:
            return _not_bare(reduce, children.get(reduce), "a 1x1 convolution or a fully connected layer")
        reduce_weight, reduce_bias = weights
        activation_name = _pointwise(children.get(activation), _ACTIVATIONS)
        if activation_name is None:
            return _not_bare(activation, children.get(activation), "ReLU or SiLU")
    weights = affine(children.get(expand))
    if weights is None:
        return _not_bare(expand, children.get(expand), "a 1x1 convolution or a fully connected layer")
    gate_name = _pointwise(children.get(gate), _GATES)
    if gate_name is None:
        return _not_bare(gate, children.get(gate), "a sigmoid or hard sigmoid")
    return reduce_weight, reduce_bias, *weights, activation_name, gate_name


def _pointwise(child: nn.Module | None, names: tuple[str, ...]) -> str | None:
    if child is None or not is_bare(child):
        return None
    name = pointwise_name(child.__class__)
    return name if name in names else None


def _not_bare(name: str, child: nn.Module | None, expected: str) -> str:
    if child is not None and not is_bare(child):
        return f"its {name} carries hooks or a forward of its own, which a fused call would pass by"
    got = "none" if child is None else qualified_name(child.__class__)
    return f"its {name} is not {expected} ({got})"


def arguments_for(module: nn.Module, x: Tensor) -> Excitation | None:
    """The adapter's arguments where this call of the module may be fused; None where the stock forward has to run."""
    if left_to_pytorch(x) or x.dim() != 4:
        return None
    found = module._attnkernels.adapter.arguments(module)
    if found.__class__ is str or not are_ordinary(*found[:4]):
        return None
    return found


def excite(x: Tensor, found: Excitation, backend: str, **epilogue: Any) -> Tensor:
    """The op on an excitation's arguments."""
    *weights, activation, gate = found
    return squeeze_excite_for_module(x, *weights, activation=activation, gate=gate, backend=backend, **epilogue)


def forward_x(self: nn.Module, x: Tensor) -> Tensor:
    """The swapped forward of a module on [N, C, H, W]."""
    found = arguments_for(self, x)
    return stock(self, x) if found is None else excite(x, found, self._attnkernels.backend)


def forward_input(self: nn.Module, input: Tensor) -> Tensor:
    """The same, under torchvision's name for the parameter."""
    return forward_x(self, input)

"""Squeeze-and-excitation modules as the op takes them: what the layer and the adapters of other libraries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import backends
from .._guard import cache, entries, match
from .._modules import NOT_BARE, affine, is_bare, method_owner, pointwise_name, qualified_name
from ..ops.squeeze_excite.checks import ACTIVATIONS, GATES, check
from ..ops.squeeze_excite.schema import SQUEEZE_EXCITE

OP = "squeeze_excite"


class Excitation(NamedTuple):
    """A squeeze-and-excitation module as the op takes it."""

    layers: tuple[nn.Module | None, nn.Module]  # the fully connected ones; the first is None in effective SE
    weights: tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]
    activation: str
    gate: str
    own: tuple[str, ...] = ()  # attributes of the module itself that decide whether the op computes what it does
    methods: tuple[str, ...] = ()  # methods of its class, besides the forward, that do

    def taken(self) -> list[tuple[nn.Module | None, tuple[str, ...]]]:
        """The layers whose tensors go into the op, in order, with the names of these; None: the op gets none."""
        return [(layer, ("weight", "bias")) for layer in self.layers]

    def methods_of(self, module: nn.Module) -> list[tuple[Mapping[str, Any], str]]:
        """Where the methods are that must not change, for a guard."""
        return [(method_owner(method, type(module)).__dict__, method) for method in self.methods]

    def integers(self, output_activation: str | None = None) -> tuple[int, ...]:
        """The integers by which the operators know activation, gate and what comes last."""
        return SQUEEZE_EXCITE.integers((self.activation, self.gate, output_activation))


def excitation(
    module: nn.Module,
    reduce: str | None,
    activation: str | None,
    expand: str,
    gate: str,
    own: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
) -> Excitation | str:
    """The op's weights and pointwise functions, from a module's children of these names; a reason where it cannot run.

    Args:
        module: the upstream module.
        reduce: the first fully connected layer's name; None for a single-layer excitation.
        activation: the name of what stands between the layers; None for a single-layer excitation.
        expand: the last fully connected layer's name.
        gate: the gate's name.
        own: as in Excitation.
        methods: as in Excitation.
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
        activation_name = _pointwise(children.get(activation), ACTIVATIONS)
        if activation_name is None:
            return _not_bare(activation, children.get(activation), "ReLU or SiLU")
    expand_layer = children.get(expand)
    weights = affine(expand_layer)
    if weights is None:
        return _not_bare(expand, expand_layer, "a 1x1 convolution or a fully connected layer")
    gate_name = _pointwise(children.get(gate), GATES)
    if gate_name is None:
        return _not_bare(gate, children.get(gate), "a sigmoid or hard sigmoid")
    weights = (reduce_weight, reduce_bias, *weights)
    return Excitation((reduce_layer, expand_layer), weights, activation_name, gate_name, own, methods)


def _pointwise(child: nn.Module | None, known: tuple[str, ...]) -> str | None:
    if child is None or not is_bare(child):
        return None
    name = pointwise_name(child.__class__)
    return name if name in known else None


def _not_bare(name: str, child: nn.Module | None, expected: str) -> str:
    if child is not None and not is_bare(child):
        return f"its {name} {NOT_BARE}"
    got = "none" if child is None else qualified_name(child.__class__)
    return f"its {name} is not {expected} ({got})"


def excited(module: nn.Module, x: Tensor) -> Tensor | None:
    """The op on x by the module's guard; None where this call has to be considered by name."""
    found = match(module, x)
    if found is None:
        return None
    guard, backend = found
    try:
        tensors = (x, *guard.tensors(), None)
        if backend != "cpu":  # whose operator checks as the function does
            check(*tensors, *guard.arguments)
        return SQUEEZE_EXCITE.run(backend, tensors, guard.arguments)
    except (RuntimeError, LookupError, TypeError, ValueError):
        return None  # considered by name, the call says what is wrong, or does without


def cache_excitation(module: nn.Module, x: Tensor, found: Excitation, backend: str = "auto") -> bool:
    """Let the next calls of the module go by what was found in this one on `x`; False where they may not."""
    if not backends.plain_backend(x, backend):
        return False
    arguments = (found.activation, found.gate, None)
    methods = found.methods_of(module)
    tensors = entries(found.taken())
    return cache(module, module._modules.values(), tensors, methods, found.own, arguments, backend) is not None

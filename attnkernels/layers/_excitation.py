"""Squeeze-and-excitation modules as the op takes them: what the layer and the adapters of other libraries share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .._modules import affine, descendant
from ..ops.squeeze_excite.checks import ACTIVATIONS, GATES
from ..ops.squeeze_excite.schema import SQUEEZE_EXCITE
from ._gated import Gated, not_bare, pointwise_child

_AFFINE = "a 1x1 convolution or a fully connected layer"


class Excitation(NamedTuple):
    """The fully connected layers of a channel gate.

    Attributes:
        layers: as in Gated.
        weights: as in Gated: reduce_weight, reduce_bias, expand_weight, expand_bias.
        activation: the name of what stands between the layers.
    """

    layers: tuple[tuple[nn.Module | None, tuple[str, ...]], ...]
    weights: tuple[Tensor | None, ...]
    activation: str


def fully_connected(
    module: nn.Module,
    reduce: str | None,
    activation: str | None,
    expand: str,
    known: tuple[str, ...] = ACTIVATIONS,
    expected: str = "ReLU or SiLU",
) -> Excitation | str:
    """The layers at these paths in a module; a reason where an op cannot stand for them.

    Args:
        module: the upstream module.
        reduce: the first layer; None for a single one.
        activation: what stands between the layers; None for a ReLU that is no module, and for a single layer.
        expand: the last layer.
        known: the activations that the op knows.
        expected: these, in words.
    """
    reduce_layer = reduce_weight = reduce_bias = None
    activation_name = "relu"
    if reduce is not None:
        reduce_layer = descendant(module, reduce)
        weights = affine(reduce_layer)
        if weights is None:
            return not_bare(reduce, reduce_layer, _AFFINE)
        reduce_weight, reduce_bias = weights
        if activation is not None:
            activation_layer = descendant(module, activation)
            activation_name = pointwise_child(activation_layer, known)
            if activation_name is None:
                return not_bare(activation, activation_layer, expected)
    expand_layer = descendant(module, expand)
    weights = affine(expand_layer)
    if weights is None:
        return not_bare(expand, expand_layer, _AFFINE)
    layers = (reduce_layer, ("weight", "bias")), (expand_layer, ("weight", "bias"))
    return Excitation(layers, (reduce_weight, reduce_bias, *weights), activation_name)


def excitation(
    module: nn.Module,
    reduce: str | None,
    activation: str | None,
    expand: str,
    gate: str,
    own: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
) -> Gated | str:
    """The op's weights and pointwise functions, at these paths in a module; a reason where it cannot run.

    Args:
        module: the upstream module.
        reduce: the first fully connected layer; None for a single-layer excitation.
        activation: what stands between the layers; None for a single-layer excitation.
        expand: the last fully connected layer.
        gate: the gate.
        own: as in Gated.
        methods: as in Gated.
    """
    found = fully_connected(module, reduce, activation, expand)
    if isinstance(found, str):
        return found
    gate_layer = descendant(module, gate)
    gate_name = pointwise_child(gate_layer, GATES)
    if gate_name is None:
        return not_bare(gate, gate_layer, "a sigmoid or hard sigmoid")
    return Gated(SQUEEZE_EXCITE, found.layers, found.weights, (found.activation, gate_name), own, methods)

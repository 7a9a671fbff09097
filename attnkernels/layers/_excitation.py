"""Squeeze-and-excitation modules as the op takes them: what the layer and the adapters of other libraries share."""

from __future__ import annotations

from torch import nn

from .._modules import affine
from ..ops.squeeze_excite.checks import ACTIVATIONS, GATES
from ..ops.squeeze_excite.schema import SQUEEZE_EXCITE
from ._gated import Gated, not_bare, pointwise_child


def excitation(
    module: nn.Module,
    reduce: str | None,
    activation: str | None,
    expand: str,
    gate: str,
    own: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
) -> Gated | str:
    """The op's weights and pointwise functions, from a module's children of these names; a reason where it cannot run.

    Args:
        module: the upstream module.
        reduce: the first fully connected layer's name; None for a single-layer excitation.
        activation: the name of what stands between the layers; None for a single-layer excitation.
        expand: the last fully connected layer's name.
        gate: the gate's name.
        own: as in Gated.
        methods: as in Gated.
    """
    children = module._modules
    reduce_layer = reduce_weight = reduce_bias = None
    activation_name = "relu"
    if reduce is not None:
        reduce_layer = children.get(reduce)
        weights = affine(reduce_layer)
        if weights is None:
            return not_bare(reduce, reduce_layer, "a 1x1 convolution or a fully connected layer")
        reduce_weight, reduce_bias = weights
        activation_name = pointwise_child(children.get(activation), ACTIVATIONS)
        if activation_name is None:
            return not_bare(activation, children.get(activation), "ReLU or SiLU")
    expand_layer = children.get(expand)
    weights = affine(expand_layer)
    if weights is None:
        return not_bare(expand, expand_layer, "a 1x1 convolution or a fully connected layer")
    gate_name = pointwise_child(children.get(gate), GATES)
    if gate_name is None:
        return not_bare(gate, children.get(gate), "a sigmoid or hard sigmoid")
    layers = (reduce_layer, ("weight", "bias")), (expand_layer, ("weight", "bias"))
    options = activation_name, gate_name
    return Gated(SQUEEZE_EXCITE, layers, (reduce_weight, reduce_bias, *weights), options, own, methods)

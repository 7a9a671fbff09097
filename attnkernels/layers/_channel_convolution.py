"""Efficient channel attention modules as the op takes them: what the layer and the adapters share."""

from __future__ import annotations

from torch import nn

from .._modules import is_bare, parameter
from ..ops.efficient_channel_attention.checks import GATES, MOST_TAPS
from ..ops.efficient_channel_attention.schema import EFFICIENT_CHANNEL_ATTENTION
from ._gated import Gated, not_bare, pointwise_child


def channel_convolution(
    module: nn.Module, convolution: str, gate: str, circular: bool = False, own: tuple[str, ...] = ()
) -> Gated | str:
    """The op's weight and gate, from a module's children of these names; a reason where it cannot run.

    Args:
        module: the upstream module.
        convolution: the name of the convolution over the channels.
        gate: the gate's name.
        circular: whether the module pads the channels from the other end, and the convolution does not pad.
        own: as in Gated.
    """
    layer = module._modules.get(convolution)
    if layer.__class__ is not nn.Conv1d or not is_bare(layer) or "_conv_forward" in layer.__dict__:
        return not_bare(convolution, layer, "a Conv1d")
    (taps,) = layer.kernel_size
    padding = 0 if circular else taps // 2
    shape = layer.in_channels, layer.out_channels, layer.stride, layer.padding, layer.dilation, layer.padding_mode
    if shape != (1, 1, (1,), (padding,), (1,), "zeros") or layer.bias is not None or taps % 2 == 0 or taps > MOST_TAPS:
        return f"its {convolution} is not of one channel, an odd size, without a bias, and padded to the same length"
    gate_name = pointwise_child(module._modules.get(gate), GATES)
    if gate_name is None:
        return not_bare(gate, module._modules.get(gate), "a sigmoid or hard sigmoid")
    weights = (parameter(layer, "weight"),)
    return Gated(EFFICIENT_CHANNEL_ATTENTION, ((layer, ("weight",)),), weights, (circular, gate_name), own)

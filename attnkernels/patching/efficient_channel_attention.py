"""efficient_channel_attention in the place of timm's EcaModule and CecaModule."""

from __future__ import annotations

from torch import nn

from ..layers._channel_convolution import channel_convolution
from ..layers._gated import Gated
from ._gates import serve

_OP = "efficient_channel_attention"


def _eca(module: nn.Module) -> Gated | str:
    if module.conv2 is not None:
        return "it has two convolutions (use_mlp)"
    return channel_convolution(module, "conv", "gate", own=("conv2",))


def _ceca(module: nn.Module) -> Gated | str:
    convolution = module._modules.get("conv")
    if module.padding != getattr(convolution, "kernel_size", (0,))[0] // 2:
        return "its padding is not half of its kernel size"
    return channel_convolution(module, "conv", "gate", circular=True, own=("padding",))


serve(_OP, "timm.layers.eca.EcaModule", _eca)
serve(_OP, "timm.layers.eca.CecaModule", _ceca)

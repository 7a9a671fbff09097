"""torchvision: SqueezeExcitation (MobileNetV3, EfficientNet, RegNet)."""

from __future__ import annotations

from torch import nn

from ..layers._fusing import is_bare
from . import _excitation
from ._adapter import Adapter
from ._excitation import Excitation, excitation


def _arguments(module: nn.Module) -> Excitation | str:
    squeeze = module._modules.get("avgpool")
    if squeeze.__class__ is not nn.AdaptiveAvgPool2d or squeeze.output_size not in (1, (1, 1)) or not is_bare(squeeze):
        return "its avgpool is not a bare AdaptiveAvgPool2d(1)"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation")


ADAPTERS = (
    Adapter(
        op="squeeze_excite",
        originals=("torchvision.ops.misc.SqueezeExcitation",),
        fingerprints=frozenset({"626e2d738f67db18 88d633a715bdf28b"}),
        methods=("forward", "_scale"),
        arguments=_arguments,
        forward=_excitation.forward_input,
    ),
)

"""timm: its squeeze-and-excitation modules."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers._excitation import Excitation, excitation
from ..layers._fusing import is_bare, qualified_name
from ._excitation import arguments_for, excitation_adapter, excite, forward_x
from ._swap import stock

_ADD_MAXPOOL = "add_maxpool: the op's squeeze is the mean alone"


def _se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    norm = module._modules.get("bn")
    if norm.__class__ is not nn.Identity or not is_bare(norm):
        return f"it has a normalisation between the fully connected layers ({qualified_name(norm.__class__)})"
    return excitation(module, "fc1", "act", "fc2", "gate")


def _effective_se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    return excitation(module, None, None, "fc", "gate")


def _efficientnet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "conv_reduce", "act1", "conv_expand", "gate")


def _channels_last_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "act", "fc2", "gate")


def _senet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "relu", "fc2", "sigmoid")


def _forward_channels_last(self: nn.Module, x: Tensor) -> Tensor:
    found = arguments_for(self, x)
    if found is None:
        return stock(self, x)
    # [N, H, W, C] as a channels_last view [N, C, H, W] and back: nothing is copied
    return excite(x.permute(0, 3, 1, 2), found, self._attnkernels.backend).permute(0, 2, 3, 1)


ADAPTERS = (
    excitation_adapter("timm.layers.squeeze_excite.SEModule", "fb190f1b910feddb", _se_module, forward_x),
    excitation_adapter(
        "timm.layers.squeeze_excite.EffectiveSEModule", "75c2f97745a738e5", _effective_se_module, forward_x
    ),
    excitation_adapter(
        "timm.models._efficientnet_blocks.SqueezeExcite", "3fc7ecc9056e103b", _efficientnet_se, forward_x
    ),
    excitation_adapter(
        "timm.layers.squeeze_excite.SqueezeExciteCl", "a16402619df6b4c4", _channels_last_se, _forward_channels_last
    ),
    excitation_adapter("timm.models.senet.SEModule", "fe10b030028ce324", _senet_se, forward_x),
)

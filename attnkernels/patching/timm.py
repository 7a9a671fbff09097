"""timm: its squeeze-and-excitation modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._modules import is_bare, qualified_name
from ..layers._excitation import Excitation, excitation
from ._dispatch import Serve, backend_of
from ._excitation import Arguments, excitation_adapter, excite, fusable

_ADD_MAXPOOL = "add_maxpool: the op's squeeze is the mean alone"


def _se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    norm = module._modules.get("bn")
    if norm.__class__ is not nn.Identity or not is_bare(norm):
        return f"it has a normalisation between the fully connected layers ({qualified_name(norm.__class__)})"
    return excitation(module, "fc1", "act", "fc2", "gate", own=("add_maxpool",))


def _effective_se_module(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    return excitation(module, None, None, "fc", "gate", own=("add_maxpool",))


def _efficientnet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "conv_reduce", "act1", "conv_expand", "gate")


def _channels_last_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "act", "fc2", "gate")


def _senet_se(module: nn.Module) -> Excitation | str:
    return excitation(module, "fc1", "relu", "fc2", "sigmoid")


def _forward_channels_last(arguments: Arguments) -> Serve:
    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        found = fusable(self, x, arguments)
        if found is None:
            return original(self, x)
        # [N, H, W, C] as a channels_last view [N, C, H, W] and back: nothing is copied
        return excite(x.permute(0, 3, 1, 2), found, backend_of(self)).permute(0, 2, 3, 1)

    return forward


ADAPTERS = (
    excitation_adapter("timm.layers.squeeze_excite.SEModule", "fb190f1b910feddb", _se_module),
    excitation_adapter("timm.layers.squeeze_excite.EffectiveSEModule", "75c2f97745a738e5", _effective_se_module),
    excitation_adapter("timm.models._efficientnet_blocks.SqueezeExcite", "3fc7ecc9056e103b", _efficientnet_se),
    excitation_adapter(
        "timm.layers.squeeze_excite.SqueezeExciteCl", "a16402619df6b4c4", _channels_last_se, _forward_channels_last
    ),
    excitation_adapter("timm.models.senet.SEModule", "fe10b030028ce324", _senet_se),
)

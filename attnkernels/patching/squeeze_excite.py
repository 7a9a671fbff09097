"""squeeze_excite in the place of squeeze-and-excitation modules: of timm, torchvision, MONAI, fvcore, ai-med's code
wherever it was copied to, and ultralytics' channel attention, a single layer on the average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import has_its, is_bare, qualified_name
from ..layers._excitation import excitation
from ..layers._gated import Gated
from ._adapter import Adapter
from ._dispatch import Serve
from ._gates import Arguments, forward_of, not_averages, not_sequential, serve
from ._registry import register

_OP = "squeeze_excite"
_ADD_MAXPOOL = "add_maxpool: the op's squeeze is the mean alone"


def _timm(module: nn.Module) -> Gated | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    norm = module._modules.get("bn")
    if norm.__class__ is not nn.Identity or not is_bare(norm):
        return f"it has a normalisation between the fully connected layers ({qualified_name(norm.__class__)})"
    return excitation(module, "fc1", "act", "fc2", "gate", own=("add_maxpool",))


def _timm_effective(module: nn.Module) -> Gated | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    return excitation(module, None, None, "fc", "gate", own=("add_maxpool",))


def _torchvision(module: nn.Module) -> Gated | str:
    if obstacle := not_averages(module, "avgpool"):
        return obstacle
    if "_scale" in module.__dict__ or not has_its("_scale", module.__class__):
        return "its _scale is not the one this was written for"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation", own=("_scale",), methods=("_scale",))


def _monai(module: nn.Module) -> Gated | str:
    if module.add_residual:
        return "it adds its input to the result (add_residual)"
    return (
        not_averages(module, "avg_pool")
        or not_sequential(module, "fc", 4)
        or excitation(module, "fc.0", "fc.1", "fc.2", "fc.3", own=("add_residual",))
    )


def _fvcore(module: nn.Module) -> Gated | str:
    if module.is_3d:
        return "is_3d: the op takes maps of two dimensions"
    return not_sequential(module, "block", 4) or excitation(
        module, "block.0", "block.1", "block.2", "block.3", own=("is_3d",)
    )


def _ultralytics(module: nn.Module) -> Gated | str:
    return not_averages(module, "pool") or excitation(module, None, None, "fc", "act")


def _forward_channels_last(arguments: Arguments) -> Serve:
    """As `forward_of`, on [N, H, W, C]: it is seen as channels_last [N, C, H, W] and back, and nothing is copied."""
    of_map = forward_of(arguments)

    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        def seen_as_it_is(self: nn.Module, seen: Tensor) -> Tensor:
            return original(self, x).permute(0, 3, 1, 2)

        if not is_ordinary(x, PASSES_MODULES) or x.dim() != 4:
            return original(self, x)
        return of_map(self, seen_as_it_is, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return forward


serve(_OP, "timm.layers.squeeze_excite.SEModule", _timm)
serve(_OP, "timm.layers.squeeze_excite.EffectiveSEModule", _timm_effective)
serve(
    _OP,
    "timm.models._efficientnet_blocks.SqueezeExcite",
    partial(excitation, reduce="conv_reduce", activation="act1", expand="conv_expand", gate="gate"),
)
serve(
    _OP,
    "timm.models.senet.SEModule",
    partial(excitation, reduce="fc1", activation="relu", expand="fc2", gate="sigmoid"),
)
serve(_OP, "torchvision.ops.misc.SqueezeExcitation", _torchvision, ("forward", "_scale"))
serve(_OP, "monai.networks.blocks.squeeze_and_excitation.ChannelSELayer", _monai)
serve(_OP, "fvcore.nn.squeeze_excitation.SqueezeExcitation", _fvcore)
serve(_OP, "ultralytics.nn.modules.conv.ChannelAttention", _ultralytics)
serve(_OP, "*.ChannelSELayer", partial(excitation, reduce="fc1", activation="relu", expand="fc2", gate="sigmoid"))

_channels_last = partial(excitation, reduce="fc1", activation="act", expand="fc2", gate="gate")
register(
    Adapter(
        _OP,
        ("timm.layers.squeeze_excite.SqueezeExciteCl",),
        _channels_last,
        _forward_channels_last(_channels_last),
    )
)

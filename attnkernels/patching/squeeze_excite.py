"""squeeze_excite in the place of the squeeze-and-excitation modules of timm and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary, has_its, is_bare, qualified_name
from ..layers._excitation import OP, Excitation, cache_excitation, excitation, excited
from ..ops import squeeze_excite
from ._adapter import Adapter
from ._availability import is_unserved
from ._dispatch import Serve, backend_of, keep_only_if_patched
from ._registry import register

Arguments = Callable[[nn.Module], Excitation | str]

_ADD_MAXPOOL = "add_maxpool: the op's squeeze is the mean alone"


def _timm(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    norm = module._modules.get("bn")
    if norm.__class__ is not nn.Identity or not is_bare(norm):
        return f"it has a normalisation between the fully connected layers ({qualified_name(norm.__class__)})"
    return excitation(module, "fc1", "act", "fc2", "gate", own=("add_maxpool",))


def _timm_effective(module: nn.Module) -> Excitation | str:
    if module.add_maxpool:
        return _ADD_MAXPOOL
    return excitation(module, None, None, "fc", "gate", own=("add_maxpool",))


def _torchvision(module: nn.Module) -> Excitation | str:
    squeeze = module._modules.get("avgpool")
    if squeeze.__class__ is not nn.AdaptiveAvgPool2d or squeeze.output_size not in (1, (1, 1)) or not is_bare(squeeze):
        return "its avgpool is not a bare AdaptiveAvgPool2d(1)"
    if "_scale" in module.__dict__ or not has_its("_scale", module.__class__):
        return "its _scale is not the one this was written for"
    return excitation(module, "fc1", "activation", "fc2", "scale_activation", own=("_scale",), methods=("_scale",))


def considered(module: nn.Module, x: Tensor, arguments: Arguments, backend: str) -> Excitation | None:
    """The op's arguments for this call of a module, found by name; None where the original forward has to run."""
    if not is_ordinary(x, PASSES_MODULES) or x.dim() != 4 or is_unserved(x, backend):
        return None
    found = arguments(module)
    return None if isinstance(found, str) or not are_ordinary(*found.weights) else found


def excite(x: Tensor, found: Excitation, backend: str, **epilogue: Any) -> Tensor:
    """The op on an excitation's arguments."""
    return squeeze_excite(
        x, *found.weights, activation=found.activation, gate=found.gate, backend=backend, **epilogue
    )  # fmt: skip


def _forward(arguments: Arguments) -> Serve:
    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        y = excited(self, x)
        if y is not None:
            return y
        backend = backend_of(self)
        found = considered(self, x, arguments, backend)
        if found is None:
            return original(self, x)
        if cache_excitation(self, x, found, backend):
            keep_only_if_patched(self, backend)
        return excite(x, found, backend)

    return forward


def _forward_channels_last(arguments: Arguments) -> Serve:
    """As `_forward`, on [N, H, W, C]: it is seen as channels_last [N, C, H, W] and back, and nothing is copied."""
    serve = _forward(arguments)

    def forward(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
        def seen_as_it_is(self: nn.Module, seen: Tensor) -> Tensor:
            return original(self, x).permute(0, 3, 1, 2)

        if not is_ordinary(x, PASSES_MODULES) or x.dim() != 4:
            return original(self, x)
        return serve(self, seen_as_it_is, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return forward


def _serve(original: str, arguments: Arguments, methods: tuple[str, ...] = ("forward",)) -> None:
    """Register the adapter of a module on [N, C, H, W], in blocks as well."""
    register(Adapter(OP, (original,), arguments, _forward(arguments), methods=methods, is_part_of_blocks=True))


_serve("timm.layers.squeeze_excite.SEModule", _timm)
_serve("timm.layers.squeeze_excite.EffectiveSEModule", _timm_effective)
_serve(
    "timm.models._efficientnet_blocks.SqueezeExcite",
    partial(excitation, reduce="conv_reduce", activation="act1", expand="conv_expand", gate="gate"),
)
_serve(
    "timm.models.senet.SEModule",
    partial(excitation, reduce="fc1", activation="relu", expand="fc2", gate="sigmoid"),
)
_serve("torchvision.ops.misc.SqueezeExcitation", _torchvision, ("forward", "_scale"))

_channels_last = partial(excitation, reduce="fc1", activation="act", expand="fc2", gate="gate")
register(
    Adapter(
        OP,
        ("timm.layers.squeeze_excite.SqueezeExciteCl",),
        _channels_last,
        _forward_channels_last(_channels_last),
    )
)

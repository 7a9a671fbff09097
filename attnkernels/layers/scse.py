"""Channel and spatial squeeze-and-excitation as layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary
from ..ops import _checks
from ..ops.channel_spatial.checks import SCSE_MERGES
from ._channel_spatial import Layers, concurrent_excitation
from ._gated import Gated, GatedLayer, cache_gated
from ._upstream_keys import as_convolutions, rename
from .squeeze_excite import SqueezeExcite

# ai-med, segmentation_models_pytorch, fvcore
_CHANNEL_SPATIAL = {
    "fc1": ("cSE.fc1", "cSE.1", "channel.block.0"),
    "fc2": ("cSE.fc2", "cSE.3", "channel.block.2"),
    "conv": ("sSE.conv", "sSE.0", "spatial.block.0"),
}


class ChannelSE(SqueezeExcite):
    """Channel squeeze-and-excitation (cSE, Roy et al. 2018, arXiv:1803.02579): `SqueezeExcite` of another width.

    `load_state_dict(strict=True)` takes what `SqueezeExcite` takes, and so the keys of ai-med's and MONAI's
    `ChannelSELayer` (`fc1`, `fc2`; `fc.0`, `fc.2`) and of fvcore's `SqueezeExcitation` (`block.0`, `block.2`).

    Shapes:
        x: [N, C, H, W] with C = channels, any strides; result: the same shape, dtype and memory format.
        fc1.weight: [rd, C, 1, 1], fc1.bias: [rd], fc2.weight: [C, rd, 1, 1], fc2.bias: [C].

    Args:
        channels: C.
        reduction: the reduced width rd is C // reduction, at least 1.

    Raises:
        TypeError: one of them is no integer.
        ValueError: one of them is below 1.
    """

    def __init__(self, channels: int, reduction: int = 2):
        channels, rd_channels = _widths("ChannelSE", channels, reduction)
        super().__init__(channels, rd_channels=rd_channels)


class _ConcurrentLayer(GatedLayer):
    """A layer that stands for its children by scse; subclasses define `_found`, what the op takes."""

    def _found(self) -> Gated | str:
        raise NotImplementedError

    def _considered(self, x: Tensor) -> Tensor:
        if is_ordinary(x, PASSES_MODULES):
            found = self._found()
            if not isinstance(found, str) and are_ordinary(*found.weights):
                cache_gated(self, x, found)
                return found(x)
        return self._children_in_turn(x)


class SpatialSE(_ConcurrentLayer):
    """Spatial squeeze-and-excitation (sSE, Roy et al. 2018, arXiv:1803.02579): y = x * sigmoid(conv(x)).

    `load_state_dict(strict=True)` takes the keys of ai-med's `SpatialSELayer` (`conv`) and of fvcore's
    `SpatialSqueezeExcitation` (`block.0`); also where the layer is a part of a bigger model. Where `conv` carries hooks
    or was replaced by a module of another class, it is called instead of the fused op.

    Shapes:
        x: [N, C, H, W] with C = channels, any strides; result: the same shape, dtype and memory format.
        conv.weight: [1, C, 1, 1], conv.bias: [1].

    Args:
        channels: C.

    Raises:
        TypeError: channels is no integer.
        ValueError: channels is below 1.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(_checks.integer("SpatialSE", "channels", channels), 1, 1)

    def _found(self) -> Gated | str:
        return concurrent_excitation(self, None, "conv")

    def _first(self) -> tuple[nn.Module, int]:
        return self.conv, 1

    def _children_in_turn(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename(state_dict, prefix, {"conv": ("block.0",)})
        as_convolutions(state_dict, prefix, ("conv",))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ChannelSpatialSE(_ConcurrentLayer):
    """Concurrent spatial and channel squeeze-and-excitation (scSE, Roy et al. 2018, arXiv:1803.02579).

    y = max(x * gc, x * gs) or x * gc + x * gs, with gc = sigmoid(fc2(relu(fc1(mean_hw(x))))) per channel and
    gs = sigmoid(conv(x)) per pixel.

    `load_state_dict(strict=True)` takes the keys of ai-med's `ChannelSpatialSELayer` (`cSE.fc1`, `cSE.fc2`,
    `sSE.conv`), of segmentation_models_pytorch's `SCSEModule` (`cSE.1`, `cSE.3`, `sSE.0`; made with reduction=16,
    merge="add") and of fvcore's `ChannelSpatialSqueezeExcitation` (`channel.block.0`, `channel.block.2`,
    `spatial.block.0`; reduction=16), with weights of convolutions or of fully connected layers; also where the layer is
    a part of a bigger model.

    `fc1`, `fc2` and `conv` are ordinary `nn.Conv2d`; where they carry hooks or were replaced by modules of other
    classes, they are called one by one instead of the fused op.

    Shapes:
        x: [N, C, H, W] with C = channels, any strides; result: the same shape, dtype and memory format.
        fc1.weight: [rd, C, 1, 1], fc1.bias: [rd], fc2.weight: [C, rd, 1, 1], fc2.bias: [C], conv.weight: [1, C, 1, 1],
        conv.bias: [1].

    Args:
        channels: C.
        reduction: the reduced width rd is C // reduction, at least 1.
        merge: "max" (ai-med, fvcore) or "add" (segmentation_models_pytorch).

    Raises:
        TypeError: a width is no integer, merge no name.
        ValueError: a width below 1, or an unknown name.
    """

    def __init__(self, channels: int, reduction: int = 2, merge: str = "max"):
        super().__init__()
        channels, rd_channels = _widths("ChannelSpatialSE", channels, reduction)
        _checks.choice("ChannelSpatialSE", "merge", merge, SCSE_MERGES)
        self.merge = merge
        self.fc1 = nn.Conv2d(channels, rd_channels, 1)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1)
        self.conv = nn.Conv2d(channels, 1, 1)

    def _found(self) -> Gated | str:
        return concurrent_excitation(self, Layers("fc1", None, "fc2"), "conv", self.merge, own=("merge",))

    def _first(self) -> tuple[nn.Module, int]:
        return self.fc1, 1

    def _children_in_turn(self, x: Tensor) -> Tensor:
        by_channel = x * self.fc2(F.relu(self.fc1(x.mean((2, 3), True)))).sigmoid()
        by_pixel = x * self.conv(x).sigmoid()
        return torch.maximum(by_channel, by_pixel) if self.merge == "max" else by_channel + by_pixel

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename(state_dict, prefix, _CHANNEL_SPATIAL)
        as_convolutions(state_dict, prefix, _CHANNEL_SPATIAL)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"merge={self.merge!r}"


def _widths(name: str, channels: int, reduction: int) -> tuple[int, int]:
    """C and rd, checked."""
    channels = _checks.integer(name, "channels", channels)
    return channels, max(1, channels // _checks.integer(name, "reduction", reduction))

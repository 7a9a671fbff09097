"""The convolutional block attention module as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary
from ..ops import _checks
from ..ops.channel_spatial.checks import MOST_TAPS, check_kernel_size, check_pool_types, check_spatial_order
from ..ops.channel_spatial.operators import TIES
from ._channel_spatial import Layers, attention
from ._gated import GatedLayer, cache_gated
from ._upstream_keys import as_convolutions, rename

_NAME = "CBAM"
_POOL_TYPES = ("avg", "max")

# The official code, timm, ultralytics (whose single layer is fc2), and names that copies have.
_ALIASES = {
    "fc1": (
        "ChannelGate.mlp.1", "channel.fc1", "ca.fc1", "ca.fc.0", "channel_attention.fc1", "channel_attention.fc.0",
        "channelattention.fc1", "channelattention.fc.0",
    ),
    "fc2": (
        "ChannelGate.mlp.3", "channel.fc2", "channel_attention.fc", "ca.fc2", "ca.fc.2", "channel_attention.fc2",
        "channel_attention.fc.2", "channelattention.fc2", "channelattention.fc.2",
    ),
    "conv": (
        "SpatialGate.spatial.conv", "spatial.conv.conv", "spatial_attention.cv1", "sa.conv1", "sa.conv",
        "spatial_attention.conv1", "spatial_attention.conv", "spatialattention.conv1", "spatialattention.conv",
    ),
    "bn": ("SpatialGate.spatial.bn", "spatial.conv.bn", "sa.bn", "spatial_attention.bn"),
}  # fmt: skip
# What the convolution's name says of the statistics it takes first; copies have the one or the other.
_FIRST_STATISTIC = {
    "SpatialGate.spatial.conv": "max",
    "spatial.conv.conv": "mean",
    "spatial_attention.cv1": "mean",
}


class CBAM(GatedLayer):
    """The convolutional block attention module (Woo et al. 2018, arXiv:1807.06521): y = x * gc * gs.

    gc = sigmoid(sum over the pools of fc2(relu(fc1(pool(x))))) scales the channels, gs = sigmoid(bn(conv([max_c,
    mean_c](x * gc)))) the pixels. Neither x * gc nor its gradient is stored.

    The defaults are those of the official code. Other implementations, whose weights are loaded by
    `load_state_dict(strict=True)` with their own keys, are

        timm's CbamModule(C):       CBAM(C, spatial_order=("mean", "max"), ties="share", bias=False, bn_momentum=0.1)
        ultralytics' CBAM(C):       CBAM(C, spatial_order=("mean", "max"), spatial_norm=False, channel_mlp=False)
        what many projects copy:    CBAM(C, spatial_order=("mean", "max"), spatial_norm=False, bias=False)

    The keys are this layer's own (`fc1`, `fc2`, `conv`, `bn`); the official ones (`ChannelGate.mlp.1`,
    `ChannelGate.mlp.3`, `SpatialGate.spatial.conv`, `SpatialGate.spatial.bn`); those of timm (`channel.fc1`,
    `channel.fc2`, `spatial.conv.conv`, `spatial.conv.bn`) and ultralytics (`channel_attention.fc`,
    `spatial_attention.cv1`); and those of copies: `ca` or `channel_attention` with `fc.0` and `fc.2` or `fc1` and
    `fc2`, `sa` or `spatial_attention` with `conv1` or `conv`. Weights may be of convolutions or of fully connected
    layers, and the layer may be a part of a bigger model. Where official keys, or those of timm or ultralytics, say
    that the convolution takes the statistics in the other order than this layer's, its two slices are exchanged.

    All children are ordinary modules. `bn` is called, whatever it is (`nn.SyncBatchNorm.convert_sync_batchnorm` may
    replace it); where others carry hooks or were replaced by modules of other classes, all are called one by one
    instead of the fused op.

    Shapes:
        x: [N, C, H, W] with C = channels, any strides; result: the same shape, dtype and memory format.
        fc1.weight: [rd, C, 1, 1], fc1.bias: [rd], fc2.weight: [C, rd, 1, 1], fc2.bias: [C], conv.weight: [1, 2, k, k].

    Args:
        channels: C.
        reduction: the reduced width is C // reduction, at least 1.
        pool_types: one or more of "avg", "max", "lp" (the square root of the sum of squares) and "lse" (the logarithm
            of the sum of exponentials).
        spatial: whether there is a spatial gate; without it `conv` and `bn` are None.
        rd_channels: the reduced width rd itself; wins over `reduction`.
        bias: whether fc1 and fc2 have biases.
        ties: where the gradient of a maximum goes if several elements are equal to it: to the "first", or to all of
            them in equal parts ("share", as in timm).
        bn_momentum: the batch normalisation's momentum.
        kernel_size: k, odd and at most 15.
        spatial_order: which statistic is the convolution's first channel, ("max", "mean") or ("mean", "max").
        spatial_norm: whether there is a batch normalisation after the convolution; without it `bn` is None.
        channel_mlp: False for a single layer C -> C, `fc2`, on the average alone; `fc1` is None then, and reduction and
            rd_channels do not count.

    Raises:
        TypeError: a width or size is no integer; pool_types or spatial_order no sequence of names; bn_momentum no
            number; a flag no bool.
        ValueError: a width below 1; an unknown or repeated name; an even kernel_size, by which the map would change its
            size, or one above 15; a momentum that is not above 0 and up to 1; pools besides "avg" for a single layer.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        pool_types: Sequence[str] = _POOL_TYPES,
        spatial: bool = True,
        *,
        rd_channels: int | None = None,
        bias: bool = True,
        ties: str = "first",
        bn_momentum: float = 0.01,
        kernel_size: int = 7,
        spatial_order: Sequence[str] = ("max", "mean"),
        spatial_norm: bool = True,
        channel_mlp: bool = True,
    ):
        super().__init__()
        channels = _checks.integer(_NAME, "channels", channels)
        reduction = _checks.integer(_NAME, "reduction", reduction)
        check_pool_types(_NAME, pool_types)
        spatial = _checks.flag(_NAME, "spatial", spatial)
        if rd_channels is None:
            rd_channels = max(1, channels // reduction)
        else:
            rd_channels = _checks.integer(_NAME, "rd_channels", rd_channels)
        bias = _checks.flag(_NAME, "bias", bias)
        _checks.choice(_NAME, "ties", ties, TIES)
        bn_momentum = _checks.ratio(_NAME, "bn_momentum", bn_momentum)
        kernel_size = _checks.integer(_NAME, "kernel_size", kernel_size, 1, MOST_TAPS)
        check_kernel_size(_NAME, "kernel_size", kernel_size)
        check_spatial_order(_NAME, spatial_order)
        spatial_norm = _checks.flag(_NAME, "spatial_norm", spatial_norm)
        self.pool_types = tuple(pool_types)
        self.spatial_order = tuple(spatial_order)
        self.ties = ties
        self.fc1 = None
        if _checks.flag(_NAME, "channel_mlp", channel_mlp):
            self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias)
            self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias)
        else:
            if self.pool_types not in (("avg",), _POOL_TYPES):
                expected = "the average alone, as channel_mlp is False"
                _checks.fail(_NAME, "pool_types", expected, _checks.shown(pool_types))
            self.pool_types = ("avg",)
            self.fc2 = nn.Conv2d(channels, channels, 1, bias=bias)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False) if spatial else None
        self.bn = nn.BatchNorm2d(1, momentum=bn_momentum) if spatial and spatial_norm else None

    def _considered(self, x: Tensor) -> Tensor:
        if is_ordinary(x, PASSES_MODULES):
            found = attention(
                self,
                Layers(None if self.fc1 is None else "fc1", None, "fc2"),
                None if self.conv is None else "conv",
                "bn",
                pool_types=self.pool_types,
                spatial_order=self.spatial_order,
                ties=self.ties,
                own=("pool_types", "spatial_order", "ties"),
            )
            if not isinstance(found, str) and are_ordinary(*found.weights):
                cache_gated(self, x, found)
                return found(x)
        return self._children_in_turn(x)

    def _first(self) -> tuple[nn.Module | None, int]:
        return (self.fc2 if self.fc1 is None else self.fc1), 1

    def _children_in_turn(self, x: Tensor) -> Tensor:
        logits = self._channel_logits(_pooled(x, self.pool_types[0], self.ties))
        for name in self.pool_types[1:]:
            logits = logits + self._channel_logits(_pooled(x, name, self.ties))
        x = x * logits.sigmoid()
        if self.conv is None:
            return x
        maximum = x.amax(1, True) if self.ties == "share" else x.max(1, True)[0]
        statistics = [maximum, x.mean(1, True)] if self.spatial_order[0] == "max" else [x.mean(1, True), maximum]
        spatial_logits = self.conv(torch.cat(statistics, 1))
        if self.bn is not None:
            spatial_logits = self.bn(spatial_logits)
        return x * spatial_logits.sigmoid()

    def _channel_logits(self, pooled: Tensor) -> Tensor:
        if self.fc1 is not None:
            pooled = F.relu(self.fc1(pooled))
        return self.fc2(pooled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, first in _FIRST_STATISTIC.items():
            weight = state_dict.get(f"{prefix}{name}.weight")
            if weight is not None and weight.dim() == 4 and first != self.spatial_order[0]:
                state_dict[f"{prefix}{name}.weight"] = weight.flip(1)
        rename(state_dict, prefix, _ALIASES)
        as_convolutions(state_dict, prefix, ("fc1", "fc2"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"pool_types={self.pool_types}, spatial_order={self.spatial_order}, ties={self.ties!r}"


def _pooled(x: Tensor, name: str, ties: str) -> Tensor:
    """[N, C, 1, 1]: each channel over its pixels."""
    if name == "avg":
        return x.mean((2, 3), True)
    if name == "lp":
        return F.lp_pool2d(x, 2.0, (x.shape[2], x.shape[3]))
    if name == "lse":
        return x.logsumexp((2, 3), True)
    if ties == "share":
        return x.amax((2, 3), True)
    return x.flatten(2).max(2)[0][:, :, None, None]

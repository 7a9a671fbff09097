"""Attention layers as nn.Modules with ordinary parameters: drop-in for those of timm, torchvision and the papers."""

from .cbam import CBAM
from .criss_cross import CrissCrossAttention
from .efficient_channel_attention import EfficientChannelAttention
from .scse import ChannelSE, ChannelSpatialSE, SpatialSE
from .selective_kernel import SelectiveKernel, SKConv
from .squeeze_excite import SqueezeExcite

__all__ = [
    "CBAM",
    "ChannelSE",
    "ChannelSpatialSE",
    "CrissCrossAttention",
    "EfficientChannelAttention",
    "SKConv",
    "SelectiveKernel",
    "SpatialSE",
    "SqueezeExcite",
]

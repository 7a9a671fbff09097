"""Attention layers as nn.Modules with ordinary parameters: drop-in for those of timm, torchvision and the papers."""

from .criss_cross import CrissCrossAttention
from .efficient_channel_attention import EfficientChannelAttention
from .selective_kernel import SelectiveKernel, SKConv
from .squeeze_excite import SqueezeExcite

__all__ = ["CrissCrossAttention", "EfficientChannelAttention", "SKConv", "SelectiveKernel", "SqueezeExcite"]

"""Attention layers as nn.Modules with ordinary parameters: drop-in for those of timm, torchvision and the papers."""

from .criss_cross import CrissCrossAttention
from .squeeze_excite import SqueezeExcite

__all__ = ["CrissCrossAttention", "SqueezeExcite"]

"""Attention layers as nn.Modules with ordinary parameters: drop-in for those of timm, torchvision and the papers."""

from .selective_kernel import SelectiveKernel, SKConv
from .squeeze_excite import SqueezeExcite

__all__ = ["SKConv", "SelectiveKernel", "SqueezeExcite"]

"""fvcore.nn.squeeze_excitation, in other words."""

from __future__ import annotations

import torch
from torch import nn


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, reduction=16, is_3d=False):
        super().__init__()
        kind, hidden = (nn.Conv3d if is_3d else nn.Conv2d), channels // reduction
        self.is_3d = is_3d
        self.block = nn.Sequential(kind(channels, hidden, 1), nn.ReLU(), kind(hidden, channels, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.block(x.mean(list(range(2, x.dim())), keepdim=True))


class SpatialSqueezeExcitation(nn.Module):
    def __init__(self, channels, is_3d=False):
        super().__init__()
        self.block = nn.Sequential((nn.Conv3d if is_3d else nn.Conv2d)(channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return self.block(x) * x


class ChannelSpatialSqueezeExcitation(nn.Module):
    def __init__(self, channels, reduction=16, is_3d=False):
        super().__init__()
        self.channel, self.spatial = (
            SqueezeExcitation(channels, reduction, is_3d),
            SpatialSqueezeExcitation(channels, is_3d),
        )

    def forward(self, x):
        return torch.maximum(self.channel(x), self.spatial(x))

"""The official code of CBAM, in other words."""

from __future__ import annotations

import torch
from torch import nn


class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def _pool(x, name):
    flat = x.flatten(2)
    pools = {
        "avg": lambda: flat.mean(2),
        "max": lambda: flat.max(2).values,
        "lp": lambda: flat.square().sum(2).sqrt(),
        "lse": lambda: flat.logsumexp(2),
    }
    return pools[name]()[:, :, None, None]


class ChannelGate(nn.Module):
    def __init__(self, channels, reduction=16, pool_types=("avg", "max")):
        super().__init__()
        hidden = channels // reduction
        self.mlp = nn.Sequential(Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.pool_types = pool_types

    def forward(self, x):
        return x * sum(self.mlp(_pool(x, name)) for name in self.pool_types).sigmoid()[:, :, None, None]


class ChannelPool(nn.Module):
    def forward(self, x):
        return torch.stack([x.max(1).values, x.mean(1)], 1)


class BasicConv(nn.Module):
    def __init__(self, bn=True, relu=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01) if bn else None
        self.relu = nn.ReLU() if relu else None

    def forward(self, x):
        for layer in filter(None, (self.conv, self.bn, self.relu)):
            x = layer(x)
        return x


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.compress, self.spatial = ChannelPool(), BasicConv()

    def forward(self, x):
        return x * self.spatial(self.compress(x)).sigmoid()


class CBAM(nn.Module):
    def __init__(self, channels, reduction=16, pool_types=("avg", "max"), no_spatial=False):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction, pool_types)
        self.no_spatial = no_spatial
        if not no_spatial:
            self.SpatialGate = SpatialGate()

    def forward(self, x):
        x = self.ChannelGate(x)
        return x if self.no_spatial else self.SpatialGate(x)

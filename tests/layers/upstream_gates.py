"""Stand-ins for the modules of other projects: their children and keys, and their maths in other words."""

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
    """Of the official code, as all up to CBAM."""

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


class UltralyticsChannelAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.pool, self.fc, self.act = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid()

    def forward(self, x):
        return self.act(self.fc(self.pool(x))) * x


class UltralyticsSpatialAttention(nn.Module):
    def __init__(self, kernel_size=7):
        super().__init__()
        self.cv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.act = nn.Sigmoid()

    def forward(self, x):
        return self.act(self.cv1(torch.stack([x.mean(1), x.max(1).values], 1))) * x


class UltralyticsCBAM(nn.Module):
    def __init__(self, channels, kernel_size=7):
        super().__init__()
        self.channel_attention = UltralyticsChannelAttention(channels)
        self.spatial_attention = UltralyticsSpatialAttention(kernel_size)

    def forward(self, x):
        return self.spatial_attention(self.channel_attention(x))


class CopiedChannelAttention(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x):
        return (self.fc(_pool(x, "avg")) + self.fc(_pool(x, "max"))).sigmoid()


class CopiedSpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return self.conv1(torch.stack([x.mean(1), x.max(1).values], 1)).sigmoid()


class CopiedCBAM(nn.Module):
    """As most projects have it: gates that are multiplied outside."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ca, self.sa = CopiedChannelAttention(channels, reduction), CopiedSpatialAttention()

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x


class ChannelSELayer(nn.Module):
    """Of ai-med, as the two that follow."""

    def __init__(self, channels, reduction=2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()

    def forward(self, x):
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(x.mean((2, 3))))))[:, :, None, None]


class SpatialSELayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.sigmoid = nn.Conv2d(channels, 1, 1), nn.Sigmoid()

    def forward(self, x, weights=None):
        return x * self.sigmoid(self.conv(x) if weights is None else weights)


class ChannelSpatialSELayer(nn.Module):
    def __init__(self, channels, reduction=2):
        super().__init__()
        self.cSE, self.sSE = ChannelSELayer(channels, reduction), SpatialSELayer(channels)

    def forward(self, x):
        return torch.maximum(self.cSE(x), self.sSE(x))


class SCSEModule(nn.Module):
    """Of segmentation_models_pytorch."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = channels // reduction
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return self.cSE(x) * x + self.sSE(x) * x


class SqueezeExcitation(nn.Module):
    """Of fvcore, as the two that follow."""

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


class MonaiChannelSELayer(nn.Module):
    def __init__(self, channels, reduction=2, act=nn.ReLU, gate=nn.Sigmoid, add_residual=False):
        super().__init__()
        self.add_residual, self.avg_pool = add_residual, nn.AdaptiveAvgPool2d(1)
        hidden = channels // reduction
        self.fc = nn.Sequential(nn.Linear(channels, hidden), act(), nn.Linear(hidden, channels), gate())

    def forward(self, x):
        y = x * self.fc(self.avg_pool(x).flatten(1))[:, :, None, None]
        return y + x if self.add_residual else y


def with_ties(*shape):
    """A map in which many elements are equal, as after a ReLU, and so are maxima of planes and of pixels."""
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).round().relu() / 2

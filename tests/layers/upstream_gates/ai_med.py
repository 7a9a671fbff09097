"""ai-med's code of scSE, in other words."""

from __future__ import annotations

import torch
from torch import nn


class ChannelSELayer(nn.Module):
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

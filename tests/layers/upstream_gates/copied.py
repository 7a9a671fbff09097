"""CBAM as most projects have it, in other words: gates that are multiplied outside."""

from __future__ import annotations

import torch
from torch import nn


class ChannelAttention(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x):
        return (self.fc(x.mean((2, 3), True)) + self.fc(x.flatten(2).max(2).values[:, :, None, None])).sigmoid()


class SpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return self.conv1(torch.stack([x.mean(1), x.max(1).values], 1)).sigmoid()


class CBAM(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ca, self.sa = ChannelAttention(channels, reduction), SpatialAttention()

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x

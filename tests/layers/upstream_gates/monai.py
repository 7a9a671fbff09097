"""monai.networks.blocks.squeeze_and_excitation, in other words."""

from __future__ import annotations

from torch import nn


class ChannelSELayer(nn.Module):
    def __init__(self, channels, reduction=2, act=nn.ReLU, gate=nn.Sigmoid, add_residual=False):
        super().__init__()
        self.add_residual, self.avg_pool = add_residual, nn.AdaptiveAvgPool2d(1)
        hidden = channels // reduction
        self.fc = nn.Sequential(nn.Linear(channels, hidden), act(), nn.Linear(hidden, channels), gate())

    def forward(self, x):
        y = x * self.fc(self.avg_pool(x).flatten(1))[:, :, None, None]
        return y + x if self.add_residual else y

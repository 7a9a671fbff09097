"""Squeeze-and-excitation as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import squeeze_excite


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, rd_ratio: float = 1 / 16, rd_channels: int | None = None, bias: bool = True):
        super().__init__()
        rd_channels = rd_channels or max(1, round(channels * rd_ratio))
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return squeeze_excite(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)

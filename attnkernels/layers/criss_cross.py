"""Criss-cross attention as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from ..ops import _checks, criss_cross_attention
from ..ops.criss_cross.reference import attended
from ._input import called

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


class CrissCrossAttention(nn.Module):
    """Criss-cross attention of CCNet (Huang et al. 2019, arXiv:1811.11721): x + gamma * attention(x), applied R times.

    Each pixel attends to the pixels of its row and column; two applications with the same weights (`recurrence=2`, the
    paper's RCCA) reach every pixel. With `dim=3` a voxel attends to its three axis lines.

    `load_state_dict(strict=True)` takes the keys of the official code (`query_conv`, `key_conv`, `value_conv`,
    `gamma` [1]) and those of mmcv (the same with `gamma.scale` []); also where the layer is a part of a bigger model.

    Shapes:
        x: [N, C, H, W], or [N, C, D, H, W] with `dim=3`; C = channels, any strides; result: the same shape and format.
        query_conv.weight, key_conv.weight: [C // reduction, C, 1, 1]; value_conv.weight: [C, C, 1, 1]; gamma: [1].

    Args:
        channels: C.
        reduction: query and key have C // reduction channels, at least 1.
        recurrence: how often the layer is applied, R.
        dim: 2 for images, 3 for volumes.

    Raises:
        TypeError: one of them is no integer.
        ValueError: channels, reduction or recurrence below 1, or dim neither 2 nor 3.
    """

    def __init__(self, channels: int, reduction: int = 8, recurrence: int = 1, dim: int = 2):
        super().__init__()
        name = "CrissCrossAttention"
        channels = _checks.integer(name, "channels", channels)
        reduced = max(1, channels // _checks.integer(name, "reduction", reduction))
        convolution = _CONVOLUTIONS[_checks.integer(name, "dim", dim, min(_CONVOLUTIONS), max(_CONVOLUTIONS))]
        self.recurrence = _checks.integer(name, "recurrence", recurrence)
        self.query_conv = convolution(channels, reduced, 1)
        self.key_conv = convolution(channels, reduced, 1)
        self.value_conv = convolution(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._applied(x)
        else:  # which TorchScript does not compile
            return called(self, self._applied, x, self._first)

    def _applied(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
            if torch.jit.is_scripting():
                out = attended(query, key, value)
            else:  # which TorchScript does not compile
                # The compiler cannot do without the energies, so it gets the op as well; tracers do not know it.
                plain = not torch.compiler.is_compiling() and not is_ordinary(x, PASSES_MODULES)
                out = criss_cross_attention(query, key, value, backend="reference" if plain else "auto")
            x = self.gamma * out + x
        return x

    def _first(self) -> tuple[nn.Module, int]:
        return self.query_conv, 1

    def extra_repr(self) -> str:
        return f"recurrence={self.recurrence}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}gamma.scale" in state_dict and f"{prefix}gamma" not in state_dict:
            state_dict[f"{prefix}gamma"] = state_dict.pop(f"{prefix}gamma.scale").reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Efficient channel attention as a layer."""

from __future__ import annotations

import math
import numbers

import torch.nn.functional as F
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from .._modules import are_ordinary
from ..ops import _checks
from ..ops.efficient_channel_attention.checks import MOST_TAPS
from ._channel_convolution import channel_convolution
from ._gated import GatedLayer, cache_gated

_NAME = "EfficientChannelAttention"


class EfficientChannelAttention(GatedLayer):
    """Efficient channel attention (Wang et al. 2020, arXiv:1910.03151): y = x * sigmoid(conv(mean_hw(x))).

    The convolution runs over the channels and has no bias. `load_state_dict(strict=True)` takes the keys of the
    official code and of timm (`conv.weight`); also where the layer is a part of a bigger model.

    `conv` and `gate` are ordinary modules; where they carry hooks or were replaced by modules of other classes, they
    are called one after the other instead of the fused op.

    Shapes:
        x: [N, C, H, W], any strides; result: the same shape, dtype and memory format.
        conv.weight: [1, 1, k].

    Args:
        channels: C, of which the kernel size follows: |log2(C) + beta| / gamma, made odd, and at least 3 (as timm's).
        kernel_size: k itself, odd; wins over `channels`.
        gamma, beta: as above.
        circular: whether the channels beyond the first and the last are those from the other end, instead of zeros
            (timm's `CecaModule`).

    Raises:
        TypeError: channels or kernel_size is no integer, gamma or beta no number, circular no bool.
        ValueError: channels below 1, gamma not above 0, an even kernel_size, or one above 255.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
        *,
        circular: bool = False,
    ):
        super().__init__()
        channels = _checks.integer(_NAME, "channels", channels)
        for argument, value in (("gamma", gamma), ("beta", beta)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                _checks.fail(_NAME, argument, "a number", _checks.shown(value), TypeError)
        if not gamma > 0:
            _checks.fail(_NAME, "gamma", "a number above 0", _checks.shown(gamma))
        if not math.isfinite(beta):
            _checks.fail(_NAME, "beta", "a finite number", _checks.shown(beta))
        if kernel_size is None:
            taps = abs(math.log2(channels) + beta) / gamma
            if taps > MOST_TAPS:
                expected = f"gamma and beta by which {channels} channels have a kernel size of at most {MOST_TAPS}"
                _checks.fail(_NAME, "gamma, beta", expected, f"{gamma}, {beta}")
            kernel_size = max(3, int(taps) if int(taps) % 2 else int(taps) + 1)
        kernel_size = _checks.integer(_NAME, "kernel_size", kernel_size, 1, MOST_TAPS)
        if kernel_size % 2 == 0:
            _checks.fail(_NAME, "kernel_size", "an odd number", str(kernel_size))
        self.circular = _checks.flag(_NAME, "circular", circular)
        self.padding = kernel_size // 2
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=0 if self.circular else self.padding, bias=False)
        self.gate = nn.Sigmoid()

    def _considered(self, x: Tensor) -> Tensor:
        if is_ordinary(x, PASSES_MODULES):
            found = channel_convolution(self, "conv", "gate", self.circular, ("circular",))
            if not isinstance(found, str) and are_ordinary(*found.weights):
                cache_gated(self, x, found)
                return found(x)
        return self._children_in_turn(x)

    def _first(self) -> tuple[nn.Module | None, int]:
        return self.conv, 1

    def _children_in_turn(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, None]
        if self.circular:
            means = F.pad(means, (self.padding, self.padding), mode="circular")
        return x * self.gate(self.conv(means)).transpose(1, 2)[..., None]

    def extra_repr(self) -> str:
        return "circular=True" if self.circular else ""

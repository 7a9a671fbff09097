"""selective_kernel in timm's modules that mix branches by a softmax: SelectiveKernel (SKNet), SplitAttn (ResNeSt).

Only the sum, the pooling and the mixing are taken over. The convolutions, the norms and the small network between are
called as the modules that they are, so their hooks run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from ..ops import selective_kernel
from ..ops.selective_kernel.checks import MAX_BRANCHES
from ._adapter import Adapter, not_replaceable
from ._availability import is_unserved
from ._dispatch import backend_of
from ._registry import register

_ATTENTION = "timm.layers.selective_kernel.SelectiveKernelAttn"
_RADIX_SOFTMAX = "timm.layers.split_attn.RadixSoftmax"


def _selective_kernel(module: nn.Module) -> tuple | str:
    if not 2 <= len(module.paths) <= MAX_BRANCHES:
        return f"it has {len(module.paths)} paths, the op takes 2 to {MAX_BRANCHES}"
    return not_replaceable(module, "attn", _ATTENTION) or ()


def _forward_selective_kernel(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
    if (
        not is_ordinary(x, PASSES_MODULES)
        or is_unserved(x, backend_of(self))
        or isinstance(_selective_kernel(self), str)
    ):
        return original(self, x)
    inputs = [x] * len(self.paths)
    if self.split_input:
        inputs = torch.split(x, self.in_channels // self.num_paths, 1)
    branches = [path(part) for path, part in zip(self.paths, inputs, strict=True)]
    attn = self.attn

    def attention(pooled: Tensor) -> Tensor:
        logits = attn.fc_select(attn.act(attn.bn(attn.fc_reduce(pooled[:, :, None, None]))))
        return logits.view(pooled.shape[0], len(branches), pooled.shape[1])

    return selective_kernel(branches, attention, backend=backend_of(self))


def _split_attention(module: nn.Module) -> tuple | str:
    if module.radix == 1:
        return "radix 1: one branch, gated by a sigmoid"
    if module.radix > MAX_BRANCHES:
        return f"radix {module.radix}, the op takes 2 to {MAX_BRANCHES} branches"
    return not_replaceable(module, "rsoftmax", _RADIX_SOFTMAX) or ()


def _forward_split_attention(self: nn.Module, original: Callable, x: Tensor) -> Tensor:
    """Its result keeps x's memory format, where the original forward returns contiguous memory always."""
    if (
        not is_ordinary(x, PASSES_MODULES)
        or is_unserved(x, backend_of(self))
        or isinstance(_split_attention(self), str)
    ):
        return original(self, x)
    x = self.act0(self.drop(self.bn0(self.conv(x))))
    samples, channels, height, width = x.shape

    def attention(pooled: Tensor) -> Tensor:
        logits = self.fc2(self.act1(self.bn1(self.fc1(pooled[:, :, None, None]))))
        # fc2 is grouped: its channels are in the order group, branch, channel
        by_group = logits.view(samples, self.rsoftmax.cardinality, self.radix, -1)
        return by_group.transpose(1, 2).reshape(samples, self.radix, -1)

    branches = x.reshape(samples, self.radix, channels // self.radix, height, width)
    return selective_kernel(branches, attention, backend=backend_of(self))


for _original, _arguments, _forward in (
    ("timm.layers.selective_kernel.SelectiveKernel", _selective_kernel, _forward_selective_kernel),
    ("timm.layers.split_attn.SplitAttn", _split_attention, _forward_split_attention),
):
    register(Adapter("selective_kernel", (_original,), _arguments, _forward))

"""Selective kernel convolutions as layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._context import PASSES_MODULES, is_ordinary
from ..ops import _checks, selective_kernel
from ..ops.selective_kernel.checks import MAX_BRANCHES
from ..ops.selective_kernel.reference import pooled, selected
from ._input import called


class SelectiveKernel(nn.Module):
    """Selective kernel convolution (Li et al. 2019, arXiv:1903.06586) as timm builds it.

    Every path is a convolution, batch norm and ReLU; the paths' outputs U_m are mixed channel by channel with
    softmax_m(fc_select(ReLU(bn(fc_reduce(mean_hw(sum_m U_m)))))). Neither the sum nor a stack of the U_m is stored, and
    the backward pass writes the gradient of each once.

    `load_state_dict(strict=True)` takes the weights of timm's `SelectiveKernel` made with the same options. All
    children are ordinary modules and are called as such. As in timm, training needs more than one sample: the batch
    norm of the attention sees one number per sample and channel, and raises ValueError for a single sample.

    Shapes:
        x: [N, in_channels, H, W], any strides; result: [N, out_channels, H', W'], H' and W' as of a convolution with
        this stride, in x's dtype and memory format.

    Args:
        in_channels: channels of x.
        out_channels: channels of every path and of the result; None: in_channels.
        kernel_size: one odd size of at least 3 per path; a single number means two paths of that size.
        groups: of every path's convolution, at most out_channels.
        rd_ratio: the attention's width is out_channels * rd_ratio, rounded to a multiple of rd_divisor.
        keep_3x3: larger kernels are 3x3 with dilation (5x5: dilation 2).
        split_input: the paths share x's channels instead of each taking them all.
        stride: of the paths' convolutions.
        dilation: of the paths' convolutions, on top of that of keep_3x3.
        rd_channels: the attention's width itself; wins over rd_ratio.
        rd_divisor: see rd_ratio.

    Raises:
        TypeError: a size or width is no integer; rd_ratio is no number; keep_3x3 or split_input no bool.
        ValueError: a kernel size that is even or below 3; not 2 to 8 paths; channels that do not divide; a width below
            1; a ratio that is not above 0 and up to 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] = (3, 5),
        groups: int = 1,
        rd_ratio: float = 1 / 16,
        keep_3x3: bool = True,
        split_input: bool = False,
        *,
        stride: int = 1,
        dilation: int = 1,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
    ):
        super().__init__()
        name = "SelectiveKernel"
        in_channels = _checks.integer(name, "in_channels", in_channels)
        out_channels = in_channels if out_channels is None else _checks.integer(name, "out_channels", out_channels)
        sizes = _kernel_sizes(name, kernel_size)
        stride = _checks.integer(name, "stride", stride)
        dilation = _checks.integer(name, "dilation", dilation)
        keep_3x3 = _checks.flag(name, "keep_3x3", keep_3x3)
        split_input = _checks.flag(name, "split_input", split_input)
        if split_input and in_channels % len(sizes):
            _checks.fail(name, "in_channels", f"a multiple of the {len(sizes)} paths", str(in_channels))
        groups = min(out_channels, _checks.integer(name, "groups", groups))
        path_channels = in_channels // len(sizes) if split_input else in_channels
        if path_channels % groups or out_channels % groups:
            _checks.fail(name, "groups", f"a divisor of {path_channels} and {out_channels}", str(groups))
        self.split_input = split_input
        self.paths = nn.ModuleList(
            _ConvNormAct(path_channels, out_channels, 3, stride, dilation * (size - 1) // 2, groups)
            if keep_3x3
            else _ConvNormAct(path_channels, out_channels, size, stride, dilation, groups)
            for size in sizes
        )
        if rd_channels is None:
            width = out_channels * _checks.ratio(name, "rd_ratio", rd_ratio)
            rd_channels = _rounded_to(_checks.integer(name, "rd_divisor", rd_divisor), width)
        else:
            rd_channels = _checks.integer(name, "rd_channels", rd_channels)
        self.attn = _Attention(out_channels, len(sizes), rd_channels)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._applied(x)
        else:  # which TorchScript does not compile
            return called(self, self._applied, x, self._first)

    def _applied(self, x: Tensor) -> Tensor:
        if self.split_input:
            parts = x.chunk(len(self.paths), 1)  # by the paths: of too many channels, none is left out unseen
            branches = [path(parts[i]) for i, path in enumerate(self.paths)]
        else:
            branches = [path(x) for path in self.paths]
        if torch.jit.is_scripting():
            return selected(branches, self.attn(pooled(branches)))
        else:  # which TorchScript does not compile
            backend = "auto" if is_ordinary(branches[0], PASSES_MODULES) else "reference"
            return selective_kernel(branches, self.attn, backend=backend)

    def _first(self) -> tuple[nn.Module | None, int]:
        return getattr(self.paths[0], "conv", None), len(self.paths) if self.split_input else 1


class SKConv(nn.Module):
    """Selective kernel convolution (Li et al. 2019) as in pppLang's SKNet.

    Path i is a grouped convolution with a true kernel of size 3 + 2 i, batch norm and ReLU; the attention is
    fcs[m](fc(mean_hw(sum_m U_m))), with biases and with neither batch norm nor ReLU.

    `load_state_dict(strict=True)` takes the weights of pppLang's `SKConv` made with the same numbers.

    Shapes:
        x: [N, channels, H, W]; result: [N, channels, H', W'], H' and W' as of a convolution with this stride.

    Args:
        channels: of x, of every path and of the result.
        paths: how many, 2 to 8.
        groups: of the convolutions.
        rd_channels: the attention's width; None: max(channels // 16, 32).
        stride: of the convolutions.

    Raises:
        TypeError: one of them is no integer.
        ValueError: not 2 to 8 paths; channels that groups does not divide; a number below 1.
    """

    def __init__(
        self, channels: int, paths: int = 2, groups: int = 32, rd_channels: int | None = None, *, stride: int = 1
    ):
        super().__init__()
        name = "SKConv"
        channels = _checks.integer(name, "channels", channels)
        paths = _checks.integer(name, "paths", paths, 2, MAX_BRANCHES)
        groups = _checks.integer(name, "groups", groups)
        stride = _checks.integer(name, "stride", stride)
        if channels % groups:
            _checks.fail(name, "groups", f"a divisor of {channels}", str(groups))
        if rd_channels is None:
            rd_channels = max(channels // 16, 32)
        else:
            rd_channels = _checks.integer(name, "rd_channels", rd_channels)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3 + 2 * i, stride, padding=1 + i, groups=groups),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            )
            for i in range(paths)
        )
        self.fc = nn.Linear(channels, rd_channels)
        self.fcs = nn.ModuleList(nn.Linear(rd_channels, channels) for _ in range(paths))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._applied(x)
        else:  # which TorchScript does not compile
            return called(self, self._applied, x, self._first)

    def _applied(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        if torch.jit.is_scripting():
            return selected(branches, self._logits(pooled(branches)))
        else:  # which TorchScript does not compile
            backend = "auto" if is_ordinary(branches[0], PASSES_MODULES) else "reference"
            return selective_kernel(branches, self._logits, backend=backend)

    def _first(self) -> tuple[nn.Module | None, int]:
        path = self.convs[0]
        return path[0] if isinstance(path, nn.Sequential) else None, 1

    def _logits(self, pooled: Tensor) -> Tensor:
        hidden = self.fc(pooled)
        return torch.stack([fc(hidden) for fc in self.fcs], 1)


class _ConvNormAct(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int, dilation: int, groups: int):
        super().__init__()
        padding = (stride - 1 + dilation * (size - 1)) // 2  # as timm: the even strides' maps start where theirs do
        self.conv = nn.Conv2d(
            in_channels, out_channels, size, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _Attention(nn.Module):
    """From pooled [N, C] to logits [N, M, C]."""

    def __init__(self, channels: int, paths: int, attention_channels: int):
        super().__init__()
        self.fc_reduce = nn.Conv2d(channels, attention_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(attention_channels)
        self.act = nn.ReLU(inplace=True)
        self.fc_select = nn.Conv2d(attention_channels, channels * paths, 1, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        logits = self.fc_select(self.act(self.bn(self.fc_reduce(pooled[:, :, None, None]))))
        return logits.flatten(1).unflatten(1, [-1, pooled.shape[1]])


def _kernel_sizes(name: str, kernel_size: int | Sequence[int]) -> list[int]:
    """The paths' sizes; a single number is that of two."""
    expected = f"2 to {MAX_BRANCHES} odd sizes of at least 3"
    given = kernel_size if isinstance(kernel_size, Sequence) and not isinstance(kernel_size, str) else [kernel_size] * 2
    sizes = []
    for size in given:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            _checks.fail(name, "kernel_size", expected, _checks.shown(kernel_size), TypeError)
        sizes.append(operator.index(size))
    if not 2 <= len(sizes) <= MAX_BRANCHES or any(size < 3 or size % 2 == 0 for size in sizes):
        _checks.fail(name, "kernel_size", expected, _checks.shown(kernel_size))
    return sizes


def _rounded_to(divisor: int, width: float) -> int:
    """The multiple of `divisor` next to `width`, at least `divisor` and no more than a tenth below `width`."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded

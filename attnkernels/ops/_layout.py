"""Which layout a feature map has: the one place that says it in Python. The C++
bindings have the same rules: csrc/common/binding.h, csrc/selective_kernel/selective_kernel_binding.h.

Kernels read maps of two layouts, [N, C, H, W] and channels_last, and write results in that of the tensor that leads the
call. Where a map is dense in both orders (one channel, one pixel) it counts as contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last_format(dimensions: int) -> torch.memory_format:
    """The memory format of maps with so many dimensions whose channels are innermost."""
    return torch.channels_last if dimensions == 4 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """Whether a map [N, C, H, W] or [N, C, D, H, W] is dense with its channels innermost, and not contiguous too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=channels_last_format(x.dim()))


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of what is computed from x: its own where it is dense, contiguous otherwise."""
    return channels_last_format(x.dim()) if is_channels_last(x) else torch.contiguous_format


def dense(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """x in the layout of what is computed from it, copied where it is not dense; and that layout."""
    layout = memory_format(x)
    return x.contiguous(memory_format=layout), layout


def empty(shape: Sequence[int], like: Tensor, layout: Tensor, wanted: int = 1) -> Tensor:
    """An empty tensor with `like`'s dtype and device in the memory format of `layout`; [0] where it is not wanted."""
    if not wanted:
        return like.new_empty(0)
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format(layout))


def rows_are_pixels(x: Tensor) -> bool:
    """Whether kernels that take strided maps walk x [N, C, H, W] pixel by pixel, not plane by plane.

    They do where its channels are adjacent and its planes are not. Only the inner order counts, so that a view of some
    channels of a channels_last tensor is walked as the whole would be.
    """
    return not x.is_contiguous() and not has_dense_rows(x, False) and has_dense_rows(x, True)


def walk_format(channels_last: bool) -> torch.memory_format:
    """The memory format of a dense map [N, C, H, W] that is walked so."""
    return torch.channels_last if channels_last else torch.contiguous_format


def has_dense_rows(x: Tensor, channels_last: bool) -> bool:
    """Whether the rows of x [N, C, H, W] are dense and equally far apart: its planes or, channels_last, its pixels."""
    _, channels, height, width = x.shape
    _, channel_stride, row_stride, column_stride = x.stride()
    if channels_last:
        dense_pixels = height == 1 or width == 1 or row_stride == width * column_stride
        return (channels == 1 or channel_stride == 1) and dense_pixels
    return (width == 1 or column_stride == 1) and (height == 1 or row_stride == width)


def row_stride(x: Tensor, channels_last: bool) -> int:
    """From one row to the next: a plane or, channels_last, a pixel. Dimensions of one element have no say."""
    _, channels, height, width = x.shape
    _, channel_stride, vertical_stride, horizontal_stride = x.stride()
    if not channels_last:
        return channel_stride if channels > 1 else height * width
    return horizontal_stride if width > 1 else vertical_stride if height > 1 else channels

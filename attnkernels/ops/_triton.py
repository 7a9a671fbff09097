"""What the Triton kernels share: block sizes, pointwise functions, and a launch that costs little on the host."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values a program holds at once: 32 for each thread of its 4 warps, so four 128-bit loads of a 16-bit dtype in flight.
_VALUES = 4096
# Below 4 values a thread the 128 threads of a program outnumber the loads that keep them busy.
_FEWEST_VALUES = 512
# Eight programs for each of an H100's 132 multiprocessors hide the latency of memory. A constant, not the device's own
# number: the order of partial sums, so the bits of a result, must not depend on the device.
_PROGRAMS = 1024
# Contiguous values of one row of a tile: 512 pixels waste 2-12% on 56x56 and 112x112 maps; 64 channels of a 16-bit
# dtype are one cache line of 128 bytes.
_PIXELS_IN_ROW, _CHANNELS_IN_ROW = 512, 64
# The fewest pixels of a tile that reduces channels: a cache line of a 16-bit dtype or, where the channels are
# contiguous, what leaves each thread a 128-bit load.
_FEWEST_PIXELS, _FEWEST_PIXELS_LAST = 64, 16


# The partial sums of a plane are added by one program, 8 loads at a time: more of them cost more than fewer programs
# (392 took 45 us of the 55 us of a 1 x 128 x 56 x 56 map on an H100), unless each stands for as many tiles.
_CHUNKS = 64
# Channels of a 16-bit dtype in a sector of 32 bytes, the least that memory delivers.
_CHANNELS_IN_SECTOR = 16


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(value: int, most: int) -> int:
    """The smallest power of two that holds `value`, at most `most`."""
    return min(1 << max(value - 1, 0).bit_length(), most)


def wide(channels: int, pixels: int) -> bool:
    """Whether offsets into one sample need 64 bits. Half of what 32 bits hold: masked lanes run past the end."""
    return channels * pixels >= 2**30


def multiple(value: int) -> int:
    """The largest power of two up to 8 that divides `value`: 8 values of 16 bits are a 128-bit load."""
    return math.gcd(value, 8)


@dataclass(frozen=True)
class Tiling:
    """How programs share a feature map [N, C, H * W]: channel_tiles * chunks of a sample, `steps` tiles each.

    The tiles of a program are neighbours along the pixels or, by `tile_along_channels`, along the channels.
    """

    block_channels: int
    block_pixels: int
    channel_tiles: int
    chunks: int
    steps: int


def _values_of(values: int, channels: int, pixels: int, channels_last: bool) -> int:
    """The values of a tile, or half as many where rows allow no wide load: then each value has an address of its own,
    and fewer keep out of the way of spills."""
    return values if multiple(channels if channels_last else pixels) > 1 else values // 2


def tile(samples: int, channels: int, pixels: int, channels_last: bool, values: int = _VALUES) -> Tiling:
    """Block sizes for a kernel that streams a feature map once.

    The row of a tile runs along the contiguous dimension and holds it all where it is short; `values` make the tile.
    The tile shrinks, down to 512 values, and each plane's pixels are split into chunks, until there are 1024 programs;
    into 64 chunks at most, or as many as have 64 tiles each.
    """
    values = _values_of(values, channels, pixels, channels_last)
    if channels_last:
        block_channels = power_of_2(channels, _CHANNELS_IN_ROW)
        block_pixels = power_of_2(pixels, values // block_channels)
    else:
        block_pixels = power_of_2(pixels, _PIXELS_IN_ROW)
        block_channels = power_of_2(channels, values // block_pixels)
    while block_channels * block_pixels > _FEWEST_VALUES:
        blocks = ceil_div(pixels, block_pixels)
        if samples * ceil_div(channels, block_channels) * min(blocks, _most_chunks(blocks)) >= _PROGRAMS:
            break
        if channels_last and blocks >= _CHUNKS and block_channels > _CHANNELS_IN_SECTOR:
            block_channels //= 2
        elif channels_last and blocks < _CHUNKS and block_pixels > 1:
            block_pixels //= 2
        elif not channels_last and block_channels > 1:
            block_channels //= 2
        else:
            break
    channel_tiles = ceil_div(channels, block_channels)
    blocks = ceil_div(pixels, block_pixels)
    wanted = min(_most_chunks(blocks), ceil_div(_PROGRAMS, max(1, samples * channel_tiles)))
    steps = ceil_div(blocks, min(blocks, wanted)) if blocks else 0
    return Tiling(block_channels, block_pixels, channel_tiles, ceil_div(blocks, steps) if steps else 1, steps)


def tile_along_channels(
    samples: int, channels: int, pixels: int, channels_last: bool, values: int, reduced: bool
) -> Tiling:
    """Block sizes for a kernel whose programs keep their pixels and go from channel to channel.

    Where the channels are `reduced`, a program takes them all, so that no partial results are stored: the block of
    pixels shrinks first, and only if there are still few programs are the channels split, into parts of 64 or more.
    Otherwise the channels are split until there are 1024 programs, and the tile shrinks if there are not.
    """
    values = _values_of(values, channels, pixels, channels_last)
    if channels_last:
        block_channels = power_of_2(channels, _CHANNELS_IN_ROW)
        block_pixels = power_of_2(pixels, values // block_channels)
    else:
        block_pixels = power_of_2(pixels, _PIXELS_IN_ROW)
        block_channels = power_of_2(channels, values // block_pixels)
    if reduced:
        wanted, fewest_channels = _PROGRAMS // 4, _CHANNELS_IN_ROW
        fewest_pixels = _FEWEST_PIXELS_LAST if channels_last else _FEWEST_PIXELS
        while block_pixels > fewest_pixels and samples * ceil_div(pixels, block_pixels) < 2 * wanted:
            block_pixels //= 2
            if not channels_last:
                block_channels = power_of_2(channels, values // block_pixels)
    else:
        wanted, fewest_channels = _PROGRAMS, 1
        while block_channels * block_pixels > _FEWEST_VALUES:
            blocks = ceil_div(channels, block_channels) * ceil_div(pixels, block_pixels)
            if samples * blocks >= wanted or (block_pixels if channels_last else block_channels) == 1:
                break
            if channels_last:
                block_pixels //= 2
            else:
                block_channels //= 2
    chunks = ceil_div(pixels, block_pixels)
    parts = min(ceil_div(channels, max(fewest_channels, block_channels)), ceil_div(wanted, max(1, samples * chunks)))
    blocks = ceil_div(channels, block_channels)
    steps = ceil_div(blocks, parts) if parts else 0
    return Tiling(block_channels, block_pixels, ceil_div(blocks, steps) if steps else 0, chunks, steps)


def _most_chunks(blocks: int) -> int:
    return max(_CHUNKS, ceil_div(blocks, _CHUNKS))


@triton.jit
def sum_of_chunks(sums_ptr, stride, chunks, mask):
    """Sum of sums[k * stride] over the chunks k, in their order, 8 loads in flight."""
    total = tl.load(sums_ptr, mask=mask, other=0)
    for first in range(1, chunks, 8):
        for k in tl.static_range(8):
            chunk = first + k
            total += tl.load(sums_ptr + tl.cast(chunk, tl.int64) * stride, mask=mask & (chunk < chunks), other=0)
    return total


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def relu(x):
    return tl.where(x < 0, 0, x)  # NaN stays NaN, as in PyTorch; tl.maximum would drop it


@triton.jit
def divisible(value, MULTIPLE: tl.constexpr):
    """`value`, which MULTIPLE divides, in a form from which the compiler sees that it does."""
    return value // MULTIPLE * MULTIPLE


@triton.jit
def part_of_program(samples, channels, LAST_FIRST: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """The sample, the channels and the chunk of pixels of this program of a grid (samples * channel_tiles, chunks).

    LAST_FIRST takes the samples from the last to the first: what an earlier kernel read last is still in the L2 cache.
    """
    channel_tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    sample = tl.program_id(0) // channel_tiles
    if LAST_FIRST:
        sample = samples - 1 - sample
    channel = tl.program_id(0) % channel_tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return sample.to(tl.int64), channel, tl.program_id(1).to(tl.int64)


@triton.jit
def strided_tile_of(
    channel, block, channels, pixels, row_stride,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """Offsets into one sample and mask, [channel, pixel], of the tile at these channels and the block-th pixels.

    `row_stride` is the distance of planes or, CHANNELS_LAST, of pixels. WIDE where the sample has too many values for
    32 bits: 64-bit offsets for each value take twice the registers.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    pixel = block.to(index) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    mask = (channel < channels)[:, None] & (pixel < pixels)[None, :]
    if CHANNELS_LAST:
        return pixel[None, :] * row_stride.to(index) + channel.to(index)[:, None], mask
    else:
        return channel.to(index)[:, None] * row_stride.to(index) + pixel[None, :], mask


@triton.jit
def tile_of(
    channel, block, channels, pixels, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_PIXELS: tl.constexpr
):
    """`strided_tile_of` a dense sample."""
    row_stride = channels if CHANNELS_LAST else pixels
    return strided_tile_of(channel, block, channels, pixels, row_stride, CHANNELS_LAST, WIDE, BLOCK_PIXELS)


_recorded: list[tuple[Launch, tuple]] | None = None


class Launch:
    """A kernel with its grid and constants, called with the rest of its arguments.

    Triton inspects every argument of every launch (15-25 us). A `Launch` does that once and then calls the compiled
    kernel. So it may be kept only under a key that fixes what Triton specialises on: the device, the arguments' dtypes,
    which are None, which integers pass 2^31, and that pointers are 16-byte aligned. Kernels declare their integers
    `do_not_specialize`; what is known of them comes as constants.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *, warps: int = 4, keep: bool = True, **constants: Any):
        self.kernel = kernel
        self.grid = (*grid, 1, 1)[:3]
        self.warps = warps
        self.constants = tuple(constants.pop(name) for name in kernel.arg_names if name in constants)
        if constants:
            raise TypeError(f"{kernel.__name__}: no such argument: {', '.join(constants)}")
        self._keep = keep
        self._compiled = None

    def __call__(self, *arguments: Any) -> None:
        if 0 in self.grid:
            return
        if self._compiled is not None:
            self._compiled[self.grid](*arguments, *self.constants)
        elif _recorded is not None:
            _recorded.append((self, arguments))
        else:
            compiled = self.kernel[self.grid](*arguments, *self.constants, num_warps=self.warps)
            self._compiled = compiled if self._keep else None


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[tuple[Launch, tuple]]]:
    """Collect the launches made inside the `with` block instead of running them; meta tensors will do as arguments."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def aligned(*tensors: Tensor | None) -> bool:
    """Whether every tensor starts at a multiple of 16 bytes (what torch allocates does; a view may not)."""
    address = 0
    for tensor in tensors:
        if tensor is not None and tensor.device.type != "meta":
            address |= tensor.data_ptr()
    return address % 16 == 0


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes x's device current: Triton launches on the current device and its current stream."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)

"""The tiling rule, and launches that are kept."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton_backend import UNDER_TTSEM

from attnkernels.ops import _triton


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("samples", [1, 32])
@pytest.mark.parametrize(
    ("channels", "side"), [(256, 56), (2048, 7), (72, 28), (16, 112), (1, 1), (3, 1), (1512, 7), (33, 57), (8, 4096)]
)
def test_tiles_cover_the_map(samples, channels, side, channels_last):
    pixels = side * side
    tiling = _triton.tile(samples, channels, pixels, channels_last)
    for block in (tiling.block_channels, tiling.block_pixels):
        assert block & (block - 1) == 0
    assert tiling.block_channels * tiling.block_pixels <= 4096
    assert (tiling.channel_tiles - 1) * tiling.block_channels < channels <= tiling.channel_tiles * tiling.block_channels
    covered = tiling.steps * tiling.block_pixels
    assert (tiling.chunks - 1) * covered < pixels <= tiling.chunks * covered
    values = samples * channels * pixels
    assert samples * tiling.channel_tiles * tiling.chunks >= min(512, values // 4096)  # work for 132 multiprocessors


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("samples", [1, 32])
@pytest.mark.parametrize(
    ("channels", "side"), [(256, 56), (2048, 7), (72, 28), (16, 112), (1, 1), (3, 1), (1512, 7), (33, 57), (8, 4096)]
)
def test_tiles_along_channels_cover_the_map(samples, channels, side, reduced, channels_last):
    pixels = side * side
    tiling = _triton.tile_along_channels(samples, channels, pixels, channels_last, 2048, reduced)
    assert tiling.block_channels * tiling.block_pixels <= 2048
    assert (tiling.chunks - 1) * tiling.block_pixels < pixels <= tiling.chunks * tiling.block_pixels
    covered = tiling.steps * tiling.block_channels
    assert (tiling.channel_tiles - 1) * covered < channels <= tiling.channel_tiles * covered
    programs, values = samples * tiling.channel_tiles * tiling.chunks, samples * channels * pixels
    assert programs >= min(256 if reduced else 512, values // 4096)
    if reduced and tiling.channel_tiles > 1:  # partial results of each pixel cost little
        assert covered >= 64


@pytest.mark.parametrize(("samples", "channels", "pixels"), [(0, 4, 9), (2, 0, 9), (2, 4, 0)])
def test_tiles_of_nothing(samples, channels, pixels):
    tiling = _triton.tile(samples, channels, pixels, False)
    assert samples * tiling.channel_tiles * tiling.chunks * tiling.steps == 0
    for reduced in (False, True):
        tiling = _triton.tile_along_channels(samples, channels, pixels, False, 2048, reduced)
        assert samples * tiling.channel_tiles * tiling.chunks * tiling.steps == 0


def test_divisors():
    assert [_triton.multiple(n) for n in (49, 196, 784, 3136, 12, 2, 0)] == [1, 4, 8, 8, 4, 2, 8]
    assert [_triton.power_of_2(n, 64) for n in (0, 1, 3, 64, 65)] == [1, 1, 4, 64, 64]
    assert not _triton.wide(256, 56 * 56)
    assert _triton.wide(8, 16400 * 16400)


@triton.jit(do_not_specialize=["n"])
def _twice(x_ptr, y_ptr, n, BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) * FACTOR, mask=i < n)


def test_launch_many_times():
    x = torch.arange(100.0, device="cuda")
    launch = _triton.Launch(_twice, (4,), FACTOR=2, BLOCK=32)
    for _ in range(3):
        y = torch.empty_like(x)
        launch(x, y, 100)
        assert torch.equal(y, x * 2)
    assert UNDER_TTSEM or launch._compiled is not None


def test_launch_with_other_alignment_is_not_kept():
    x = torch.arange(101.0, device="cuda")[1:]
    assert _triton.aligned(x[3:], None)
    assert not _triton.aligned(x, None)
    launch, y = _triton.Launch(_twice, (4,), keep=_triton.aligned(x), BLOCK=32, FACTOR=2), torch.empty_like(x)
    launch(x, y, 100)
    assert torch.equal(y, x * 2)
    assert launch._compiled is None


def test_empty_grid_is_no_launch():
    y = torch.zeros(4, device="cuda")
    _triton.Launch(_twice, (0,), BLOCK=32, FACTOR=2)(y, y, 4)
    assert not y.any()


def test_unknown_constant():
    with pytest.raises(TypeError, match="_twice: no such argument: BLOK"):
        _triton.Launch(_twice, (1,), BLOK=32, FACTOR=2)


def test_recorded_launches_do_not_run():
    y = torch.zeros(4, device="cuda")
    launch = _triton.Launch(_twice, (1,), BLOCK=32, FACTOR=2)
    with _triton.recorded_launches() as launches:
        launch(y + 1, y, 4)
    assert [made for made, _ in launches] == [launch]
    assert not y.any()

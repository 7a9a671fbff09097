"""Which kernels a call takes, and how it is cut into blocks: host functions, for devices and shapes that are not here."""

from __future__ import annotations

import random

import pytest

from tools import emulation

# Fields of the emulated device; what is missing is an H100's.
DEVICES = {
    "T4": {
        "major": 7, "minor": 5, "multiprocessors": 40, "shared_per_block_opt_in": 64 << 10,
        "shared_per_multiprocessor": 64 << 10, "shared_reserved_per_block": 0, "threads_per_multiprocessor": 1024,
        "blocks_per_multiprocessor": 16, "l2_bytes": 4 << 20,
    },
    "A100": {
        "major": 8, "minor": 0, "multiprocessors": 108, "shared_per_block_opt_in": 163 << 10,
        "shared_per_multiprocessor": 164 << 10, "l2_bytes": 40 << 20,
    },
    "H100": {},
    "eight multiprocessors": {"multiprocessors": 8},
    "small shared memory": {
        "major": 12, "minor": 0, "multiprocessors": 170, "shared_per_block_opt_in": 99 << 10,
        "shared_per_multiprocessor": 100 << 10, "threads_per_multiprocessor": 1536, "blocks_per_multiprocessor": 24,
        "l2_bytes": 96 << 20,
    },
}  # fmt: skip
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


@pytest.fixture(scope="module")
def bench():
    return emulation.load()


def plan(bench, shape, dtype="bfloat16", layout="NCHW", backward=False):
    samples, channels, hidden, pixels = shape
    return bench.module.squeeze_excite_plan(
        dtype=dtype, samples=samples, channels=channels, hidden=hidden, pixels=pixels,
        channels_last=layout == "NHWC", backward=backward,
    )  # fmt: skip


# device, (N, C, rd, pixels), options: is the last layer computed in the second pass, do launches overlap, are outputs
# stored as if not read again
PATHS = [
    ("T4", (1, 64, 4, 196), {}, (True, False, False)),
    ("T4", (32, 2048, 128, 49), {}, (False, False, True)),
    ("A100", (128, 256, 16, 3136), {}, (True, False, True)),
    ("H100", (8, 256, 16, 3136), {}, (True, True, False)),  # 2 maps of 12.8 MB: less than half of its cache
    ("H100", (8, 256, 16, 3136), {"backward": True}, (True, True, True)),  # 3 maps
    ("H100", (32, 256, 16, 3136), {}, (True, True, True)),
    ("H100", (32, 2048, 128, 49), {}, (False, True, False)),  # a block would read 30 KB of weights
    ("H100", (32, 2048, 128, 49), {"layout": "NHWC"}, (False, True, False)),  # 16 KB
    ("H100", (8, 512, 32, 784), {"layout": "NHWC"}, (True, True, False)),  # 4 KB
    ("H100", (1, 960, 240, 49), {}, (False, True, False)),
    ("H100", (8, 256, 0, 3136), {}, (False, True, False)),  # single-layer excitation: all channels are its inputs
]


@pytest.mark.parametrize(("device", "shape", "options", "path"), PATHS)
def test_squeeze_excite_takes_the_path(bench, device, shape, options, path):
    with bench.device(**DEVICES[device]):
        found = plan(bench, shape, **options)
    assert (found["layer_in_map"], found["dependent"], found["stream_output"]) == path


# H100 or T4, shape, dtype, layout: tiles of channels, splits of the pixels, warps a plane, by vectors across planes
SUMS = [
    ("T4", (32, 256, 16, 3136), "bfloat16", "NCHW", (64, 1, 2, False)),  # 6272 bytes: two warps, up to 128 a lane
    ("T4", (32, 256, 16, 3136), "float32", "NCHW", (128, 1, 4, False)),
    ("T4", (32, 256, 16, 784), "bfloat16", "NCHW", (32, 1, 1, False)),
    ("T4", (32, 2048, 128, 49), "bfloat16", "NCHW", (13, 1, 1, True)),  # 98 bytes: 167 planes in a block's one round
    ("T4", (2, 8, 2, 1), "bfloat16", "NCHW", (1, 1, 1, False)),
    ("T4", (1, 4, 2, 1 << 16), "float32", "NCHW", (4, 8, 8, False)),
    ("T4", (1, 4096, 2, 1 << 16), "float32", "NCHW", (4096, 1, 8, False)),  # splits of many channels cost more
    ("T4", (1, 256, 16, 3136), "bfloat16", "NHWC", (4, 8, 1, False)),
    ("T4", (32, 256, 16, 3136), "bfloat16", "NHWC", (4, 1, 1, False)),
    ("T4", (32, 2048, 128, 49), "bfloat16", "NHWC", (32, 1, 1, False)),
]


@pytest.mark.parametrize(("device", "shape", "dtype", "layout", "expected"), SUMS)
def test_squeeze_excite_cuts_its_sums(bench, device, shape, dtype, layout, expected):
    with bench.device(**DEVICES[device]):
        sums = plan(bench, shape, dtype, layout)["sums"]
    assert (sums["tiles"], sums["splits"], sums["segments"], sums["short_planes"]) == expected


LARGEST = {"samples": 1 << 40, "channels": 1 << 20, "pixels": 1 << 40}  # kernels count channels in 32 bits


def random_shape(draw: random.Random) -> tuple[int, int, int]:
    """Samples, channels and pixels; half of the shapes have up to 2^22 elements, the others up to 2^40."""
    left, shape = draw.choice((1 << 22, 1 << 40)), {}
    for name in draw.sample(list(LARGEST), 3):
        size = int(2 ** draw.uniform(0, min(left, LARGEST[name]).bit_length()))
        size = draw.choice((size - 1, size, size + 1, 1 << (size.bit_length() - 1)))  # among them powers of two
        shape[name] = max(1, min(size, left, LARGEST[name]))
        left //= shape[name]
    return shape["samples"], shape["channels"], shape["pixels"]


def covers(parts: int, size_of_part: int, whole: int) -> bool:
    """Whether so many parts hold the whole, and none of them is empty."""
    return parts * size_of_part >= whole > (parts - 1) * size_of_part


LARGEST_GRID, LONGEST_WALK = 2**31 - 1, 2**30


@pytest.mark.parametrize("device", DEVICES)
def test_squeeze_excite_plans_cover_every_element_and_can_be_launched(bench, device):
    draw = random.Random(device)
    limits = {**bench.module.get_device(), **DEVICES[device]}
    for _ in range(3000):
        samples, channels, pixels = random_shape(draw)
        hidden = draw.choice((0, 1, max(1, channels // 16), channels))
        dtype, layout = draw.choice(list(BYTES)), draw.choice(("NCHW", "NHWC"))
        backward = draw.random() < 0.5
        with bench.device(**DEVICES[device]):
            found = plan(bench, (samples, channels, hidden, pixels), dtype, layout, backward)
        where = (samples, channels, hidden, pixels, dtype, layout, backward, found)
        sums, scaled = found["sums"], found["map"]
        assert covers(sums["tiles"], sums["channels"], channels), where
        assert covers(sums["splits"], sums["span"], pixels), where
        if layout == "NHWC":
            assert covers(scaled["tiles"], scaled["channels"], channels), where
            assert covers(scaled["splits"], scaled["span"], pixels), where
        else:
            assert scaled["tiles"] == 1, where
            assert covers(scaled["splits"], scaled["span"], channels * pixels), where
            # A block that begins in the middle of a plane touches one more.
            assert scaled["channels"] >= min(channels, -(-scaled["span"] // pixels) + 1), where
            assert sums["segments"] * 32 <= sums["threads"], where
            assert sums["threads"] % sums["lanes"] == 0, where
        for tiles in (sums, scaled):
            assert tiles["span"] <= LONGEST_WALK, where
            assert tiles["blocks"] <= LARGEST_GRID, where
            assert tiles["shared_bytes"] <= limits["shared_per_block_opt_in"], where


@pytest.mark.parametrize("most_blocks", ["sums", "maps"])
def test_selective_kernel_tiles_cover_every_element(bench, most_blocks):
    draw = random.Random(most_blocks)
    limit = dict(zip(("sums", "maps"), bench.module.selective_kernel_most_blocks, strict=True))[most_blocks]
    threads = 256
    for _ in range(5000):
        samples, channels, pixels = random_shape(draw)
        width, layout = draw.choice((2, 4, 8)), draw.choice(("NCHW", "NHWC"))
        vectorised = draw.random() < 0.5 and (layout == "NCHW" or channels % width == 0)
        tiles = bench.module.selective_kernel_tiles(
            samples=samples, channels=channels, pixels=pixels, channels_last=layout == "NHWC",
            width=width, vectorised=vectorised, most_blocks=limit,
        )  # fmt: skip
        where = (samples, channels, pixels, layout, width, vectorised, tiles)
        assert covers(tiles["channel_tiles"], tiles["channels"], channels), where
        assert covers(tiles["splits"], tiles["span"], pixels), where
        assert tiles["span"] % width == 0, where  # every split of a plane begins as aligned as the plane
        assert tiles["blocks"] <= LARGEST_GRID or samples * channels * pixels > 1 << 31, where
        assert tiles["span"] <= LONGEST_WALK + width, where
        assert 1 <= tiles["lanes"] <= threads, where
        if layout == "NHWC":
            assert tiles["channels"] == tiles["lanes"] * (width if vectorised else 1), where
        else:
            assert tiles["channels"] * tiles["lanes"] == threads, where
            assert tiles["lanes"].bit_count() == 1, where

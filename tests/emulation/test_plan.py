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
        "blocks_per_multiprocessor": 16, "l2_bytes": 4 << 20, "memory_clock_khz": 5001000, "memory_bus_bits": 256,
    },
    "A100": {
        "major": 8, "minor": 0, "multiprocessors": 108, "shared_per_block_opt_in": 163 << 10,
        "shared_per_multiprocessor": 164 << 10, "l2_bytes": 40 << 20, "memory_clock_khz": 1215000,
    },
    "H100": {},
    "eight multiprocessors": {"multiprocessors": 8},
    "small shared memory": {
        "major": 12, "minor": 0, "multiprocessors": 170, "shared_per_block_opt_in": 99 << 10,
        "shared_per_multiprocessor": 100 << 10, "threads_per_multiprocessor": 1536, "blocks_per_multiprocessor": 24,
        "l2_bytes": 96 << 20, "memory_clock_khz": 14001000, "memory_bus_bits": 512,
    },
    "no room for a cluster": {"cluster_groups": 132 * [1]},
}  # fmt: skip
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
NEEDS_X, NEEDS_WEIGHTS = 1, 4

FITS = "a sample fits in the shared memory of a cluster"
OLD = "clusters need compute capability 9.0"
IDLE = "clusters would leave most multiprocessors idle"
TOO_LARGE = "a sample does not fit in the shared memory of a cluster"
ALONE = "one block per multiprocessor would load, compute and store in turn"
UNSCHEDULED = "no cluster can be scheduled"
NO_PIXELS = "no pixels"
TOO_MANY = "more clusters than a grid can have"
NO_GRAD_X = "only grad_x needs a second pass over dz"


@pytest.fixture(scope="module")
def bench():
    return emulation.load()


def plan(bench, shape, dtype="bfloat16", layout="NCHW", backward=False, needs=NEEDS_X | NEEDS_WEIGHTS):
    samples, channels, hidden, pixels = shape
    return bench.module.squeeze_excite_plan(
        dtype=dtype, samples=samples, channels=channels, hidden=hidden, pixels=pixels,
        channels_last=layout == "NHWC", backward=backward, needs=needs,
    )  # fmt: skip


# device, (N, C, rd, pixels), options: the reason; blocks of a cluster, or (samples of a wave, is the hidden layer fused)
PATHS = [
    ("T4", (32, 2048, 128, 49), {}, OLD, (32, False)),
    ("T4", (1, 64, 4, 196), {}, OLD, (1, True)),
    # In waves where half of the L2 cache holds 12 us of DRAM traffic: here 13 samples of 1.6 MB.
    ("A100", (128, 256, 16, 3136), {}, OLD, (13, False)),
    ("A100", (32, 256, 16, 3136), {}, OLD, (11, False)),  # three waves, as even as they can be
    ("A100", (32, 256, 16, 3136), {"backward": True}, OLD, (7, False)),  # x and dy: five waves
    ("A100", (1, 256, 16, 3136), {}, OLD, (1, True)),
    ("H100", (128, 256, 16, 3136), {}, ALONE, (128, False)),  # 25 MB are 7 us of its DRAM
    ("H100", (32, 256, 16, 3136), {"dtype": "float32"}, TOO_LARGE, (32, False)),
    ("H100", (32, 512, 32, 784), {}, FITS, 8),
    ("H100", (32, 512, 32, 784), {"layout": "NHWC"}, FITS, 8),
    ("H100", (32, 512, 32, 784), {"dtype": "float32"}, ALONE, (32, False)),
    ("H100", (32, 512, 32, 784), {"backward": True}, FITS, 8),
    ("H100", (32, 512, 32, 784), {"backward": True, "needs": NEEDS_WEIGHTS}, NO_GRAD_X, (32, False)),
    ("H100", (32, 1024, 0, 196), {}, FITS, 8),
    ("H100", (32, 1024, 64, 0), {}, NO_PIXELS, (32, False)),
    ("H100", (5, 512, 32, 784), {}, IDLE, (5, False)),  # 40 blocks, less than a third of 132
    ("H100", (6, 512, 32, 784), {}, FITS, 8),
    ("H100", (1 << 28, 1, 1, 4), {}, TOO_MANY, (65535, False)),  # of each 8 blocks
    ("H100", (1, 256, 16, 3136), {}, IDLE, (1, True)),
    ("H100", (1, 2048, 128, 49), {}, IDLE, (1, False)),  # 512 KB of weights are too many for every block
    ("H100", (1, 256, 16, 3136), {"backward": True}, IDLE, (1, False)),
    ("eight multiprocessors", (1, 2048, 128, 49), {}, FITS, 8),
    ("small shared memory", (32, 2048, 128, 49), {}, FITS, 8),
    ("small shared memory", (32, 1024, 64, 196), {}, ALONE, (32, False)),
    ("small shared memory", (32, 512, 32, 784), {}, TOO_LARGE, (32, False)),
    ("small shared memory", (128, 256, 16, 3136), {}, TOO_LARGE, (26, False)),
    ("no room for a cluster", (32, 512, 32, 784), {}, UNSCHEDULED, (32, False)),
    ("no room for a cluster", (32, 512, 32, 784), {"backward": True}, UNSCHEDULED, (32, False)),
    ("no room for a cluster", (1, 512, 32, 784), {}, IDLE, (1, True)),
]


@pytest.mark.parametrize(("device", "shape", "options", "reason", "path"), PATHS)
def test_squeeze_excite_takes_the_path(bench, device, shape, options, reason, path):
    with bench.device(**DEVICES[device]):
        found = plan(bench, shape, **options)
    assert found["reason"] == reason
    assert (found["cluster"] or (found["wave"], found["fused_hidden"])) == path


# H100 or T4, shape, dtype, layout: tiles of channels, splits of the pixels, warps a plane, by vectors across planes
SUMS = [
    ("T4", (32, 256, 16, 3136), "bfloat16", "NCHW", (128, 1, 4, False)),  # 6272 bytes: four warps, 64 a lane
    ("T4", (32, 256, 16, 3136), "float32", "NCHW", (256, 1, 8, False)),
    ("T4", (32, 256, 16, 784), "bfloat16", "NCHW", (32, 1, 1, False)),
    ("T4", (32, 2048, 128, 49), "bfloat16", "NCHW", (13, 1, 1, True)),  # 98 bytes: 167 planes in a block's one round
    ("T4", (2, 8, 2, 1), "bfloat16", "NCHW", (1, 1, 1, False)),
    ("T4", (1, 4, 2, 1 << 16), "float32", "NCHW", (4, 16, 8, False)),
    ("T4", (1, 4096, 2, 1 << 16), "float32", "NCHW", (4096, 1, 8, False)),  # splits of many channels cost more
    ("T4", (1, 256, 16, 3136), "bfloat16", "NHWC", (4, 16, 1, False)),
    ("T4", (32, 256, 16, 3136), "bfloat16", "NHWC", (4, 2, 1, False)),
    ("T4", (32, 2048, 128, 49), "bfloat16", "NHWC", (32, 1, 1, False)),
]


@pytest.mark.parametrize(("device", "shape", "dtype", "layout", "expected"), SUMS)
def test_squeeze_excite_cuts_its_sums(bench, device, shape, dtype, layout, expected):
    with bench.device(**DEVICES[device]):
        sums = plan(bench, shape, dtype, layout)["sums"]
    assert (sums["tiles"], sums["splits"], sums["segments"], sums["short_planes"]) == expected


LARGEST = {"samples": 1 << 40, "channels": 1 << 20, "pixels": 1 << 40}  # kernels count channels in 32 bits


def random_shape(draw: random.Random) -> tuple[int, int, int]:
    """Samples, channels and pixels; half of the shapes may fit a cluster, the others have up to 2^40 elements."""
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


LARGEST_GRID, SECOND_DIMENSION, LONGEST_WALK = 2**31 - 1, 65535, 2**30


@pytest.mark.parametrize("device", DEVICES)
def test_squeeze_excite_plans_cover_every_element_and_can_be_launched(bench, device):
    draw = random.Random(device)
    limits = {**bench.module.get_device(), **DEVICES[device]}
    paths = set()
    for _ in range(3000):
        samples, channels, pixels = random_shape(draw)
        hidden = draw.choice((0, 1, max(1, channels // 16), channels))
        dtype, layout = draw.choice(list(BYTES)), draw.choice(("NCHW", "NHWC"))
        backward = draw.random() < 0.5
        with bench.device(**DEVICES[device]):
            found = plan(bench, (samples, channels, hidden, pixels), dtype, layout, backward)
        where = (samples, channels, hidden, pixels, dtype, layout, backward, found)
        paths.add(found["cluster"])
        if found["cluster"]:
            assert found["cluster"] * found["channels"] >= channels, where
            assert layout == "NCHW" or found["channels"] * BYTES[dtype] % 32 == 0, where  # whole sectors
            assert 2 * (found["shared_bytes"] + 1024) <= limits["shared_per_multiprocessor"], where
            assert found["shared_bytes"] <= limits["shared_per_block_opt_in"], where
            assert samples * found["cluster"] <= LARGEST_GRID, where
            continue
        sums, scaled = found["sums"], found["map"]
        assert 1 <= found["wave"] <= min(samples, SECOND_DIMENSION), where
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
    assert paths == ({0} if device in ("T4", "A100", "no room for a cluster") else {0, 8})


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

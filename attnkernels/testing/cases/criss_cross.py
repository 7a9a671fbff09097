"""Cases of the criss-cross functions: rectangles, single rows and columns, volumes, channels of every remainder."""

from __future__ import annotations

import random

import torch

from .._budgeted import BudgetedCall, TrafficCall
from .._cases import Maker, OpCase, RandomCases

_ANY_ALIGNMENT = ("one_channel", "whole_vectors")


def _attention(name, n, query_channels, channels, *space, small=True):
    def arguments(make: Maker):
        scale = query_channels**-0.5 if query_channels else 1.0  # energies of about 1, as after trained convolutions
        query = make.feature_map(n, query_channels, *space, scale=scale)
        key, value = make.feature_map(n, query_channels, *space), make.feature_map(n, channels, *space)
        return (query, key, value), {}

    return OpCase(
        "criss_cross_attention", name, arguments, small, through_output=(0, 1), products=True,
        any_alignment=name in _ANY_ALIGNMENT,
    )  # fmt: skip


def _affinity(name, n, channels, height, width, small=True):
    def arguments(make: Maker):
        return (make.feature_map(n, channels, height, width), make.feature_map(n, channels, height, width)), {}

    return OpCase("criss_cross_affinity", name, arguments, small, any_alignment=name in _ANY_ALIGNMENT)


def _aggregate(name, n, channels, height, width, small=True):
    def arguments(make: Maker):
        affinity = make.feature_map(n, height + width - 1, height, width, scale=(height + width) ** -0.5)
        return (affinity, make.feature_map(n, channels, height, width)), {}

    return OpCase("criss_cross_aggregate", name, arguments, small, any_alignment=name in _ANY_ALIGNMENT)


_SHAPES = [
    ("plain", 2, 4, 5, 6),
    ("one_row", 2, 3, 1, 7),
    ("one_column", 2, 3, 7, 1),
    ("one_pixel", 2, 3, 1, 1),
    ("one_channel", 1, 1, 4, 3),
    ("19x18", 1, 17, 19, 18),
    ("whole_vectors", 1, 16, 3, 5),
    ("several_programs", 1, 9, 67, 3),
]

CASES = [
    _attention("plain", 2, 4, 8, 5, 6),
    _attention("one_row", 2, 3, 5, 1, 7),
    _attention("one_column", 2, 3, 5, 7, 1),
    _attention("one_pixel", 2, 3, 5, 1, 1),
    _attention("one_channel", 1, 1, 1, 4, 3),
    _attention("no_samples", 0, 4, 8, 5, 6),
    _attention("no_pixels", 2, 4, 8, 0, 3),
    _attention("whole_vectors", 1, 8, 24, 3, 5),
    _attention("several_programs", 1, 5, 20, 67, 3),
    _attention("19x18", 1, 17, 33, 19, 18),
    _attention("volume", 2, 3, 5, 3, 4, 5),
    _attention("flat_volume", 1, 3, 5, 1, 4, 5),
    _attention("one_column_volume", 1, 3, 5, 4, 1, 1),
    _attention("48x35", 2, 24, 100, 48, 35, small=False),
    _attention("97x97", 1, 64, 96, 97, 97, small=False),
    *(_affinity(*shape) for shape in _SHAPES),
    _affinity("no_samples", 0, 4, 5, 6),
    _affinity("48x35", 2, 24, 48, 35, small=False),
    *(_aggregate(*shape) for shape in _SHAPES),
    _aggregate("no_samples", 0, 4, 5, 6),
    _aggregate("48x35", 2, 100, 48, 35, small=False),
]


def _sizes(draw: random.Random, largest: int) -> tuple[int, int, int, int, int]:
    """Samples, channels of query and key, and of value, height and width."""
    n, h, w = draw.randint(0, 3), draw.randint(1, largest), draw.randint(1, largest)
    return n, draw.randint(1, largest), draw.randint(1, 2 * largest), h, w


def _random_attention(draw: random.Random, largest: int) -> OpCase:
    return _attention("random", *_sizes(draw, largest))


def _random_affinity(draw: random.Random, largest: int) -> OpCase:
    n, channels, _, *space = _sizes(draw, largest)
    return _affinity("random", n, channels, *space)


def _random_aggregate(draw: random.Random, largest: int) -> OpCase:
    n, _, channels, *space = _sizes(draw, largest)
    return _aggregate("random", n, channels, *space)


RANDOM = {
    # In 16 bits the gradients contain the rounding of the stored output times as much as there are channels, which no
    # bound of a few roundings holds for all draws: fixed cases check those. Equal keys have gradients that cancel to 0.
    "criss_cross_attention": RandomCases(
        _random_attention, largest=40, dtypes=(torch.float32, torch.float64), distinct=True
    ),
    "criss_cross_affinity": RandomCases(_random_affinity, largest=40),
    "criss_cross_aggregate": RandomCases(_random_aggregate, largest=40),
}

# CCNet's head at 97 x 97.
_HEAD = _attention("head", 1, 64, 512, 97, 97, small=False)
COMPILED = [
    BudgetedCall("forward", _HEAD, "channels_last", "forward"),
    *(
        BudgetedCall(f"grad_{name}", _HEAD, "channels_last", "backward", (i,))
        for i, name in enumerate(("query", "key", "value"))
    ),
    BudgetedCall("affinity", _affinity("head", 1, 64, 97, 97, small=False), "channels_last", "forward"),
    BudgetedCall("aggregate", _aggregate("head", 1, 512, 97, 97, small=False), "channels_last", "forward"),
]

# The kernels see channels_last maps only; contiguous ones are copied before and after, which is not counted here.
# 64 channels are one step of a product in bfloat16 and two in float32: every lane of a warp loads, or none. Where some
# skip a load, the emulation takes their next one for part of it, which may be of another map.
TRAFFIC = [
    TrafficCall(f"{name}, {part}", case, "channels_last", part, inputs=inputs, output=output)
    for name, case, inputs, output in (
        ("attention", _attention("traffic", 1, 64, 128, 2, 72), ("query", "key", "value"), "out"),
        ("affinity", _affinity("traffic", 1, 64, 2, 72), ("query", "key"), "affinity"),
        ("aggregate", _aggregate("traffic", 1, 128, 2, 72), ("affinity", "value"), "out"),
    )
    for part in ("forward", "backward")
]

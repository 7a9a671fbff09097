"""Cases of the criss-cross functions: rectangles, single rows and columns, volumes, channels of every remainder."""

from __future__ import annotations

from .._cases import Maker, OpCase


def _attention(name, n, query_channels, channels, *space, small=True):
    def arguments(make: Maker):
        scale = query_channels**-0.5 if query_channels else 1.0  # energies of about 1, as after trained convolutions
        query = make.feature_map(n, query_channels, *space, scale=scale)
        key, value = make.feature_map(n, query_channels, *space), make.feature_map(n, channels, *space)
        return (query, key, value), {}

    return OpCase("criss_cross_attention", name, arguments, small, through_output=(0, 1), products=True)


def _affinity(name, n, channels, height, width, small=True):
    def arguments(make: Maker):
        return (make.feature_map(n, channels, height, width), make.feature_map(n, channels, height, width)), {}

    return OpCase("criss_cross_affinity", name, arguments, small)


def _aggregate(name, n, channels, height, width, small=True):
    def arguments(make: Maker):
        affinity = make.feature_map(n, height + width - 1, height, width, scale=(height + width) ** -0.5)
        return (affinity, make.feature_map(n, channels, height, width)), {}

    return OpCase("criss_cross_aggregate", name, arguments, small)


_SHAPES = [
    ("plain", 2, 4, 5, 6),
    ("one_row", 2, 3, 1, 7),
    ("one_column", 2, 3, 7, 1),
    ("one_pixel", 2, 3, 1, 1),
    ("one_channel", 1, 1, 4, 3),
    ("19x18", 1, 17, 19, 18),
    ("whole_vectors", 1, 16, 3, 5),
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

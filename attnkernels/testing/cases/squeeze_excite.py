"""Cases of squeeze_excite: the sizes of real networks, and every option."""

from __future__ import annotations

import random

from .._budgeted import FORMATS, BudgetedCall, TrafficCall
from .._cases import Maker, OpCase, RandomCases


def _case(
    name, n, c, h, w, rd,
    *, biases=True, convolution=True, residual=False, small=True, shift=0.0, any_alignment=False, **options,
):  # fmt: skip
    def arguments(make: Maker):
        def weight(rows, columns):
            shape = (rows, columns, 1, 1) if convolution else (rows, columns)
            return make.normal(*shape, scale=max(columns, 1) ** -0.5)

        x = make.feature_map(n, c, h, w, shift=shift)
        single_layer = rd is None
        reduce_weight = None if single_layer else weight(rd, c)
        reduce_bias = make.normal(rd) if biases and not single_layer else None
        expand_weight, expand_bias = weight(c, c if single_layer else rd), make.normal(c) if biases else None
        kwargs = dict(options)
        if residual:
            kwargs["residual"] = make.feature_map(n, c, h, w)
        return (x, reduce_weight, reduce_bias, expand_weight, expand_bias), kwargs

    return OpCase("squeeze_excite", name, arguments, small, any_alignment=any_alignment)


CASES = [
    _case("plain", 2, 16, 5, 6, 4, any_alignment=True),
    _case("one_pixel", 3, 72, 1, 1, 8),
    _case("one_channel", 2, 1, 7, 7, 1),
    _case("three_channels", 5, 3, 14, 14, 2, biases=False),
    _case("7x7", 2, 72, 7, 7, 18, gate="hard_sigmoid", activation="relu"),
    _case("14x14_silu", 1, 24, 14, 14, 6, activation="silu"),
    _case("19x19", 1, 10, 19, 19, 3, biases=False, convolution=False, any_alignment=True),
    _case("residual", 2, 12, 6, 5, 3, residual=True),
    _case("residual_relu", 2, 12, 6, 5, 3, residual=True, output_activation="relu"),
    _case("relu", 2, 12, 7, 7, 3, output_activation="relu", shift=0.1),
    _case("whole_vectors", 1, 32, 4, 6, 8, residual=True, output_activation="relu", any_alignment=True),
    _case("single_layer", 2, 20, 5, 5, None, gate="hard_sigmoid", any_alignment=True),
    _case("no_hidden_channels", 2, 12, 5, 6, 0),
    _case("several_programs", 3, 20, 23, 31, 6, activation="silu", residual=True, output_activation="relu"),
    _case("no_samples", 0, 8, 4, 4, 2),
    _case("wide", 2, 2048, 7, 7, 128, small=False),
    _case("tall", 5, 64, 56, 56, 4, activation="silu", small=False),
    _case("odd_tall", 3, 33, 57, 55, 5, residual=True, output_activation="relu", small=False),
]


def _random(draw: random.Random, largest: int) -> OpCase:
    n, c = draw.randint(0, 4), draw.randint(1, largest)
    h, w = (draw.randint(1, largest // 2) for _ in range(2))
    # Not few: the gradient of a single hidden channel may cancel to nothing beside its terms.
    rd = draw.choice((None, *range(6, 25)))
    traits = {name: draw.choice((False, True)) for name in ("biases", "convolution", "residual")}
    return _case(
        "random", n, c, h, w, rd, **traits,
        activation=draw.choice(("relu", "silu")), gate=draw.choice(("sigmoid", "hard_sigmoid")),
        output_activation=draw.choice((None, "relu")),
    )  # fmt: skip


RANDOM = {"squeeze_excite": RandomCases(_random, largest=70)}

# The sites of seresnet50 with the widest and the narrowest rows, in both layouts, with every epilogue.
COMPILED = [
    BudgetedCall(
        name, _case(name, *sizes, residual=True, activation="silu", output_activation="relu", small=False), layout
    )
    for name, sizes, layout in (
        ("nchw", (8, 256, 56, 56, 16), "contiguous"),
        ("nhwc", (8, 256, 56, 56, 16), "channels_last"),
        ("nchw_7x7", (32, 2048, 7, 7, 128), "contiguous"),
    )
]

# Planes that end on 128-bit boundaries, and few multiprocessors: blocks of the size that a large batch has.
_PATHS = {
    "plain launches": {"major": 8, "minor": 0, "multiprocessors": 4},
    "overlapped launches": {"multiprocessors": 4},
}
TRAFFIC = [
    TrafficCall(
        f"{path}, {name}", _case("traffic", 2, 64, 16, 16, 8), layout, wanted=(0,), inputs=("x",), device=device,
        reads={"x": 2 + 1, "grad_y": 2}, writes={"y": 1, "grad_x": 1},  # two passes forward, and two backward
    )
    for path, device in _PATHS.items()
    for name, layout in FORMATS.items()
]  # fmt: skip

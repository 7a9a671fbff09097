"""Cases of efficient_channel_attention: the sizes of real networks, and every option."""

from __future__ import annotations

import random

from .._budgeted import FORMATS, BudgetedCall, TrafficCall
from .._cases import Maker, OpCase, RandomCases


def _case(name, n, c, h, w, k=3, *, residual=False, small=True, shift=0.0, any_alignment=False, **options):
    def arguments(make: Maker):
        x = make.feature_map(n, c, h, w, shift=shift)
        # A weight of one dimension here, of three as a Conv1d's there.
        weight = make.normal(*((k,) if k == 3 else (1, 1, k)), scale=k**-0.5)
        kwargs = dict(options)
        if residual:
            kwargs["residual"] = make.feature_map(n, c, h, w)
        return (x, weight), kwargs

    return OpCase("efficient_channel_attention", name, arguments, small, any_alignment=any_alignment)


CASES = [
    _case("plain", 2, 16, 5, 6, any_alignment=True),
    _case("circular", 2, 12, 5, 6, 5, circular=True, any_alignment=True),
    _case("one_tap", 2, 8, 4, 5, 1),
    _case("more_taps_than_channels", 2, 3, 6, 7, 9),
    _case("around_all_channels", 2, 3, 6, 7, 7, circular=True),
    _case("one_pixel", 3, 72, 1, 1, 5),
    _case("one_channel", 2, 1, 7, 7),
    _case("7x7", 2, 72, 7, 7, gate="hard_sigmoid"),
    _case("residual", 2, 12, 6, 5, residual=True),
    _case("relu", 2, 12, 7, 7, output_activation="relu", shift=0.1),
    _case("whole_vectors", 1, 32, 4, 6, 5, residual=True, output_activation="relu", any_alignment=True),
    _case("several_programs", 3, 20, 23, 31, 5, residual=True, output_activation="relu"),
    _case("no_samples", 0, 8, 4, 4),
    _case("wide", 2, 2048, 7, 7, 7, small=False),
    _case("tall", 5, 64, 56, 56, 5, small=False),
    _case("odd_tall", 3, 33, 57, 55, 3, residual=True, output_activation="relu", circular=True, small=False),
]


def _random(draw: random.Random, largest: int) -> OpCase:
    n, c = draw.randint(0, 4), draw.randint(1, largest)
    h, w = (draw.randint(1, largest // 2) for _ in range(2))
    circular = draw.choice((False, True))
    k = draw.choice([k for k in range(1, 12, 2) if not circular or k // 2 <= c])
    return _case(
        "random", n, c, h, w, k, circular=circular, residual=draw.choice((False, True)),
        gate=draw.choice(("sigmoid", "hard_sigmoid")), output_activation=draw.choice((None, "relu")),
    )  # fmt: skip


RANDOM = {"efficient_channel_attention": RandomCases(_random, largest=70)}

# Sites of ecaresnet50d, with the epilogue.
COMPILED = [
    BudgetedCall(name, _case(name, *sizes, residual=True, output_activation="relu", small=False), layout)
    for name, sizes, layout in (
        ("nchw", (8, 256, 56, 56, 5), "contiguous"),
        ("nhwc", (8, 256, 56, 56, 5), "channels_last"),
    )
]

TRAFFIC = [
    TrafficCall(
        name, _case("traffic", 2, 64, 16, 16), layout, wanted=(0,), inputs=("x",), device={"multiprocessors": 4}
    )
    for name, layout in FORMATS.items()
]

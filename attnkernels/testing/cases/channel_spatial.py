"""Cases of cbam and scse: the forms that people run, ties, and every option."""

from __future__ import annotations

import dataclasses
import random

from torch import Tensor

from .._budgeted import FORMATS, BudgetedCall, TrafficCall
from .._cases import Maker, OpCase, RandomCases


def _made_small(logits: Tensor) -> Tensor:
    """A normalisation whose result is small, so that its rounding to the map's dtype does not show beside y's own."""
    return logits / 64


def _layers(make: Maker, c: int, hidden: int | None, bias: bool, scale: float = 1.0) -> tuple[Tensor | None, ...]:
    """The weights of the channel gate's layers; a single one where hidden is 0, none where it is None."""
    if hidden is None:
        return (None,) * 4
    reduce = (make.normal(hidden, c, scale=c**-0.5), make.normal(hidden) if bias else None) if hidden else (None, None)
    width = hidden or c
    # As of fully connected layers with biases, as of convolutions without.
    shape = (c, width) if bias else (c, width, 1, 1)
    return *reduce, make.normal(*shape, scale=scale * width**-0.5), make.normal(c) if bias else None


def _map(make: Maker, n: int, c: int, h: int, w: int, ties: bool) -> Tensor:
    x = make.feature_map(n, c, h, w)
    return (2 * x).round().relu_() / 2 if ties and x.device.type != "meta" else x


def _cbam(
    name: str, n: int, c: int, h: int, w: int, hidden: int | None = 3, k: int | None = 3,
    *, bias: bool = True, equal: bool = False, scale: float = 1.0, small: bool = True, any_alignment: bool = False,
    **options,
) -> OpCase:  # fmt: skip
    def arguments(make: Maker):
        x = _map(make, n, c, h, w, equal)
        spatial = (
            (None, None) if k is None else (make.normal(1, 2, k, k, scale=1 / k), make.normal(1) if bias else None)
        )
        return (x, *_layers(make, c, hidden, bias, scale), *spatial), dict(options)

    # The gradients of the convolution's weights have come through the normalisation, which has the map's dtype.
    through = (5, 6) if "spatial_norm" in options else ()
    return OpCase("cbam", name, arguments, small, through, any_alignment=any_alignment, smooth=not equal)


def _scse(
    name: str, n: int, c: int, h: int, w: int, hidden: int | None = 3,
    *, bias: bool = True, equal: bool = False, small: bool = True, any_alignment: bool = False, **options,
) -> OpCase:  # fmt: skip
    def arguments(make: Maker):
        x = _map(make, n, c, h, w, equal)
        shape = (1, c, 1, 1) if bias else (c,)
        spatial = make.normal(*shape, scale=c**-0.5), make.normal(1) if bias else None
        return (x, *_layers(make, c, hidden, bias), *spatial), dict(options)

    return OpCase("scse", name, arguments, small, any_alignment=any_alignment, smooth=not equal)


_TIMM = {"spatial_order": ("mean", "max"), "ties": "share"}

CASES = [
    _cbam("timm", 2, 12, 5, 6, k=7, bias=False, any_alignment=True, **_TIMM),
    _cbam("official", 2, 12, 5, 6, spatial_norm=_made_small, any_alignment=True),
    _cbam("single_layer", 2, 12, 7, 7, 0, pool_types=("avg",), spatial_order=("mean", "max"), skip=True),
    _cbam("channel_alone", 2, 12, 6, 5, k=None, skip=True),
    _cbam("spatial_alone", 2, 10, 7, 6, None),
    _cbam("four_pools", 2, 8, 5, 4, 2, pool_types=("lp", "avg", "lse", "max"), bias=False, scale=0.1),
    _cbam("ties", 2, 12, 6, 7, equal=True),
    _cbam("one_pixel", 3, 40, 1, 1),
    _cbam("several_programs", 2, 40, 23, 31, 5, 7),
    _cbam("no_samples", 0, 8, 4, 4),
    _cbam("wide", 2, 1024, 7, 7, 64, 7, small=False),
    _cbam("tall", 3, 64, 56, 56, 4, 7, small=False, **_TIMM),
    _scse("max", 2, 12, 5, 6, any_alignment=True),
    _scse("add", 2, 12, 5, 6, bias=False, merge="add", any_alignment=True),
    _scse("ties", 2, 10, 7, 7, equal=True),
    _scse("spatial_alone", 2, 1, 6, 5, None),
    _scse("one_pixel", 3, 40, 1, 1, 0),
    _scse("several_programs", 2, 40, 23, 31, 5),
    _scse("no_samples", 0, 8, 4, 4),
    _scse("tall", 3, 64, 56, 56, 4, small=False, merge="add"),
]


# The gradient of the spatial bias is a sum over all pixels, and may be small beside its terms.
_CANCELLED = (6,)


def _random_cbam(draw: random.Random, largest: int) -> OpCase:
    n, c = draw.randint(0, 3), draw.randint(1, largest)
    h, w = (draw.randint(1, largest) for _ in range(2))
    hidden, k = draw.choice(((3, 3), (0, 7), (2, None), (None, 5), (4, 1)))
    case = _cbam(
        "random", n, c, h, w, hidden, k, bias=draw.choice((False, True)), ties=draw.choice(("first", "share")),
        skip=draw.choice((False, True)), pool_types=draw.choice((("avg",), ("avg", "max"), ("max",))),
        spatial_order=draw.choice((("max", "mean"), ("mean", "max"))),
    )  # fmt: skip
    return dataclasses.replace(case, through_output=_CANCELLED)


def _random_scse(draw: random.Random, largest: int) -> OpCase:
    n, c = draw.randint(0, 3), draw.randint(1, largest)
    h, w = (draw.randint(1, largest) for _ in range(2))
    case = _scse(
        "random", n, c, h, w, draw.choice((3, 0, None)), bias=draw.choice((False, True)),
        equal=draw.choice((False, True)), merge=draw.choice(("max", "add")),
    )  # fmt: skip
    return dataclasses.replace(case, through_output=_CANCELLED)


RANDOM = {
    "cbam": RandomCases(_random_cbam, largest=50),
    "scse": RandomCases(_random_scse, largest=50),
}
# A site of ResNet-50 and one of a U-Net's decoder.
COMPILED = [
    BudgetedCall(f"{case.op}_{name}", case, layout)
    for name, layout in (("nchw", "contiguous"), ("nhwc", "channels_last"))
    for case in (
        _cbam(name, 8, 256, 56, 56, 16, 7, small=False),
        _scse(name, 8, 128, 64, 64, 8, small=False),
    )
]

# Three passes forward; two backward over both maps, and one that needs no x.
TRAFFIC = [
    TrafficCall(
        name, _cbam("traffic", 2, 64, 16, 16, 4, 7), layout, wanted=(0,), inputs=("x",), device={"multiprocessors": 4},
        reads={"x": 3 + 2, "grad_y": 3}, writes={"y": 1, "grad_x": 1},
    )
    for name, layout in FORMATS.items()
]  # fmt: skip

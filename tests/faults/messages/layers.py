"""Mistakes in making layers and in calling them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from attnkernels.layers import (
    CBAM,
    ChannelSE,
    ChannelSpatialSE,
    CrissCrossAttention,
    EfficientChannelAttention,
    SelectiveKernel,
    SKConv,
    SpatialSE,
    SqueezeExcite,
)

from .table import (
    Mistake,
    Subject,
    no_flags,
    no_integers,
    no_names,
    no_ratios,
    no_tensors,
    shapes,
    unlike,
    wrong_dtypes,
)

C = 16


def _names(argument: str, known: str, misspelled: tuple[str, ...], instance: nn.Module) -> list[Mistake]:
    function = torch.nn.functional.silu
    return [
        *no_names(argument, known, misspelled),
        Mistake(argument, "None", None, TypeError, "a module class", "None"),
        Mistake(argument, "module", instance, TypeError, "a module class", f"module {type(instance).__name__}"),
        Mistake(argument, "function", function, TypeError, "a module class", "function silu"),
        Mistake(argument, "other class", dict, TypeError, "a module class", "class dict"),
        Mistake(argument, "class with arguments", nn.Conv2d, TypeError, "made without arguments", "class Conv2d"),
    ]


def _kernel_sizes() -> list[Mistake]:
    sizes = "odd sizes of at least 3"

    def row(value: Any, error: type[Exception], got: str) -> Mistake:
        return Mistake("kernel_size", got, value, error, sizes, got)

    return [
        *(
            row(v, TypeError, repr(v))
            for v in ("3", "35", 3.0, None, True, float("nan"), [3.0, 5], [3, "5"], [3, None])
        ),
        *(row(v, ValueError, repr(v)) for v in (0, 1, 4, -3, [3, 4], [1, 3], (3,), [], [3] * 9)),
        row(nn.Conv2d, TypeError, "class Conv2d"),
        row({3: 1, 5: 1}, TypeError, "dict of 2"),
        row([[3, 3], [5, 5]], TypeError, "list of 2"),
    ]


def _maps(rank: int) -> list[Mistake]:
    """Of the argument of a layer's forward."""
    size = (5, 4) if rank == 4 else (3, 5, 4)
    space = "H, W" if rank == 4 else "D, H, W"
    x = torch.ones(2, C, *size)
    wrong = [
        ("without batch", (C, *size)), ("one plane", (*size,)), ("scalar", ()), ("more dimensions", (1, 2, C, *size)),
        ("other channels", (2, C + 1, *size)), ("half of the channels", (2, C // 2, *size)),
        ("twice the channels", (2, 2 * C, *size)), ("channels at the end", (2, *size, C)), ("no channels", (2, 0, *size)),
    ]  # fmt: skip
    return [
        *no_tensors("x", x), *wrong_dtypes("x", x), *unlike("x", x), *shapes("x", f"[N, {C}, {space}]", wrong),
        Mistake("x", "image", torch.ones(2, C, *size, dtype=torch.uint8), TypeError, "float32", "uint8"),
        Mistake("x", "lists", [[1.0, 2.0], [3.0, 4.0]], TypeError, "a tensor", "list of 2"),
    ]  # fmt: skip


def _numbers(argument: str) -> list[Mistake]:
    """What is given in the place of a number of any size."""
    values: list[tuple[Any, str]] = [("2", "'2'"), (None, "None"), (True, "True"), ([2], "[2]"), (1j, "1j")]
    return [Mistake(argument, got, value, TypeError, "a number", got) for value, got in values]


def _maps_of_any_channels() -> list[Mistake]:
    """Of the forward of a layer that takes any number of channels."""
    x = torch.ones(2, C, 5, 4)
    wrong = [("without batch", (C, 5, 4)), ("scalar", ()), ("more dimensions", (1, 2, C, 5, 4))]
    return [
        *no_tensors("x", x), *wrong_dtypes("x", x), *unlike("x", x), *shapes("x", "a tensor [N, C, H, W]", wrong),
    ]  # fmt: skip


CONSTRUCTORS = [
    Subject(
        "SqueezeExcite", SqueezeExcite, lambda: {"channels": C},
        [
            *no_integers("channels"), *no_ratios("rd_ratio"), *no_integers("rd_channels", optional=True), *no_flags("bias"),
            *_names("act", "'relu' or 'silu'", ("relu6", "ReLU", "silu ", ""), nn.SiLU()),
            *_names("gate", "'sigmoid' or 'hard_sigmoid'", ("tanh", "hardsigmoid"), nn.Sigmoid()),
        ],
    ),
    Subject(
        "CrissCrossAttention", CrissCrossAttention, lambda: {"channels": C},
        [
            *no_integers("channels"), *no_integers("reduction"), *no_integers("recurrence"),
            *no_integers("dim", least=2, most=3),
        ],
    ),
    Subject(
        "EfficientChannelAttention", EfficientChannelAttention, lambda: {"channels": C},
        [
            *no_integers("channels"), *no_integers("kernel_size", optional=True, most=255), *no_flags("circular"),
            *_numbers("gamma"), *_numbers("beta"),
            *(Mistake("kernel_size", str(k), k, ValueError, "an odd number", str(k)) for k in (2, 4, 254)),
            *(Mistake("gamma", repr(v), v, ValueError, "a number above 0", repr(v)) for v in (0, -2.0, float("nan"))),
            *(Mistake("beta", repr(v), v, ValueError, "a finite number", repr(v)) for v in (float("inf"), float("nan"))),
            Mistake("kernel_size", "pair", (1, 3), TypeError, "an integer", "(1, 3)"),
        ],
    ),
    Subject(
        "CBAM", CBAM, lambda: {"channels": C},
        [
            *no_integers("channels"), *no_integers("reduction"), *no_flags("spatial"),
            *no_integers("rd_channels", optional=True), *no_flags("bias"), *no_names("ties", "'first'", ("last", "First")),
            *no_ratios("bn_momentum"), *no_integers("kernel_size", most=15), *no_flags("spatial_norm"),
            *no_flags("channel_mlp"),
            *(Mistake("kernel_size", str(k), k, ValueError, "an odd number", str(k)) for k in (2, 4, 14)),
            Mistake("kernel_size", "pair", (7, 7), TypeError, "an integer", "(7, 7)"),
            Mistake("pool_types", "name", "avg", TypeError, "a sequence of names", "'avg'"),
            Mistake("pool_types", "unknown", ("mean",), ValueError, "'avg'", "'mean'"),
            Mistake("pool_types", "empty", [], ValueError, "one or more different names", "[]"),
            Mistake("pool_types", "single layer", ("max",), ValueError, "the average alone", "('max',)", {"channel_mlp": False}),
            Mistake("spatial_order", "name", "max", TypeError, '("max", "mean")', "'max'"),
            Mistake("spatial_order", "pools", ("max", "avg"), ValueError, '("max", "mean")', "('max', 'avg')"),
        ],
    ),
    Subject("ChannelSE", ChannelSE, lambda: {"channels": C}, [*no_integers("channels"), *no_integers("reduction")]),
    Subject("SpatialSE", SpatialSE, lambda: {"channels": C}, no_integers("channels")),
    Subject(
        "ChannelSpatialSE", ChannelSpatialSE, lambda: {"channels": C},
        [*no_integers("channels"), *no_integers("reduction"), *no_names("merge", "'max'", ("mul", "Max"))],
    ),
    Subject(
        "SelectiveKernel", SelectiveKernel, lambda: {"in_channels": C},
        [
            *no_integers("in_channels"), *no_integers("out_channels", optional=True), *_kernel_sizes(),
            *no_integers("groups"), *no_ratios("rd_ratio"), *no_flags("keep_3x3"), *no_flags("split_input"),
            *no_integers("stride"), *no_integers("dilation"), *no_integers("rd_channels", optional=True),
            *no_integers("rd_divisor"),
            Mistake("stride", "pair", (2, 2), TypeError, "an integer", "(2, 2)"),
            Mistake("groups", "no divisor", 3, ValueError, "a divisor of 16 and 16", "3"),
            Mistake("in_channels", "odd", 15, ValueError, "a multiple of the 2 paths", "15", {"split_input": True}),
        ],
    ),
    Subject(
        "SKConv", SKConv, lambda: {"channels": 64},
        [
            *no_integers("channels"), *no_integers("paths", least=2, most=8), *no_integers("groups"),
            *no_integers("rd_channels", optional=True), *no_integers("stride"),
            Mistake("groups", "no divisor", 48, ValueError, "a divisor of 64", "48"),
        ],
    ),
]  # fmt: skip


def _forward(layer: nn.Module, title: str, rank: int = 4) -> Subject:
    x = torch.ones(2, C, *((5, 4) if rank == 4 else (3, 5, 4)))
    return Subject(type(layer).__name__, layer, lambda: {"x": x}, _maps(rank), signature=layer.forward, title=title)


def _hooked() -> Subject:
    """Of a layer that calls its children one by one; PyTorch's convolution takes an input on meta."""
    layer = SqueezeExcite(C)
    layer.fc1.register_forward_hook(lambda *_: None)
    subject = _forward(layer, "SqueezeExcite(hooked).forward")
    return replace(subject, mistakes=[row for row in subject.mistakes if row.what != "on meta"])


FORWARDS = [
    _forward(SqueezeExcite(C), "SqueezeExcite.forward"),
    _forward(SqueezeExcite(C, act=nn.GELU, bias=False), "SqueezeExcite(act=GELU).forward"),
    _hooked(),
    _forward(CrissCrossAttention(C, recurrence=2), "CrissCrossAttention.forward"),
    replace(
        _forward(EfficientChannelAttention(C), "EfficientChannelAttention.forward"), mistakes=_maps_of_any_channels()
    ),
    _forward(CBAM(C), "CBAM.forward"),
    _forward(CBAM(C, channel_mlp=False, spatial_norm=False), "CBAM(single layer).forward"),
    _forward(ChannelSE(C), "ChannelSE.forward"),
    _forward(SpatialSE(C), "SpatialSE.forward"),
    _forward(ChannelSpatialSE(C), "ChannelSpatialSE.forward"),
    _forward(CrissCrossAttention(C, dim=3), "CrissCrossAttention(dim=3).forward", rank=5),
    _forward(SelectiveKernel(C), "SelectiveKernel.forward"),
    _forward(SelectiveKernel(C, split_input=True), "SelectiveKernel(split_input).forward"),
    _forward(SKConv(C, groups=2), "SKConv.forward"),
]

SUBJECTS = [*CONSTRUCTORS, *FORWARDS]

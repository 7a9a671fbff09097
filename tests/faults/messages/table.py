"""Typical mistakes as data: what was called, which argument was wrong, and what the message has to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Mistake(NamedTuple):
    """A wrong value of one argument.

    Attributes:
        argument: which one.
        what: the mistake, in a word or two.
        value: the wrong value.
        error: the exception's type.
        expected: what the message says was expected, a part of it.
        got: what the message says was got, a part of it.
        others: further arguments that differ from the right ones.
        by: whose message it is, where that is not the subject itself.
    """

    argument: str
    what: str
    value: Any
    error: type[Exception]
    expected: str
    got: str
    others: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default)
    by: str = ""


@dataclass
class Subject:
    """A public callable with its mistakes.

    Attributes:
        name: what its messages begin with.
        call: the callable; takes the arguments by name.
        right: makes right arguments.
        mistakes: the rows.
        unchecked: arguments of which any value will do, with the reason.
        signature: the callable whose parameters all need rows, where that is not `call`.
        title: its name in the tests, where that is not `name`.
    """

    name: str
    call: Callable[..., Any]
    right: Callable[[], dict[str, Any]]
    mistakes: list[Mistake]
    unchecked: dict[str, str] = field(default_factory=dict)
    signature: Callable[..., Any] | None = None
    title: str = ""


def no_tensors(argument: str, good: Tensor, *, optional: bool = False) -> list[Mistake]:
    """What is given in the place of a tensor."""
    values: list[tuple[str, Any, str]] = [
        ("numpy array", good.numpy(), f"numpy array of float32 {list(good.shape)}"),
        ("list", [good], "list of 1"),
        ("string", "features.pt", "'features.pt'"),
        ("int", 3, "3"),
        ("float", 0.5, "0.5"),
        ("module", nn.Conv2d(1, 1, 1), "module Conv2d"),
        ("class", nn.Conv2d, "class Conv2d"),
    ]
    if not optional:
        values.append(("None", None, "None"))
    return [Mistake(argument, what, value, TypeError, "a tensor", got) for what, value, got in values]


def wrong_dtypes(argument: str, good: Tensor) -> list[Mistake]:
    """Tensors of dtypes that no function takes, and one that is not dense."""
    rows = [
        Mistake(argument, str(dtype), good.to(dtype), TypeError, "float32", str(dtype).removeprefix("torch."))
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64)
    ]
    return [*rows, Mistake(argument, "sparse", good.to_sparse(), TypeError, "a dense (strided) tensor", "sparse")]


def unlike(argument: str, good: Tensor) -> list[Mistake]:
    """Tensors of another dtype or device than the one that decides."""
    return [
        Mistake(argument, "float64", good.double(), TypeError, "torch.float32", "torch.float64"),
        Mistake(argument, "float16", good.half(), TypeError, "torch.float32", "torch.float16"),
        Mistake(argument, "on meta", good.to("meta"), ValueError, "device cpu", "meta"),
    ]


def shapes(argument: str, expected: str, wrong: Iterable[tuple[str, tuple[int, ...]]]) -> list[Mistake]:
    return [Mistake(argument, what, torch.ones(shape), ValueError, expected, str(list(shape))) for what, shape in wrong]


def no_names(argument: str, expected: str, misspelled: Iterable[str]) -> list[Mistake]:
    """What is given in the place of one of a few names."""
    rows = [Mistake(argument, repr(name), name, ValueError, expected, repr(name)) for name in misspelled]
    return [
        *rows,
        Mistake(argument, "number", 3, TypeError, expected, "3"),
        Mistake(argument, "list", ["relu"], TypeError, expected, "['relu']"),
        Mistake(argument, "bool", True, TypeError, expected, "True"),
        Mistake(argument, "numpy array", np.zeros(1000), TypeError, expected, "numpy array of float64 [1000]"),
    ]


def backends() -> list[Mistake]:
    """Of the argument `backend`."""
    rows = [
        Mistake("backend", repr(name), name, ValueError, "'auto'", repr(name)) for name in ("gpu", "CPU", "cpu ", "")
    ]
    return [
        *rows,
        Mistake("backend", "None", None, TypeError, "'auto'", "None"),
        Mistake("backend", "device", torch.device("cpu"), TypeError, "'auto'", "device(type='cpu')"),
        Mistake("backend", "numpy array", np.zeros(1000), TypeError, "'auto'", "numpy array of float64 [1000]"),
    ]


def no_integers(argument: str, *, optional: bool = False, least: int = 1, most: int | None = None) -> list[Mistake]:
    """What is given in the place of a whole number."""
    values: list[tuple[str, Any, str]] = [
        ("string", "16", "'16'"),
        ("float", 16.0, "16.0"),
        ("nan", float("nan"), "nan"),
        ("bool", True, "True"),
        ("list", [16], "[16]"),
        ("numpy float", np.float32(16), "16.0"),
        ("numpy array", np.zeros(1000), "numpy array of float64 [1000]"),
        ("class", nn.Conv2d, "class Conv2d"),
    ]
    if not optional:
        values.append(("None", None, "None"))
    rows = [Mistake(argument, what, value, TypeError, "an integer", got) for what, value, got in values]
    wrong = (least - 1, -least) if most is None else (least - 1, -least, most + 1)
    return rows + [Mistake(argument, str(value), value, ValueError, str(least), str(value)) for value in wrong]


def no_ratios(argument: str) -> list[Mistake]:
    """What is given in the place of a ratio."""
    types: list[tuple[Any, str]] = [("0.25", "'0.25'"), (None, "None"), (True, "True"), ([0.25], "[0.25]"), (1j, "1j")]
    values = (0, 0.0, -1, -0.25, 1.5, 16, float("nan"), float("inf"))
    return [
        *(Mistake(argument, got, value, TypeError, "a number above 0 and up to 1", got) for value, got in types),
        *(Mistake(argument, repr(v), v, ValueError, "a number above 0 and up to 1", repr(v)) for v in values),
    ]


def no_flags(argument: str) -> list[Mistake]:
    """What is given in the place of True or False."""
    values: list[tuple[Any, str]] = [("False", "'False'"), ("no", "'no'"), (None, "None"), (2, "2"), ([], "[]")]
    return [Mistake(argument, got, value, TypeError, "True or False", got) for value, got in values]

"""What the options of `python -m benchmarks` take; each function is the `type=` of an argparse option.

A wrong value ends the command before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from attnkernels._messages import meant, shown

from .cases import all_cases
from .micro import every_column
from .models import MADE

Names = tuple[str, ...]
CASES = list(all_cases().values())
OPERATORS = [case.op for case in CASES]
VARIANTS = list(dict.fromkeys(variant for case in CASES for variant in case.variants))
MICRO_COLUMNS = every_column(CASES)
MOST_LISTED = 16
PICTURES = (".png", ".pdf", ".svg", ".jpg")


def _refuse(expected: str, got: Any, names: Iterable[str] = ()) -> None:
    raise ArgumentTypeError(f"expected {expected}, got {shown(got)}{meant(got, names, 0.6)}")


def _member(name: str, names: Iterable[str], what: str) -> str:
    names = list(names)
    if name not in names:
        listed = f": {', '.join(names)}" if len(names) <= MOST_LISTED else ""
        _refuse(f"{what}{listed}", name, names)
    return name


def some_of(what: str, names: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], Names]:
    """Comma-separated names.

    Args:
        what: what one of them is, for the message.
        names: the right ones, or a function that finds them.
    """

    def parse(text: str) -> Names:
        known = list(names() if callable(names) else names)
        return tuple(_member(name, known, what) for name in text.split(","))

    return parse


def whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        _refuse("a whole number of at least 1", text)
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        _refuse("a number of seconds", text)
    return value


def batches(text: str) -> tuple[int, ...]:
    return tuple(map(whole, text.split(",")))


def device(text: str) -> str:
    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        _refuse("cpu or cuda", text, ("cpu", "cuda"))
    if kind == "cuda" and not torch.cuda.is_available():
        _refuse("cpu, as torch sees no GPU", text)
    return text


def shapes(text: str) -> Names:
    for shape in text.split(","):
        if not all(number.isascii() and number.isdigit() for number in shape.split("x")):
            _refuse("shapes as 8x256x56x56x16", shape)
    return tuple(text.split(","))


def model_names() -> Iterable[str]:
    import timm
    import torchvision

    return (*torchvision.models.list_models(), *timm.list_models(), *MADE)


def result_file(text: str) -> str:
    """A file that an earlier command wrote."""
    try:
        document = json.loads(Path(text).read_text())
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict) or "rows" not in document:
        _refuse("a result file, as --json writes it", text)
    return text


def new_file(text: str) -> str:
    """A file that can be written, or written over."""
    if not text or Path(text).is_dir():
        _refuse("a file to write", text)
    return text


def picture(text: str) -> str:
    if Path(new_file(text)).suffix not in PICTURES:
        _refuse(f"a file to write that ends with one of {', '.join(PICTURES)}", text)
    return text


def refuse_combination(parser: argparse.ArgumentParser, arguments: Namespace) -> None:
    """End the command where each option is right, but not all of them together."""

    def refuse(option: str, expected: str, got: Any) -> None:
        parser.error(f"argument --{option}: expected {expected}, got {shown(got)}")

    if arguments.command == "models" and arguments.columns and "eager" not in arguments.columns:
        refuse("columns", "eager among them", ",".join(arguments.columns))
    if arguments.command != "micro":
        return
    cases = [case for case in CASES if case.op in (arguments.op or OPERATORS)]
    if arguments.mode and arguments.device == "cpu":
        refuse("mode", "none on a cpu", ",".join(arguments.mode))
    for variant in arguments.variant or ():
        if not any(variant in case.variants for case in cases):
            refuse("variant", f"a variant of {', '.join(case.op for case in cases)}", variant)
    for shape in arguments.shapes or ():
        for case in cases:
            if len(shape.split("x")) != len(case.axes.split("x")):
                refuse("shapes", f"{case.axes} for {case.op}", shape)

"""What is measured: one file per op, each with a `CASE`. A new op needs a new file here and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """The least that a call has to do: bytes (each input read once, each output written once), operations."""

    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0

    def of(self, direction: str) -> tuple[int, int]:
        """`(bytes, flops)` of "forward", "backward" or "training" (both)."""
        forward, backward = direction != "backward", direction != "forward"
        return (
            forward * self.forward_bytes + backward * self.backward_bytes,
            forward * self.forward_flops + backward * self.backward_flops,
        )


@dataclass(frozen=True)
class Case:
    """One op's benchmark.

    Attributes:
        op: the public function's name; `attnkernels.reference.<op>` in float64 is what results are checked against.
        shapes: what is measured by default, by device type, as "AxBxC" texts; `axes` names the numbers.
        axes: names of a shape's numbers.
        variants: names of the ways the op is called (the first is the plain one).
        make: `(randn, shape, variant) -> (args, kwargs)`; `randn(*sizes)` draws a float32 tensor.
        eager: what a user without this library would run, on the same arguments.
        work: `(shape, variant, itemsize) -> Work`.
        alternatives: other ways to write it in PyTorch, as good or better; columns of their own, eager and compiled.
    """

    op: str
    axes: str
    shapes: dict[str, tuple[str, ...]]
    variants: tuple[str, ...]
    make: Callable[[Callable[..., Tensor], Shape, str], tuple[tuple[Any, ...], dict[str, Any]]]
    eager: Callable[..., Tensor]
    work: Callable[[Shape, str, int], Work]
    alternatives: dict[str, Callable[..., Tensor]] = field(default_factory=dict)


def parse_shape(text: str) -> Shape:
    return tuple(int(number) for number in text.split("x"))


def all_cases() -> dict[str, Case]:
    """Every case file's CASE by op name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.CASE.op: module.CASE for module in modules}

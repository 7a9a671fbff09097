"""An op's cases: named ways to make its arguments, and how to call it with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import attnkernels

from .. import backends
from ..ops import _checks

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")


class Maker:
    """Makes the random tensors of one case: float64 values from a seed, rounded to the dtype under test."""

    def __init__(self, dtype: torch.dtype, device: str, layout: str, seed: int = 0):
        where = "OpCase.make"
        if dtype not in DTYPES:
            kind = ValueError if isinstance(dtype, torch.dtype) else TypeError
            _checks.fail(where, "dtype", f"one of {', '.join(map(str, DTYPES))}", _checks.shown(dtype), kind)
        _checks.choice(where, "layout", layout, LAYOUTS)
        _check_device(where, device)
        seed = _checks.integer(where, "seed", seed, 0)
        self.dtype, self.device, self.layout = dtype, device, layout
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        if torch.device(self.device).type == "meta":
            return torch.empty(shape, dtype=self.dtype, device="meta")
        values = torch.randn(shape, dtype=torch.float64, generator=self._generator) * scale + shift
        return values.to(self.dtype).to(self.device)

    def feature_map(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """A [N, C, H, W] (or [N, C, D, H, W]) tensor in the layout under test."""
        x = self.normal(*shape, scale=scale, shift=shift)
        if self.layout == "contiguous":
            return x
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _check_device(where: str, device: str | torch.device) -> None:
    expected = "a device of torch's"
    try:
        torch.device(device)
    except TypeError:
        _checks.fail(where, "device", expected, _checks.shown(device), TypeError)
    except RuntimeError:
        _checks.fail(where, "device", expected, _checks.shown(device))


@dataclass(frozen=True)
class OpCase:
    """One way to call a public function.

    Attributes:
        op: the public function's name.
        name: what is particular about it.
        arguments: maps a Maker to `(args, kwargs)`.
        small: quick enough for the host emulation and for numerical gradients.
        through_output: the tensor arguments whose gradient is computed from the stored output (see `_accuracy`).
        products: whether the op multiplies matrices, whose operands may be rounded to 16 bits (see `_accuracy`).
        any_alignment: whether tests also start its operands at every alignment.
        smooth: whether the op has a derivative at these arguments, that numbers close to them show: a maximum of equal
            ones has none.
    """

    op: str
    name: str
    arguments: Callable[[Maker], tuple[tuple, dict]]
    small: bool = True
    through_output: tuple[int, ...] = ()
    products: bool = False
    any_alignment: bool = False
    smooth: bool = True

    def rounded_inside(self, backend: str, dtype: torch.dtype, argument: int | None = None) -> bool:
        """Whether a backend rounds on the way to the output or, if one is named, to an argument's gradient."""
        if backend == "cpu":
            rounds = dtype == torch.bfloat16 and torch.ops.attnkernels.simd_level() == "avx512_bf16"
        else:
            rounds = dtype.itemsize == 2
        return (self.products and rounds) or argument in self.through_output

    def make(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous", seed: int = 0
    ) -> tuple[tuple, dict]:
        return self.arguments(Maker(dtype, device, layout, seed))

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


@dataclass(frozen=True)
class RandomCases:
    """How to draw cases of an op at random, for the fuzz tests.

    Attributes:
        draw: maps a source of numbers, and the largest size that a dimension may have, to a case.
        largest: that size, where kernels run at full speed.
        dtypes: those in which the results of whatever is drawn can be held to the tolerances.
        distinct: whether two pixels of a feature map must never be one element in memory, as in an expanded one.
    """

    draw: Callable[[random.Random, int], OpCase]
    largest: int
    dtypes: tuple[torch.dtype, ...] = DTYPES
    distinct: bool = False


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dictionaries with every tensor changed."""
    if not callable(change):
        _checks.fail("map_tensors", "change", "a callable on tensors", _checks.shown(change), TypeError)
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)


def in_float64(arguments: Any) -> Any:
    """The same arguments as float64 tensors on the CPU, detached."""
    return map_tensors(arguments, lambda tensor: tensor.detach().cpu().double())


def run(op: str, args: tuple, kwargs: dict, backend: str = "reference") -> Tensor:
    """Call a public function, or its reference."""
    _check_call("run", op, args, kwargs, backend)
    if backend == "reference":
        return getattr(attnkernels.reference, op)(*args, **kwargs)
    return getattr(attnkernels, op)(*args, **kwargs, backend=backend)


def _check_call(where: str, op: str, args: tuple, kwargs: dict, backend: str) -> None:
    backends.op_of(op, where)
    if not isinstance(args, (tuple, list)):
        _checks.fail(where, "args", "a tuple of positional arguments", _checks.shown(args), TypeError)
    if not isinstance(kwargs, dict):
        _checks.fail(where, "kwargs", "a dict of keyword arguments", _checks.shown(kwargs), TypeError)
    backends.checked(backend, f"{op}: backend")


def gradients(
    op: str, args: tuple, kwargs: dict, backend: str, grad_output: Tensor | None = None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """A call's output, its gradients to every tensor argument, and the gradient of the output that was used.

    Without `grad_output` a random one is drawn, in the output's dtype and layout.
    """
    _check_call("gradients", op, args, kwargs, backend)
    args, kwargs = map_tensors((args, kwargs), lambda tensor: tensor.detach().requires_grad_())
    output = run(op, args, kwargs, backend)
    if grad_output is None:
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(output.shape, dtype=torch.float64, generator=generator)
        grad_output = torch.empty_like(output).copy_(values)
    else:
        _checks.tensor("gradients", "grad_output", grad_output)
        _checks.shape("gradients", "grad_output", grad_output, tuple(output.shape))
    inputs = list(tensors_of((args, kwargs)))
    grads = torch.autograd.grad(output, inputs, grad_output.to(output.dtype), allow_unused=True)
    return output, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)], grad_output

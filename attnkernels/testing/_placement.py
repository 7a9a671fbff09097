"""Operands that start at any element: a view may, each operand of a call at another; results lie where torch puts them.

Kernels move vectors where addresses allow it, so that the alignment of an operand decides which code reads it. A
`PlacedCase` runs a case with chosen operands of its operators some elements past an aligned address, all others at one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ops import _checks
from ._accuracy import uninitialized_is_nan
from ._cases import OpCase, gradients, in_float64, map_tensors, run, tensors_of
from ._check import check_results

Operand = tuple[str, int]  # an operator's name, and which of its tensors
Offsets = Mapping[Operand, int]  # how many elements past an aligned address these operands start

OFFSETS = (1, 2, 3, 5)
ALIGNMENT = 16  # bytes: the widest access for which a kernel asks where its operands lie


def placed(x: Tensor, offset: int) -> Tensor:
    """A copy of x, with its strides, that starts `offset` elements past an aligned address."""
    if not isinstance(x, Tensor):
        _checks.fail("placed", "x", "a tensor", _checks.shown(x), TypeError)
    offset = _checks.integer("placed", "offset", offset, 0)
    if not x.numel():
        return x
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    memory = torch.full((span + offset,), float("nan"), dtype=x.dtype, device=x.device)
    assert memory.data_ptr() % ALIGNMENT == 0, "torch gave memory that is not aligned"
    return memory.as_strided(x.shape, x.stride(), offset).copy_(x)


def places(operands: Sequence[Operand], choices: Sequence[int]) -> Iterator[Offsets]:
    """Each operand by itself at each of these offsets; then all of them at once, each at another than the next."""
    for operand in operands:
        for offset in choices:
            yield {operand: offset}
    yield {operand: choices[i % len(choices)] for i, operand in enumerate(operands)}


class Placement(TorchDispatchMode):
    """Gives every operand of this library's operators a place of its own: aligned, or as `offsets` says."""

    def __init__(self, offsets: Offsets) -> None:
        super().__init__()
        self.offsets = offsets
        self.operands: list[Operand] = []  # those that were met

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("attnkernels"):
            name = func._schema.name.split("::")[1]
            positions = iter(range(len(list(tensors_of(args)))))

            def place(x: Tensor) -> Tensor:
                operand = name, next(positions)
                if x.numel():
                    self.operands.append(operand)
                return placed(x, self.offsets.get(operand, 0))

            args = map_tensors(tuple(args), place)
        return func(*args, **(kwargs or {}))


class PlacedCase:
    """A case on a backend: its results where every operand is aligned, and checks of those where some are not."""

    def __init__(self, case: OpCase, backend: str, device: str, dtype: torch.dtype, layout: str) -> None:
        self.case, self.backend = case, backend
        args, kwargs = case.make(dtype, device, layout)
        _, _, self.grad_output = gradients(case.op, args, kwargs, "reference")
        args64, kwargs64 = in_float64((args, kwargs))
        self.want = gradients(case.op, args64, kwargs64, "reference", self.grad_output.cpu().double())[:2]
        self.args, self.kwargs = map_tensors((args, kwargs), lambda x: x.requires_grad_())
        self.output, self.forward_operands = self.forward({})
        self.grads, self.backward_operands = self.backward(self.output, {})
        self._check(self.output, self.grads)

    @property
    def operands(self) -> list[Operand]:
        return [*self.forward_operands, *self.backward_operands]

    def forward(self, offsets: Offsets) -> tuple[Tensor, list[Operand]]:
        with Placement(offsets) as placement, uninitialized_is_nan():
            return run(self.case.op, self.args, self.kwargs, self.backend), placement.operands

    def backward(self, output: Tensor, offsets: Offsets) -> tuple[tuple[Tensor, ...], list[Operand]]:
        inputs = list(tensors_of((self.args, self.kwargs)))
        with Placement(offsets) as placement, uninitialized_is_nan():
            return torch.autograd.grad(output, inputs, self.grad_output, retain_graph=True), placement.operands

    def check(self, offsets: Offsets, same_bits: Collection[str] = ()) -> None:
        """Hold what a call with these offsets gives to the reference.

        Where only operands of `same_bits` lie elsewhere, to the bits of the aligned call: operators whose sums keep
        their order wherever their operands lie.

        Raises:
            AssertionError: the operands, and what is wrong.
        """
        try:
            output = self.output
            if any(operand in offsets for operand in self.forward_operands):
                output, _ = self.forward(offsets)
            grads, _ = self.backward(output, offsets)
            if all(operator in same_bits for operator, _ in offsets):
                for got, want in zip((output, *grads), (self.output, *self.grads), strict=True):
                    assert torch.equal(got, want), "other bits than with aligned operands"
            else:
                self._check(output, grads)
        except AssertionError as error:
            raise AssertionError(f"{output.dtype}, offsets {dict(offsets)}: {error}") from error

    def _check(self, output: Tensor, grads: Sequence[Tensor]) -> None:
        check_results(self.case, self.backend, output, grads, *self.want)

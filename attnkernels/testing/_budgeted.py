"""Calls whose kernels have a budget in benchmarks/budgets: what Triton makes of them, and the bytes that they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ._cases import OpCase, run, tensors_of

FORMATS = {"NCHW": "contiguous", "NHWC": "channels_last"}  # names of the layouts in tables of budgets


class CallTensors(NamedTuple):
    """What a call was given and has computed; no gradients where only the forward ran."""

    inputs: Sequence[Tensor]
    output: Tensor
    grad_output: Tensor
    grads: Sequence[Tensor]


@dataclass(frozen=True)
class BudgetedCall:
    """A case, and what of its run is counted.

    Attributes:
        name: how the table tells it from the op's other calls.
        case: what is called.
        layout: the layout of its feature maps.
        part: "forward", "backward" or "both".
        wanted: the tensor arguments whose gradients are computed; all of them where None.
    """

    name: str
    case: OpCase
    layout: str = "contiguous"
    part: str = "both"
    wanted: tuple[int, ...] | None = None

    def prepare(self, backend: str, dtype: torch.dtype, device: str = "cpu") -> Callable[[], CallTensors]:
        """Run what is not counted; the function that is returned runs what is."""
        args, kwargs = self.case.make(dtype, device, self.layout)
        inputs = list(tensors_of((args, kwargs)))
        leaves = [x.requires_grad_() for i, x in enumerate(inputs) if self.wanted is None or i in self.wanted]
        earlier = run(self.case.op, args, kwargs, backend)
        grad_output = torch.ones_like(earlier)

        def call() -> CallTensors:
            output = earlier if self.part == "backward" else run(self.case.op, args, kwargs, backend)
            grads = () if self.part == "forward" else torch.autograd.grad(output, leaves, grad_output)
            return CallTensors(inputs, output, grad_output, grads)

        return call


@dataclass(frozen=True)
class TrafficCall(BudgetedCall):
    """A call whose traffic is counted, buffer by buffer, on the emulated device. A buffer is known by its address: none
    may lie where a workspace did that was freed before.

    Attributes:
        inputs: names of the first tensor arguments; further ones are not accounted for.
        output: the result's name.
        grads: the names of the gradients; "grad_" and the input's name where empty.
        device: fields of the emulated device that differ from an H100's.
        reads, writes: how often the budget has the call read and write the whole of each buffer, with accesses of 16
            bytes in whole sectors; empty where the op's own test of its budget (tests/test_budgets.py) knows better.
    """

    inputs: tuple[str, ...] = ()
    output: str = "y"
    grads: tuple[str, ...] = ()
    device: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    def buffers(self, tensors: CallTensors) -> dict[str, Tensor]:
        """The tensors by name."""
        named = dict(zip(self.inputs, tensors.inputs, strict=False))
        named[self.output] = tensors.output
        if tensors.grads:
            names = self.grads or [f"grad_{name}" for name in self.inputs]
            named |= zip(names, tensors.grads, strict=True)
            named[f"grad_{self.output}"] = tensors.grad_output
        return named

"""The accuracy rule: every fused result is held to the reference evaluated in float64 on the same inputs.

The kernels accumulate in float32 (float64 for float64) and round once, when they store. So an element may differ from
the float64 result by one rounding of its own dtype (`relative`), plus the accumulated float32 error, which scales with
the largest element of the tensor (`of_largest`).

Attention rounds once more on the way (`rounded_inside`), which adds one rounding of the largest element. Behind a
softmax that is the largest of all gradients of the call: these are differences of terms of that size, and may cancel.
- It keeps its output for the backward and nothing of its probabilities: the softmax's gradient subtracts
  sum(grad_output * output) with the output as it was stored.
- On tensor cores, and by a CPU's products of bfloat16, the probabilities and their gradients are operands of a matrix
  product, which have 16 bits where the tensors do: a sum's error scales with its terms, not with what is left of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _load
from ..ops import _checks


@dataclass(frozen=True)
class Tolerance:
    relative: float
    of_largest: float


TOLERANCES = {
    torch.float64: Tolerance(1e-11, 1e-12),
    torch.float32: Tolerance(1e-5, 2e-6),
    torch.float16: Tolerance(1e-3, 5e-5),
    torch.bfloat16: Tolerance(8e-3, 1e-4),
}


def assert_close_to_float64(
    actual: Tensor, expected: Tensor, what: str, *, rounded_inside: bool = False, largest: float = 0.0
) -> None:
    """Hold a result to its float64 reference by the table above; NaN and Inf must agree exactly.

    Args:
        actual, expected, what: the result, its reference, and its name in the message.
        rounded_inside: whether the computation rounds on the way, as explained above.
        largest: the size of the terms, where that is more than the largest element of `expected`.
    """
    for argument, value in (("actual", actual), ("expected", expected)):
        if not isinstance(value, Tensor):
            _checks.fail("assert_close_to_float64", argument, "a tensor", _checks.shown(value), TypeError)
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not actual.numel():
        return
    got, want = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = want.isfinite()
    if actual.dtype is torch.float16:  # what float16 cannot hold is an infinity there
        finite &= want.abs() <= torch.finfo(torch.float16).max
    assert torch.equal(got.isnan(), want.isnan()), f"{what}: NaN in other places than the reference"
    assert not got[~finite & ~want.isnan()].isfinite().any(), f"{what}: finite where the reference is infinite"
    got, want = got[finite], want[finite]
    if not want.numel():
        return
    tolerance = TOLERANCES[actual.dtype]
    of_largest = tolerance.of_largest + (tolerance.relative if rounded_inside else 0)
    tiny = torch.finfo(actual.dtype).smallest_normal
    allowed = tolerance.relative * want.abs() + of_largest * max(want.abs().max().item(), largest) + tiny
    excess = (got - want).abs() / allowed
    worst = excess.argmax()
    assert excess[worst] <= 1, (
        f"{what} ({actual.dtype}): error {(got - want).abs()[worst]:.3g} at value {want[worst]:.6g}, "
        f"{excess[worst]:.2f} times the tolerance; {(excess > 1).sum()} of {want.numel()} elements beyond it"
    )


@contextlib.contextmanager
def uninitialized_is_nan() -> Iterator[None]:
    """Fill every freshly allocated tensor with NaN, so that an element which no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if _load.is_loaded("cpu"):  # it allocates without the dispatcher
        torch.ops.attnkernels.fill_new_memory(True)
    try:
        yield
    finally:
        if _load.is_loaded("cpu"):
            torch.ops.attnkernels.fill_new_memory(False)
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]

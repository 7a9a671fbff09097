"""Operands at alignments of their own (attnkernels/testing/_placement.py), on the Triton backend.

Triton compiles a kernel for pointers at multiples of 16 bytes, where it finds them there at the first launch. A launch
that is kept skips that look, and must never be given others: it would access vectors at addresses that have none.
"""

from __future__ import annotations

import pytest
import torch
from triton_backend import needs_gpu, needs_ttsem

from attnkernels import testing
from attnkernels.ops import _triton
from attnkernels.testing import OFFSETS, Offsets, Operand, PlacedCase, Placement, places

SHAPES = {
    "squeeze_excite": ("plain", "whole_vectors", "single_layer"),
    "criss_cross_attention": ("whole_vectors",),
    "criss_cross_affinity": ("whole_vectors",),
    "criss_cross_aggregate": ("whole_vectors",),
    "selective_kernel": ("plain", "stacked_four"),
    "efficient_channel_attention": ("circular", "whole_vectors"),
}
CASES = [case for op, names in SHAPES.items() for case in testing.CASES[op] if case.name in names]
RUNS = [pytest.param(case, layout, id=f"{case}-{layout}") for case in CASES for layout in testing.LAYOUTS]


def recorded(case: testing.OpCase, dtype: torch.dtype, layout: str, offsets: Offsets) -> tuple[list, list[Operand]]:
    """The launches of a case, forward and backward, without their being made; and its operators' operands."""
    args, kwargs = case.make(dtype, "cuda", layout)
    with _triton.recorded_launches() as launches, Placement(offsets) as placement:
        testing.gradients(case.op, args, kwargs, "triton")
    return launches, placement.operands


@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_kept_launches_are_given_aligned_pointers(case, layout):
    launches, operands = recorded(case, torch.bfloat16, layout, {})
    assert launches
    assert all(launch._keep for launch, _ in launches)
    for offsets in places(operands, OFFSETS):
        for launch, arguments in recorded(case, torch.bfloat16, layout, offsets)[0]:
            if launch._keep:
                tensors = testing.tensors_of(arguments)
                assert _triton.aligned(*tensors), f"{launch.kernel.__name__} is kept, with operands at {offsets}"


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_operands_start_anywhere(case, layout, dtype):
    call = PlacedCase(case, "triton", "cuda", dtype, layout)
    for offsets in places(call.operands, OFFSETS):
        call.check(offsets)


@needs_ttsem
@pytest.mark.parametrize(("case", "layout"), RUNS[::3])
def test_all_operands_start_anywhere_at_once(case, layout):
    """Alone they would tell nothing more: ttsem's accesses have no width."""
    *_, everywhere = places(recorded(case, torch.float32, layout, {})[1], OFFSETS)
    with Placement(everywhere):
        testing.check_against_float64(case, "triton", "cuda", torch.float32, layout)

"""Every operand of every operator at an alignment of its own (attnkernels/testing/_placement.py), forward and backward.

The same for Triton: tests/triton/test_alignment.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from attnkernels import _load, testing
from attnkernels.ops import _registry
from attnkernels.testing import OFFSETS, PlacedCase, Placement, placed, places
from tools import emulation

CASES = [case for case in testing.cases(small=True) if case.any_alignment]
# Of each dtype the offsets that are different ones to the CUDA kernels' accesses of 16 bytes.
DTYPES = {torch.float32: (1, 2, 3), torch.bfloat16: OFFSETS, torch.float64: (1,)}
# So few multiprocessors that a block walks many planes.
SMALL_DEVICE = {"multiprocessors": 1}
OPERATORS = set(_registry.OPERATORS)
# The operators whose sums are in an order that no alignment changes: on a CPU all of them; of the CUDA kernels those
# where one thread computes a number.
SAME_BITS = {
    "cpu": OPERATORS,
    "emulated": {
        "criss_cross_attention",
        "criss_cross_affinity",
        "criss_cross_affinity_backward",
        "criss_cross_aggregate",
        "criss_cross_aggregate_backward",
        "select_branches",
        "select_branches_grad_branches",
    },
}


def runs() -> Iterator[pytest.param]:
    for backend in (backend for backend, device in testing.fused_backends() if device == "cpu"):
        for case in CASES:
            both = backend == "emulated" and case.op == "squeeze_excite"
            for device in ({}, SMALL_DEVICE) if both else ({},):
                yield pytest.param(case, backend, device, id=f"{case}-{backend}{'-small' if device else ''}")


def on_device(backend: str, device: Mapping[str, int]) -> contextlib.AbstractContextManager:
    return emulation.load().device(**device) if backend == "emulated" else contextlib.nullcontext()


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize(("case", "backend", "device"), runs())
def test_operands_start_anywhere(case, backend, device, layout):
    for dtype, choices in DTYPES.items():
        if dtype == torch.float64 and case != next(c for c in CASES if c.op == case.op):
            continue
        with on_device(backend, device):
            call = PlacedCase(case, backend, "cpu", dtype, layout)
            for offsets in places(call.operands, choices if backend == "emulated" else OFFSETS):
                call.check(offsets, SAME_BITS[backend])


def test_no_operator_is_left_out():
    backend = next(backend for backend, device in testing.fused_backends() if device == "cpu")
    with Placement({}) as placement:
        for case in CASES:
            testing.gradients(case.op, *case.make(), backend)
    assert {operator for operator, _ in placement.operands} == OPERATORS


@pytest.mark.skipif(not _load.is_loaded("cpu"), reason="the CPU library was not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("normalised", [True, False])
def test_operands_of_squeeze_excite_in_place_start_anywhere(normalised, layout, dtype):
    """The operator that writes into x. (Its numbers: tests/cpu.)"""
    (case,) = (case for case in testing.CASES["squeeze_excite"] if case.name == "residual_relu")
    (x, *weights), kwargs = case.make(dtype, "cpu", layout)
    generator = torch.Generator().manual_seed(1)
    norm = [torch.rand(x.shape[1], generator=generator).to(dtype) + 0.5 for _ in range(4)]
    tensors = [x, *(norm if normalised else [None] * 4), *weights, kwargs["residual"]]

    def run(offsets: Mapping[int, int]) -> Tensor:
        moved = [None if tensor is None else placed(tensor, offsets.get(i, 0)) for i, tensor in enumerate(tensors)]
        torch.ops.attnkernels.squeeze_excite_(*moved[:5], 1e-5, 1, *moved[5:], 0, 0, 1)
        return moved[0]

    want = run({})
    assert want.isfinite().all()
    assert not torch.equal(want, x)
    everywhere = {i: OFFSETS[i % len(OFFSETS)] for i in range(len(tensors))}
    for offsets in (*({i: offset} for i in range(len(tensors)) for offset in OFFSETS), everywhere):
        assert torch.equal(run(offsets), want), f"offsets {offsets}"

"""pooled_sum and select_branches on random shapes, strides, dtypes and numbers of branches, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkernels import testing

from .strategies import DTYPES, SEEDS, check, feature_maps


@st.composite
def calls(draw, op, largest):
    dtype, count, n, c = draw(DTYPES), draw(st.integers(2, 8)), draw(st.integers(0, 3)), draw(st.integers(1, largest))
    h, w = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    if draw(st.booleans()):  # views of one map, as of one convolution
        branches = draw(feature_maps(n, count * c, h, w, dtype)).unflatten(1, (count, c))
    else:
        branches = [draw(feature_maps(n, c, h, w, dtype)) for _ in range(count)]
    if op == "pooled_sum":
        return (branches,), {}
    generator = torch.Generator().manual_seed(draw(SEEDS))
    logits = torch.randn(n, count, c, dtype=torch.float64, generator=generator) * draw(st.sampled_from([0.1, 2.0]))
    return (branches, logits.to(dtype)), {}


@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
@pytest.mark.parametrize("op", ["pooled_sum", "select_branches"])
def test_selective_kernel(op, backend, device):
    @given(calls(op, largest=14 if backend == "emulated" else 60))
    def run(call):
        branches = call[0][0]
        stacked = torch.is_tensor(branches)
        # The gradient to the logits is a difference of terms as large as the branches' gradients.
        logits = 1 if stacked else len(branches)
        check(op, call, (branches if stacked else branches[0]).dtype, backend, device, through_output=(logits,))

    run()

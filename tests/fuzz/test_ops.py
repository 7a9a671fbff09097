"""Every op on random shapes, strides, dtypes and options, on every backend, against float64."""

from __future__ import annotations

import pytest
from hypothesis import given

from attnkernels import testing

from .drawing import NUMBERS, call


@pytest.mark.parametrize(("backend", "device"), testing.fused_backends())
@pytest.mark.parametrize("op", testing.RANDOM)
def test_random_calls(op, backend, device):
    @given(NUMBERS)
    def run(draw):
        case, dtype = call(op, draw, backend, device)
        testing.check_against_float64(case, backend, device, dtype, "contiguous")

    run()
